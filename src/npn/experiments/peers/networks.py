"""The networks of the comparison, with what all methods share: data, batches, schedule, optimizer's settings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

import npn
from npn.experiments.data.augment import crop_and_flip
from npn.experiments.data.cifar import cifar, normalised, statistics
from npn.experiments.data.mnist import mnist
from npn.experiments.data.splits import Data
from npn.experiments.lenet5.model import PLAIN, LeNet5
from npn.experiments.lenet300.model import LeNet300
from npn.experiments.resnet.model import ResNet

EQUAL = (100, 100)  # widths of LeNet-300-100's plain nets: 300 to 100 would leave 5 units in the second layer
MOST = 4.0  # widest plain net, in units of the hand-picked proportions


@cache  # hundreds of runs in one process read the same files
def _mnist(folder: str | None) -> Data:
    return mnist(folder)


@cache
def _cifar10(folder: str | None) -> Data:
    return cifar("cifar10", folder)


def _unchanged(data: Data) -> Callable[[Tensor], Tensor]:
    return lambda x: x


def _normalised(data: Data) -> Callable[[Tensor], Tensor]:
    mean, std = statistics(data.train.x)
    return lambda x: normalised(x, mean, std)


@dataclass(frozen=True)
class Network:
    """One network and its training, the same for all methods.

    Attributes:
        title: for people.
        full: makes the full network.
        plain: makes a smaller one of hand-picked proportions, from their scale.
        data: reads the data, from a folder or None.
        prepare: makes the function that converts stored inputs, from the data.
        shape: of one input.
        budgets: shares of the weights by default.
        epochs: of pre-training, shrinking and fine-tuning by default.
        batch_size: examples per step.
        learning_rate: of the weights, by default.
        weight_decay: by default.
        only: groups of units that may shrink; None for all.
        last: path of the layer that makes the logits.
        augment: of the training inputs.
    """

    title: str
    full: Callable[[], nn.Module]
    plain: Callable[[float], nn.Module]
    data: Callable[[str | None], Data]
    prepare: Callable[[Data], Callable[[Tensor], Tensor]]
    shape: tuple[int, ...]
    budgets: tuple[float, ...]
    epochs: tuple[int, int, int]
    batch_size: int
    learning_rate: float
    weight_decay: float
    last: str
    only: str | None = None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def weights(self) -> int:
        """Count the weights of the full network, without biases and normalisation."""
        with torch.device("meta"):
            return npn.count_params(self.full(), biases=False)

    def hand_picked(self, weights: float) -> nn.Module:
        """Make the largest net of hand-picked proportions with at most so many weights, or the smallest there is.

        Args:
            weights: without biases.
        """
        low, high = 0.0, MOST
        with torch.device("meta"):
            for _ in range(20):  # bisection: the number of weights rises with the scale
                middle = (low + high) / 2
                fits = npn.count_params(self.plain(middle), biases=False) <= weights
                low, high = (middle, high) if fits else (low, middle)
        return self.plain(low)


def _widths(proportions: tuple[int, ...], scale: float) -> list[int]:
    return [max(1, round(width * scale)) for width in proportions]


NETWORKS = {
    "lenet300": Network(
        title="LeNet-300-100 on MNIST",
        full=LeNet300,
        plain=lambda scale: LeNet300(*_widths(EQUAL, scale)),
        data=_mnist,
        prepare=_unchanged,
        shape=(1, 28, 28),
        budgets=(0.2, 0.1, 0.05),
        epochs=(5, 20, 25),
        batch_size=100,
        learning_rate=2e-3,
        weight_decay=1e-2,
        last="fc3",
    ),
    "lenet5": Network(
        title="LeNet-5 on MNIST",
        full=LeNet5,
        plain=lambda scale: LeNet5(*_widths(PLAIN, scale)),
        data=_mnist,
        prepare=_unchanged,
        shape=(1, 28, 28),
        budgets=(0.05, 0.02, 0.01),
        epochs=(5, 20, 25),
        batch_size=100,
        learning_rate=2e-3,
        weight_decay=5e-2,
        last="fc2",
    ),
    "resnet20": Network(
        title="ResNet-20 on CIFAR-10",
        full=lambda: ResNet(20),
        plain=lambda scale: ResNet(20, width=max(scale, 1e-3), stream=False),
        data=_cifar10,
        prepare=_normalised,
        shape=(3, 32, 32),
        budgets=(0.6, 0.4, 0.25),
        epochs=(10, 40, 50),
        batch_size=128,
        learning_rate=2e-3,
        weight_decay=5e-2,
        last="fc",
        only="blocks.*.branch.conv1",
        augment=crop_and_flip,
    ),
}
