"""Axes of weights whose size the data fixes, frequencies or blocks of features, leave the units of other axes alone."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

import npn

from ..zoo.checks import check_resizes
from .asking import reasons, sizes


class Spectral(nn.Module):
    """The layer of a Fourier neural operator: one matrix for each of the lowest frequencies, in two corners."""

    def __init__(self, old: int, new: int, modes: int) -> None:
        super().__init__()
        self.new, self.modes = new, modes
        made = (torch.rand(old, new, modes, modes, dtype=torch.cdouble) for _ in range(2))
        self.low, self.high = (nn.Parameter(weight) for weight in made)

    def forward(self, x: Tensor) -> Tensor:
        m, f = self.modes, torch.fft.rfft2(x)
        out = torch.zeros(x.shape[0], self.new, *f.shape[2:], dtype=f.dtype)
        out[:, :, :m, :m] = torch.einsum("bixy,ioxy->boxy", f[:, :, :m, :m], self.low)
        out[:, :, -m:, :m] = torch.einsum("bixy,ioxy->boxy", f[:, :, -m:, :m], self.high)
        return torch.fft.irfft2(out, s=x.shape[-2:])


class Blocks(nn.Module):
    """A gate for each feature, computed by a matrix for each block of features (Griffin's RG-LRU)."""

    def __init__(self, width: int = 12, blocks: int = 3) -> None:
        super().__init__()
        self.stem, self.last, self.blocks = nn.Linear(6, width), nn.Linear(width, 2), blocks
        self.weight = nn.Parameter(torch.randn(blocks, width // blocks, width // blocks))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        gate = torch.einsum("bhi,hij->bhj", h.unflatten(-1, (self.blocks, -1)), self.weight)
        return self.last(h * gate.flatten(-2).sigmoid())


def attached(make: Callable[[], nn.Module], *shape: int) -> tuple[npn.Plasticity, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(*shape, dtype=torch.float64)
    return npn.attach(make(), x), x


def test_a_matrix_for_each_frequency() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 6, 1), Spectral(6, 5, 3), nn.Conv2d(5, 2, 1)).double()

    made = functools.partial(attached, make, 2, 2, 8, 8)
    structure = made()[0].structure
    assert sizes(structure) == {"0": 6, "1": 5}
    assert "fixed size" in reasons(structure, "1.low", 2)
    assert structure.resizable >= {("1.low", 0), ("1.low", 1), ("1.high", 0), ("1.high", 1)}
    check_resizes(made)


def test_a_matrix_for_each_block_of_features() -> None:
    made = functools.partial(attached, lambda: Blocks().double(), 4, 6)
    structure = made()[0].structure
    assert [group.size for group in structure.groups] == [4]
    assert structure.resizable >= {("stem.weight", 0), ("weight", 1), ("weight", 2), ("last.weight", 1)}
    check_resizes(made)
