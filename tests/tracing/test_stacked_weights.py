"""Weights with three axes, such as (experts, in, out) and (heads, in, features): both of the rows' axes have units."""

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn

from ..zoo.checks import as_double, check_resizes
from .asking import reasons, sizes

EXPERTS, HIDDEN, WIDTH = 3, 5, 8


class Stacked(nn.Module):
    """`f(self, x)` computes from (batch, WIDTH) with `up` (EXPERTS, WIDTH, HIDDEN)."""

    def __init__(self, f: Callable[["Stacked", Tensor], Tensor], out: int = WIDTH) -> None:
        super().__init__()
        self.embed, self.head, self.f = nn.Linear(4, WIDTH), nn.Linear(out, 2), f
        self.up, self.shift = (
            nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN)),
            nn.Parameter(torch.randn(EXPERTS, HIDDEN)),
        )
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.f(self, torch.relu(self.embed(x)))))


def weighted(s: Stacked, x: Tensor) -> Tensor:
    h = torch.relu(torch.einsum("bd,edh->beh", x, s.up) + s.shift)
    return torch.einsum("beh,ehd->bed", h, s.down).sum(1)


def matmul(s: Stacked, x: Tensor) -> Tensor:
    return (torch.relu(x @ s.up + s.shift[:, None]) @ s.down).mean(0)


def last(s: Stacked, x: Tensor) -> Tensor:
    """Experts come last, and the shift before they are told apart from their features."""
    h = (x @ s.up.permute(1, 2, 0).flatten(1)).unflatten(1, (-1, EXPERTS))
    return torch.einsum("bhe,ehd->bd", torch.relu(h + s.shift.T), s.down)


def beside(s: Stacked, x: Tensor) -> Tensor:
    """Read side by side: each feature of each expert has a column of its own."""
    return torch.relu(torch.einsum("bd,edh->beh", x, s.up)).flatten(1)


def early(s: Stacked, x: Tensor) -> Tensor:
    """An op comes before the axes are told apart, which makes units of both meet."""
    h = torch.relu(x @ s.up.transpose(0, 1).flatten(1)).unflatten(1, (EXPERTS, -1))
    return torch.einsum("beh,ehd->bed", h, s.down).sum(1)


def attended(s: Stacked, x: Tensor) -> Tensor:
    """Heads of one weight each for queries and values, over the batch as a sequence."""
    q = torch.einsum("nd,hdk->hnk", x, s.up)
    v = torch.einsum("nd,hkd->hnk", x, s.down)
    seen = torch.einsum("hnm,hmk->hnk", torch.einsum("hnk,hmk->hnm", q, q).softmax(-1), v)
    return F.linear(seen.transpose(0, 1).flatten(1), s.up.transpose(1, 2).flatten(0, 1).T)


MODELS = {
    "weighted": (weighted, WIDTH, {"embed": WIDTH, "down": WIDTH, "up": HIDDEN}),
    "matmul": (matmul, WIDTH, {"embed": WIDTH, "down": WIDTH, "up": HIDDEN}),
    "last": (last, WIDTH, {"embed": WIDTH, "down": WIDTH, "up#2": HIDDEN}),
    "beside": (beside, EXPERTS * HIDDEN, {"embed": WIDTH, "up": EXPERTS}),
    "early": (early, WIDTH, {"embed": WIDTH, "down": WIDTH}),
    "attended": (attended, WIDTH, {"embed": WIDTH, "down": EXPERTS}),
}


def attached(name: str) -> tuple[npn.Plasticity, Tensor]:
    torch.manual_seed(0)
    f, out, _ = MODELS[name]
    x = as_double(torch.randn(6, 4))
    return npn.attach(Stacked(f, out).double(), x), x


@pytest.mark.parametrize("name", MODELS)
def test_what_is_resizable(name: str) -> None:
    plastic, _ = attached(name)
    assert sizes(plastic.structure) == MODELS[name][2]


@pytest.mark.parametrize("name", MODELS)
def test_units_come_and_go(name: str) -> None:
    check_resizes(functools.partial(attached, name))


def test_units_that_meet_before_they_are_told_apart_stay() -> None:
    plastic, _ = attached("early")
    told = reasons(plastic.structure, "up", 2)
    assert told.startswith("two axes of one weight make one axis at test_stacked_weights.py:")
