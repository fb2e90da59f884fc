"""A data set's examples, split into training, validation and test data."""

from dataclasses import dataclass

import torch
from torch import Tensor

from npn.errors import ConfigurationError


@dataclass(frozen=True)
class Split:
    """Examples and their classes.

    Attributes:
        x: (n, ...) inputs.
        y: (n,) int64 classes.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return self.x.shape[0]

    def to(self, device: torch.device) -> "Split":
        """Return the same examples on another device.

        Args:
            device: to copy to.
        """
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Data:
    """A data set in its three parts.

    Attributes:
        train: examples that weights and gates learn from.
        validation: held out of the training data; they steer growth, stopping and tuning.
        test: only reported; they steer nothing.
        classes: number of classes.
    """

    train: Split
    validation: Split
    test: Split
    classes: int

    def to(self, device: torch.device) -> "Data":
        """Return the same data on another device.

        Args:
            device: to copy to.
        """
        return Data(self.train.to(device), self.validation.to(device), self.test.to(device), self.classes)


def split_off(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """Set `count` examples aside, drawn without replacement.

    Args:
        split: the examples to divide.
        count: size of the second part, from 1 to all but one.
        seed: the same seed sets the same examples aside.

    Returns:
        The examples that stay and those set aside, together all of them once.

    Raises:
        ConfigurationError: a part would be empty.

    Example:
        >>> stay, aside = split_off(Split(torch.arange(5.0), torch.arange(5)), 2, seed=0)
        >>> sorted(stay.y.tolist() + aside.y.tolist())
        [0, 1, 2, 3, 4]
    """
    total = len(split)
    if not 0 < count < total:
        raise ConfigurationError(f"expected to set aside 1 to {total - 1} of {total} examples, got {count}")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    stay, aside = order[:-count], order[-count:]
    return Split(split.x[stay], split.y[stay]), Split(split.x[aside], split.y[aside])
