"""The traps: never a wrong answer, and no more frozen than must be."""

import copy
import functools

import pytest
import torch

import npn

from ..zoo.checks import as_double, check_grow, check_shrink, check_training
from .adversaries import TRAPS, Trap


@functools.cache
def attached(name: str) -> tuple[npn.Plasticity, torch.Tensor]:
    torch.manual_seed(0)
    trap = TRAPS[name]
    model, x = trap.make().eval(), torch.randn(trap.x)
    return npn.attach(model, x), x


def stem_size(plastic: npn.Plasticity) -> int:
    """Units in the group that the stem's rows belong to."""
    sizes = [g.size for g in plastic.structure.groups if any(s.key == ("stem.weight", 0) for s in g.slots)]
    return sum(sizes)


def why(plastic: npn.Plasticity, key: tuple[str, int]) -> str:
    return "; ".join(f.reason for f in plastic.frozen if key in f.slots)


@pytest.mark.parametrize("name", TRAPS)
def test_answer(name: str) -> None:
    trap: Trap = TRAPS[name]
    plastic, _ = attached(name)
    reason = why(plastic, ("stem.weight", 0))
    assert stem_size(plastic) == trap.stem, reason
    assert trap.stem == 8 or trap.reason in reason
    if trap.stem == 0:
        assert "adversaries.py:" in reason or "unit" in reason, f"not a reason to act on: {reason}"
    sizes = {g.name: g.size for g in plastic.groups}
    assert trap.groups.items() <= sizes.items()
    assert sizes["other.0"] == 4


@pytest.mark.parametrize("name", TRAPS)
def test_no_silently_wrong_answer(name: str) -> None:
    plastic, x = attached(name)
    first = copy.deepcopy(plastic)
    check_shrink(first, x)
    check_grow(first, x, init="split")
    second = copy.deepcopy(plastic)
    second.model.double()
    check_training(second, as_double(x), functools.partial(torch.optim.Adam, lr=1e-2))
