"""Ops of graph nets, operators on Fourier modes, recurrent layers and more: resized exactly, or frozen and why."""

import copy
import functools
from typing import Any

import pytest
import torch

import npn

from ..zoo.checks import as_double, check_grow, check_shrink, check_training, warm_up
from .op_models import PLACES, ROWS, Case
from .op_models_modules import MODULES, PRODUCTS

CASES: dict[str, Case] = ROWS | PLACES | PRODUCTS | MODULES


@functools.cache
def attached(name: str) -> tuple[npn.Plasticity, Any]:
    torch.manual_seed(0)
    model, inputs = CASES[name].make(), CASES[name].inputs()
    warm_up(model, inputs)
    return npn.attach(model, inputs), inputs


@pytest.mark.parametrize("name", CASES)
def test_what_is_resizable_and_why_the_rest_is_not(name: str) -> None:
    plastic, _ = attached(name)
    case = CASES[name]
    assert {g.name: g.size for g in plastic.groups} == case.groups
    found = {f"{tensor}[{axis}]": item.reason for item in plastic.frozen for tensor, axis in item.slots}
    for where, reason in case.frozen.items():
        assert reason in found.get(where, "resizable"), where


@pytest.mark.parametrize("name", CASES)
def test_masked_is_compact_is_exported_and_growth_is_silent(name: str) -> None:
    plastic, inputs = attached(name)
    plastic = copy.deepcopy(plastic)
    check_shrink(plastic, inputs)
    check_grow(plastic, inputs, init="split")
    check_shrink(plastic, inputs, alive=False)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.double])
def test_training_goes_on_alike(name: str) -> None:
    plastic, inputs = attached(name)
    plastic = copy.deepcopy(plastic)
    plastic.model.double()
    check_training(plastic, as_double(inputs), functools.partial(torch.optim.Adam, lr=1e-2))


def test_bilinear_layers_are_counted() -> None:
    model, inputs = CASES["bilinear"].make(), CASES["bilinear"].inputs()
    plastic = npn.attach(model, inputs)
    assert npn.count_macs(model, inputs) == 6 * (4 * 8 + 4 * 5 + 8 * 5 * 6 + 6 * 2)
    assert plastic.structure.positions == {"a.weight": 6, "d.weight": 6, "b.weight": 6, "c.weight": 6}
