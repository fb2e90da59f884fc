"""What a zoo entry is: a model, its inputs, and what the tracer must find in it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        make: builds it.
        inputs: makes example inputs, a tensor, a tuple or a dict.
        groups: name -> size of every group that must be resizable, and of no other.
        frozen: name -> part of the reason; every dimension that is listed must be frozen so.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    groups: dict[str, int]
    frozen: dict[str, str] = field(default_factory=dict)


def randn(*shape: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(*shape)


def tokens(*shape: int, below: int = 20) -> Callable[[], torch.Tensor]:
    return lambda: torch.randint(0, below, shape)
