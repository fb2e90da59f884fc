"""A data set's examples, split into training, validation and test data."""

from dataclasses import dataclass, replace

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
        drawn: training examples of an epoch, drawn with replacement; None for all of them, once each.
    """

    train: Split
    validation: Split
    test: Split
    classes: int
    drawn: int | None = None

    @property
    def epoch(self) -> int:
        """Number of training examples in an epoch."""
        return self.drawn or len(self.train)

    def order(self, generator: torch.Generator) -> Tensor:
        """Draw the training examples of an epoch, in random order.

        Args:
            generator: decides the draws.

        Returns:
            (n,) int64 numbers of the examples, on the CPU.
        """
        if self.drawn is None:
            return torch.randperm(len(self.train), generator=generator)
        return torch.randint(len(self.train), (self.drawn,), generator=generator)

    def to(self, device: torch.device) -> "Data":
        """Return the same data on another device.

        Args:
            device: to copy to.
        """
        parts = {name: getattr(self, name).to(device) for name in ("train", "validation", "test")}
        return replace(self, **parts)


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
