"""Layers that scale or quantise their own weight, as code for quantisation-aware training is written by hand."""

import copy
import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn

from ..zoo.checks import check_grow, check_shrink, check_training
from .asking import reasons, sizes


class Layers(nn.Module):
    """The last layer reads units through a function of its weight."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.f = nn.Linear(6, 8), nn.Linear(8, 2), f

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.a(x)), self.f(self.b.weight), self.b.bias)


def rounded(w: Tensor, scale: Tensor) -> Tensor:
    """To 255 values, with the gradient of the identity."""
    levels = w / (scale.clamp(min=1e-5) / 127)
    return (levels + (levels.round() - levels).detach()) * (scale / 127)


FOLLOWED = {
    "power": lambda w: w / w.pow(2).sum(1, keepdim=True).sqrt(),
    "square": lambda w: w / w.square().sum(1, keepdim=True).sqrt(),
    "largest of a row": lambda w: w / w.abs().amax(1, keepdim=True),
    "largest of a row, with its place": lambda w: w / w.abs().max(1, keepdim=True)[0],
    "largest": lambda w: w / w.abs().max(),
    "largest square": lambda w: w / w.square().amax(1, keepdim=True),
    "rounded": lambda w: rounded(w, w.abs().amax(1, keepdim=True)),
    "rounded alike": lambda w: rounded(w, w.abs().max()),
}

MIXED = {
    "root, whose slope at 0 is infinite": (lambda w: w / w.abs().pow(0.5).sum(1, keepdim=True), "sum mixes"),
    "root of each": (lambda w: w.sign() * w.abs().sqrt(), "zero does not pass"),
    "inverse": (lambda w: w * w.abs().pow(-1).sum(1, keepdim=True), "sum mixes"),
    "signed": (lambda w: w / w.amax(1, keepdim=True), "amax mixes"),
    "cube": (lambda w: w / w.pow(3).amax(1, keepdim=True), "amax mixes"),
    "least": (lambda w: w / w.abs().amin(1, keepdim=True), "amin mixes"),
    "place": (lambda w: w * w.abs().max(1, keepdim=True)[1], "max mixes"),
    "mean": (lambda w: w / w.abs().mean(1, keepdim=True), "mean mixes"),
}


def attached(f: Callable[[Tensor], Tensor]) -> tuple[npn.Plasticity, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 6, dtype=torch.float64)
    return npn.attach(Layers(f).double(), x), x


@pytest.mark.parametrize("name", FOLLOWED)
def test_units_come_and_go_where_zeros_change_nothing(name: str) -> None:
    plastic, x = attached(FOLLOWED[name])
    assert sizes(plastic.structure) == {"a": 8}
    check_shrink(copy.deepcopy(plastic), x)
    check_grow(copy.deepcopy(plastic), x)
    check_training(plastic, x, functools.partial(torch.optim.Adam, lr=1e-3))


@pytest.mark.parametrize("name", MIXED)
def test_other_functions_keep_their_size(name: str) -> None:
    f, reason = MIXED[name]
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6), Layers(f))
    structure = npn.attach(model, torch.randn(4, 6)).structure
    assert sizes(structure) == {"0": 5, "2": 6}
    assert reason in reasons(structure, "3.a.weight", 0)


@pytest.mark.parametrize("axis", [0, 1])
def test_fake_quantisation_by_channel(axis: int) -> None:
    """Along the axis of the units, the scales are buffers that shrink with them."""

    class Quantized(Layers):
        def __init__(self) -> None:
            super().__init__(lambda w: w)
            n = self.b.weight.shape[axis]
            self.register_buffer("scale", torch.linspace(0.01, 0.02, n))
            self.register_buffer("zero", torch.zeros(n))

        def forward(self, x: Tensor) -> Tensor:
            w = torch.fake_quantize_per_channel_affine(self.b.weight, self.scale, self.zero, axis, -128, 127)
            return F.linear(torch.tanh(self.a(x)), w, self.b.bias)

    torch.manual_seed(0)
    x = torch.randn(4, 6)
    plastic = npn.attach(Quantized(), x)
    assert sizes(plastic.structure) == {"a": 8}
    assert (("scale", 0) in plastic.structure.resizable) == (axis == 1)
    check_shrink(plastic, x, 1e-6)
