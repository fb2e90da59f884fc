"""Data sets as tensors in memory, split into training, validation and test."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npn.errors import ConfigurationError


@dataclass(frozen=True)
class Split:
    """Inputs and their integer classes, of one length."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return self.x.shape[0]

    def to(self, device: torch.device) -> "Split":
        """The same examples on another device."""
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Data:
    """A data set in its three parts.

    Attributes:
        train: what the weights and the gates learn from.
        validation: held out of the training data; steers growth, stopping and tuning.
        test: steers nothing, is only reported.
        classes: how many classes there are.
    """

    train: Split
    validation: Split
    test: Split
    classes: int

    def to(self, device: torch.device) -> "Data":
        """The same data on another device."""
        return Data(self.train.to(device), self.validation.to(device), self.test.to(device), self.classes)


def split_off(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """Set `count` examples aside, drawn without replacement.

    Args:
        split: the examples to divide.
        count: how many go into the second part, between 1 and all but one.
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


def download(url: str, known_hash: str, processor: Any = None) -> Any:
    """Fetch a file into the user's cache, unless it is there, and check it.

    Args:
        url: of the file.
        known_hash: "sha256:..." or "md5:...".
        processor: one of pooch's, for archives.

    Returns:
        Its path, or what the processor makes of it.

    Raises:
        ConfigurationError: it cannot be had, or is another file.
    """
    import pooch

    name = url.rpartition("/")[2]
    try:
        return pooch.retrieve(url, known_hash, fname=name, path=pooch.os_cache("npn"), processor=processor)
    except (OSError, ValueError) as error:  # those of requests are OSErrors, a wrong checksum is a ValueError
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigurationError(
            f"expected to download {url}, got {why}; fetch it elsewhere and name its folder with --data or NPN_DATA"
        ) from error


def moons(seed: int, *, train: int = 500, validation: int = 100, test: int = 500, noise: float = 0.1) -> Data:
    """Two interleaved half circles in the plane, the data of the paper's section VI-A.

    Args:
        seed: draws the points and the split.
        train: points of the training data, those set aside for validation included.
        validation: how many of them are set aside.
        test: points of the test data, drawn independently.
        noise: standard deviation of the Gaussian noise on each coordinate.

    Returns:
        Points of shape (n, 2), float32, and classes 0 and 1.
    """
    from sklearn.datasets import make_moons

    def draw(count: int, stream: int) -> Split:
        x, y = make_moons(n_samples=count, noise=noise, random_state=2 * seed + stream)
        return Split(torch.from_numpy(x).float(), torch.from_numpy(y).long())

    rest, aside = split_off(draw(train, 0), validation, seed)
    return Data(rest, aside, draw(test, 1), classes=2)
