"""Padding of time steps or pixels does not depend on the number of units, so what is added to it comes and goes."""

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn

from ..zoo.checks import check_resizes, check_shrink
from .asking import reasons, sizes

WIDTH, HIDDEN = 8, 6


class Mixes(nn.Module):
    """Each time step (batch, time, WIDTH) is mixed with the one before it, which `shift` gives (RWKV's token shift)."""

    def __init__(self, shift: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.key, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, 2)
        self.share, self.shift = nn.Parameter(torch.rand(WIDTH)), shift

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x))
        return self.head(torch.relu(self.key(x * self.share + self.shift(x) * (1 - self.share))))


def padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, -1))


def beside_zeros(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(x.shape[0], 1, x.shape[2]), x[:, :-1]], 1)


def written(x: Tensor) -> Tensor:
    before = torch.zeros_like(x)
    before[:, 1:] = x[:, :-1]
    return before


class Narrow(nn.Module):
    """A convolution without padding; its map is padded to the size of the map that it is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv1d(3, WIDTH, 1), nn.Conv1d(WIDTH, WIDTH, 3), nn.Conv1d(WIDTH, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x.mT))
        return self.last(h + F.pad(self.second(h), (2, 0)))


class Relative(nn.Module):
    """Transformer-XL: scores of relative positions, learned and read by a layer, are padded and shifted into place."""

    def __init__(self, heads: int = 4, features: int = 3) -> None:
        super().__init__()
        self.embed, self.o, self.head = nn.Linear(3, WIDTH), nn.Linear(heads * features, WIDTH), nn.Linear(WIDTH, 2)
        self.q, self.k, self.v, self.r = (nn.Linear(WIDTH, heads * features) for _ in range(4))
        self.places, self.features = nn.Parameter(torch.randn(5, WIDTH)), features

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.embed(x))
        q, k, v = (layer(h).unflatten(-1, (-1, self.features)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        places = self.r(self.places).unflatten(-1, (-1, self.features)).transpose(0, 1)
        scores = q @ k.mT + self.shifted(q @ places.mT)
        return self.head(torch.tanh(h + self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))))

    @staticmethod
    def shifted(scores: Tensor) -> Tensor:
        batch, heads, rows, columns = scores.shape
        wide = F.pad(scores, (1, 0)).view(batch, heads, columns + 1, rows)
        return wide[:, :, 1:].view(batch, heads, rows, columns)


class Channels(nn.Module):
    """Here it is the channels that are padded, and their number is in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, HIDDEN), nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(F.pad(self.first(x), (0, WIDTH - HIDDEN)) + self.second(x)))


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    **{f.__name__: (functools.partial(Mixes, f), {"embed": WIDTH, "key": HIDDEN})
       for f in (padded, beside_zeros, written)},
    "narrow": (Narrow, {"first": WIDTH}),
    "relative": (Relative, {"embed": WIDTH, "q": 4}),
}  # fmt: skip


def attached(name: str) -> tuple[npn.Plasticity, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    return npn.attach(MODELS[name][0]().double(), x), x


@pytest.mark.parametrize("name", MODELS)
def test_units_that_are_added_to_padding_come_and_go(name: str) -> None:
    assert sizes(attached(name)[0].structure) == MODELS[name][1]
    check_resizes(functools.partial(attached, name))


def test_units_that_meet_nothing_but_padding_stay() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, dtype=torch.float64)
    plastic = npn.attach(Channels().double(), x)
    assert sizes(plastic.structure) == {"first": HIDDEN}
    assert reasons(plastic.structure, "second.weight", 0).startswith("added to zero padding at test_padding.py:")
    check_shrink(plastic, x)
