"""Sizes that modules keep in tuples follow a resize: `self.shape = (channels, 1, 1)`, `self.normalized_shape`."""

import functools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn
from npn.modules import integers

from ..zoo.checks import check_resizes
from .asking import sizes


class Scaled(nn.Module):
    """A scale that is viewed in the shape that the module keeps (MetaFormer)."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, width, 1), nn.Conv2d(width, 2, 1)
        self.scale, self.shape = nn.Parameter(torch.rand(width)), (width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)) * self.scale.view(self.shape))


class Two(nn.Module):
    """One tuple with the sizes of two groups, one of them twice, and one that only looks like a size."""

    def __init__(self, a: int = 5, b: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, a), nn.Linear(3, b)
        self.left, self.right = nn.Linear(a, 2), nn.Linear(b, 2)
        self.sizes, self.version = (a, b, b), (a, b)

    def forward(self, x: Tensor) -> Tensor:
        a, b, again = self.sizes
        left, right = self.first(x).view(-1, a), self.second(x).view(-1, 1, b)
        return self.left(left.tanh()) + self.right(right.sigmoid().view(-1, again))


class Split(nn.Module):
    """One layer computes three things, whose widths are in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.widths = nn.Linear(3, 14), [4, 4, 6]
        self.heads = nn.ModuleList(nn.Linear(width, 2) for width in self.widths)

    def forward(self, x: Tensor) -> Tensor:
        return sum(
            head(part.tanh()) for head, part in zip(self.heads, self.first(x).split(self.widths, 1), strict=True)
        )


class Norm(nn.Module):
    """Layer norm as many copy it from ConvNeXt's code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        self.normalized_shape = (width,)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, 1e-2)


class Normed(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed, self.norm, self.up, self.down = (
            nn.Linear(3, width),
            Norm(width),
            nn.Linear(width, 12),
            nn.Linear(12, width),
        )
        self.last, self.head = Norm(width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.head(self.last(h + self.down(F.gelu(self.up(self.norm(h))))))


MODELS = {
    "scaled": (Scaled, (2, 2, 3, 3), {"first": 6}),
    "two": (Two, (2, 3), {"first": 5, "second": 4}),
    "split": (Split, (2, 3), {"first": 4, "first#2": 4, "first#3": 6}),
    "normed": (Normed, (2, 3), {"embed": 8, "up": 12}),
}


def attached(name: str) -> tuple[npn.Plasticity, Tensor]:
    torch.manual_seed(0)
    make, shape, _ = MODELS[name]
    x = torch.randn(*shape, dtype=torch.float64)
    return npn.attach(make().double(), x, streams=True), x


@pytest.mark.parametrize("name", MODELS)
def test_units_come_and_go_with_the_tuple(name: str) -> None:
    assert sizes(attached(name)[0].structure) == MODELS[name][2]
    check_resizes(functools.partial(attached, name), grows=name != "normed")  # units under a norm shrink alone


@pytest.mark.parametrize("name", MODELS)
def test_checkpoints_hold_the_tuple(name: str, tmp_path: Path) -> None:
    plastic, x = attached(name)
    plastic.close(plastic.groups[0], [0, 2])
    plastic.compact()
    npn.save(tmp_path / "small.npn", plastic)
    small = npn.load(tmp_path / "small.npn", attached(name)[0]).model
    torch.testing.assert_close(small(x), plastic.model(x))
    npn.save(tmp_path / "plain.npn", plastic.export())
    torch.testing.assert_close(npn.load(tmp_path / "plain.npn", MODELS[name][0]().double())(x), plastic.model(x))


def test_only_the_entries_that_count_follow() -> None:
    plastic, _ = attached("two")
    plastic.close("first", [1])
    plastic.close("second", [0, 3])
    plastic.compact()
    assert plastic.model.sizes == (4, 2, 2)
    assert plastic.model.version == (5, 4)


def test_long_lists_are_no_sizes() -> None:
    layer = Norm(4)
    layer.table, layer.shape = list(range(17)), list(range(16))
    assert not any(name.startswith("table") for name in integers(layer))
    assert integers(layer)["shape[15]"] == 15
