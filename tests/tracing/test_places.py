"""Units and rows on one axis: an op that takes other rows of some units than of others is found, and so are sizes that
say which rows are read."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import npn
from npn.tracing.labels.places import aligned, moved_alike, regular

from ..zoo.checks import check_grow, check_shrink


class Between(nn.Module):
    """Eight units of a layer, a function of them, and a layer that reads what comes out; beside it three other units.

    Each row of what is read has a weight of its own.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], rows: int, flat: bool = False) -> None:
        super().__init__()
        self.f, self.flat = f, flat
        self.a, self.other = nn.Linear(4, 8), nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        with torch.no_grad():
            out = f(torch.zeros(rows, 8))
        self.c = nn.Linear(out.numel() if flat else out.shape[-1], 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.f(torch.tanh(self.a(x)))
        y = self.c(torch.tanh(h.flatten()[None] if self.flat else h.reshape(-1, h.shape[-1])))
        return y.cumsum(0).tanh().mean(0) + self.other(x).sum(0)


def filled(h: Tensor) -> Tensor:
    y = h.clone().flatten()
    y[:: h.shape[1] + 1] = 0
    return y.view(h.shape)


def dilated(h: Tensor) -> Tensor:
    step = h.shape[1] // 4
    return F.conv1d(h.t()[:, None], torch.ones(1, 1, 3), padding=step, dilation=step)[:, 0].t()


def joined(h: Tensor) -> Tensor:
    flat = torch.cat([torch.zeros(1), h.flatten(), side(h)])
    return flat.view(-1, h.shape[1]).roll(-1, 1).cumsum(0)


def side(h: Tensor) -> Tensor:
    return torch.zeros(h.shape[1] - 1)


OTHER = "takes other places of some units than of others at test_places.py"
SHIFT = "its units have been shifted against each other along another axis"
SIZE = "the computation depends on the size"
CASES: dict[str, tuple[Callable[[Tensor], Tensor], int, str]] = {  # what lies between, rows, reason ("" if resizable)
    "diagonal": (lambda h: h * h.flatten()[:: h.shape[1] + 1][None], 8, OTHER),
    "diagonal_of_more_rows": (lambda h: h * h.flatten()[:: h.shape[1] + 1][: h.shape[1]][None], 12, OTHER),
    "diagonal_of_fewer_rows": (lambda h: h * h.flatten()[:: h.shape[1] + 1].sum(), 5, OTHER),
    "strided_view": (lambda h: h * h.as_strided((h.shape[1],), (h.shape[1] + 1,))[None], 12, OTHER),
    "windows": (lambda h: h * h.flatten().unfold(0, 1, h.shape[1] + 1)[: h.shape[1]].t(), 12, OTHER),
    "transposed": (lambda h: h * h.t().flatten()[:: h.shape[0] + 1][: h.shape[1]][None], 12, OTHER),
    "repeated_rows": (
        lambda h: h * h.repeat_interleave(2, 0).flatten()[:: h.shape[1] + 1][: h.shape[1]][None], 12, OTHER,
    ),
    "index": (lambda h: h * h.flatten()[torch.arange(h.shape[1]) * (h.shape[1] + 1)][None], 12, OTHER),
    "rolled_flat": (lambda h: h.flatten().roll(1).view(h.shape).roll(-1, 1), 6, OTHER),
    "filled_diagonal": (filled, 8, OTHER),
    "padded_flat": (lambda h: F.pad(h.flatten(), (1, h.shape[1] - 1)).view(-1, h.shape[1]).roll(-1, 1), 6, SHIFT),
    "joined_flat": (joined, 6, SHIFT),
    "rows_by_width": (lambda h: h + h[: h.shape[1] // 4].mean(0, keepdim=True), 6, SIZE),
    "row_by_width": (lambda h: h + h[h.shape[1] // 4][None], 6, SIZE),
    "row_index_by_width": (lambda h: h + h[torch.tensor([h.shape[1] // 4])], 6, SIZE),
    "rolled_by_width": (lambda h: h.roll(h.shape[1], 0), 6, SIZE),
    "padded_by_width": (lambda h: F.pad(h, (0, 0, h.shape[1], 16 - h.shape[1])), 6, SIZE),
    "dilated_by_width": (dilated, 12, SIZE),
    "pooled_by_width": (lambda h: h + F.avg_pool1d(h.t()[None], h.shape[1] // 2, 1).mean(2), 12, SIZE),
    "shifted_rows": (lambda h: F.pad(h, (0, 0, 1, 0))[:-1], 6, ""),
    "some_rows": (lambda h: torch.cat([h[1::2], h.roll(2, 0), h.flip(0)[:2], torch.zeros_like(h[:1])]), 6, ""),
    "flat_and_back": (lambda h: h.flatten().view(2, -1).roll(1, 0).view(h.shape), 6, ""),
    "half_of_the_rows_flat": (lambda h: h.flatten()[: h.numel() // 2].view(-1, h.shape[1]), 6, ""),
    "windows_of_rows": (lambda h: h.unfold(0, 3, 2).transpose(1, 2).reshape(-1, h.shape[1]), 7, ""),
}  # fmt: skip


def attached(model: nn.Module, x: Tensor) -> tuple[npn.Plasticity, str]:
    plastic = npn.attach(model, x)
    return plastic, "; ".join(f.reason for f in plastic.frozen if ("a.weight", 0) in f.slots)


@pytest.mark.parametrize("name", CASES)
def test_places(name: str) -> None:
    torch.manual_seed(0)
    f, rows, reason = CASES[name]
    x = torch.randn(rows, 4)
    plastic, why = attached(Between(f, rows), x)
    assert reason in why
    assert {g.name: g.size for g in plastic.groups} == ({} if reason else {"a": 8}) | {"other.0": 3}
    second = copy.deepcopy(plastic)
    check_shrink(plastic, x)
    check_grow(second, x)


Move = Callable[[Tensor], Tensor]
MOVES: dict[str, Callable[[int], Move]] = {
    "flat": lambda n: lambda h: h.flatten(),
    "view": lambda n: lambda h: h.reshape(-1, (h.shape[-1], 8, 4, 6)[n]),
    "strided": lambda n: lambda h: h.flatten()[:: (h.shape[-1] + 1, h.shape[-1], h.shape[-1] - 1, 2)[n]],
    "t": lambda n: lambda h: h.transpose(0, -1),
    "roll": lambda n: lambda h: h.roll((1, 1, -1, 2)[n], (None, 0, -1, 0)[n]),
    "rows": lambda n: lambda h: (h[1:], h[:2], h[::2], h[1 : h.shape[0] // 2 + 1])[n],
    "columns": lambda n: lambda h: (h[..., 1:], h[..., :2], h[..., ::2], h[..., : h.shape[-1] // 2])[n],
    "pad": lambda n: lambda h: F.pad(h, ((1, 0), (0, 1), (0, 0, 1, 0), (0, 0, 0, 1))[n]),
    "repeat": lambda n: lambda h: h.repeat_interleave(2, (0, -1, 0, -1)[n]),
    "unfold": lambda n: lambda h: h.unfold((0, -1, 0, -1)[n], 2, 1 + n % 2).flatten(0, -2),
    "flip": lambda n: lambda h: h.flip((0, -1, 0, -1)[n]),
    "twice": lambda n: lambda h: torch.cat([h, -h.roll(1, 0)], (0, -1, 0, -1)[n]),
    "stride": lambda n: lambda h: h.contiguous().as_strided(h.shape[-1:], (h.shape[-1] + n % 2,)),
}  # fmt: skip


def chain(moves: list[tuple[str, int]], rows: int) -> Move:
    """Those of the moves, one after the other, that are possible."""
    h, chosen = torch.zeros(rows, 8), list[Move]()
    for name, n in moves:
        move = MOVES[name](n)
        with contextlib.suppress(RuntimeError, IndexError, ValueError):
            if 1 < move(h).numel() < 400 and move(h).shape[-1] > 1:
                h = move(h)
                chosen.append(move)

    def f(h: Tensor) -> Tensor:
        for move in chosen:
            h = move(h)
        return h if h.dim() > 1 else h[None]

    return f


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(
    moves=st.lists(st.tuples(st.sampled_from(sorted(MOVES)), st.integers(0, 3)), min_size=2, max_size=5),
    rows=st.sampled_from([5, 8, 9, 12]),
    flat=st.booleans(),
)
def test_random_movements(moves: list[tuple[str, int]], rows: int, flat: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(rows, 4)
    plastic, _ = attached(Between(chain(moves, rows), rows, flat), x)
    second = copy.deepcopy(plastic)
    check_shrink(plastic, x, alive=False)
    check_grow(second, x)


# -- the functions behind it


def owners(labels: Any) -> Any:
    return labels * 0


UNITS = torch.arange(1, 4).expand(5, 3)  # five rows of three units


def test_a_slice_of_a_flat_map_takes_whole_rows_or_not() -> None:
    flat = UNITS.flatten()
    assert moved_alike(flat, lambda t: [t[:9]], owners)
    assert moved_alike(flat, lambda t: [t[::3]], owners), "one unit, all of its rows"
    assert not moved_alike(flat, lambda t: [t[::4]], owners)
    assert not moved_alike(flat, lambda t: [t[:7], t[7:]], owners)
    assert moved_alike(flat, lambda t: [t[::4]], lambda labels: labels), "each unit is of a layer of its own"


def test_holes_are_regular_where_all_units_have_them() -> None:
    holes = torch.cat([torch.zeros(1, 3, dtype=torch.long), UNITS])
    assert regular(holes) and aligned(holes, {0}, owners)
    holes[2, 1] = 0
    assert not regular(holes) and not aligned(holes, {0}, owners)
    assert aligned(holes, {0}, lambda labels: labels), "each unit is of a layer of its own"
    assert not regular(UNITS.flatten())


def test_units_in_other_rows_are_not_aligned() -> None:
    shifted = F.pad(UNITS.flatten(), (1, 2)).view(-1, 3).roll(-1, 1)
    assert shifted[0].tolist() == [1, 2, 0] and shifted[-1].tolist() == [0, 0, 3]
    assert not aligned(shifted, {0}, owners)
