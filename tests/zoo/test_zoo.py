"""Every model of the zoo: what can be resized, and that resizing it changes nothing but the size."""

import copy
import functools
from typing import Any

import pytest
import torch

import npn

from .checks import as_double, check_grow, check_shrink, check_training, close_half, warm_up
from .entry import Entry
from .models_attention import ATTENTION
from .models_conv import CONV
from .models_misc import MISC

ZOO = CONV | ATTENTION | MISC


@functools.cache
def attached(name: str) -> tuple[npn.Plasticity, Any]:
    """One model with gates, traced once; tests work on copies."""
    entry = ZOO[name]
    torch.manual_seed(0)
    model, inputs = entry.make(), entry.inputs()
    warm_up(model, inputs)
    return npn.attach(model, inputs), inputs


def frozen_as_said(plastic: npn.Plasticity, entry: Entry) -> dict[str, list[str]]:
    """What is frozen for another reason than the entry says."""
    found: dict[str, list[str]] = {}
    for item in plastic.frozen:
        for tensor, axis in item.slots or ():
            found.setdefault(f"{tensor}[{axis}]", []).append(item.reason)
    wrong = {}
    for name, reason in entry.frozen.items():
        if not any(reason in given for given in found.get(name, [])):
            wrong[name] = found.get(name, ["resizable"])
    return wrong


def test_there_are_enough() -> None:
    assert len(ZOO) >= 25


@pytest.mark.parametrize("name", ZOO)
def test_what_is_resizable(name: str) -> None:
    plastic, _ = attached(name)
    assert {g.name: g.size for g in plastic.groups} == ZOO[name].groups
    assert frozen_as_said(plastic, ZOO[name]) == {}
    for item in plastic.frozen:
        assert item.reason and item.slots


@pytest.mark.parametrize("name", ZOO)
def test_every_dimension_is_accounted_for(name: str) -> None:
    """No axis of a parameter is silently left out: it is in a group, frozen with a reason, of size 1, or a kernel's."""
    plastic, _ = attached(name)
    known = {key for item in plastic.frozen for key in item.slots}
    known |= {slot.key for group in plastic.structure.groups for slot in group.slots}
    for tensor, parameter in plastic.model.named_parameters():
        for axis, size in enumerate(parameter.shape):
            window = parameter.dim() > 2 and axis >= 2
            assert size == 1 or window or (tensor, axis) in known, (tensor, axis)


@pytest.mark.parametrize("name", ZOO)
def test_masked_is_compact_is_exported_and_growth_is_silent(name: str) -> None:
    plastic, inputs = attached(name)
    plastic = copy.deepcopy(plastic)
    check_shrink(plastic, inputs)
    check_grow(plastic, inputs)
    check_shrink(plastic, inputs, alive=False)


@pytest.mark.parametrize("name", ZOO)
def test_cost_is_what_a_run_counts(name: str) -> None:
    """Products of two values, as in attention, included: in full, with half of the units closed, and without them."""
    plastic, inputs = attached(name)
    plastic = copy.deepcopy(plastic)
    assert plastic.full_cost("macs") == npn.count_macs(plastic.model, inputs)
    close_half(plastic)
    masked = float(plastic.expected_cost("macs"))
    plastic.compact()
    compact = float(plastic.expected_cost("macs"))
    assert compact == npn.count_macs(plastic.model, inputs)
    assert masked == compact or any(group.multiple > 1 for group in plastic.groups)  # of an incomplete set all stay


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", ZOO)
def test_training_goes_on_alike(name: str, optimizer: str) -> None:
    plastic, inputs = attached(name)
    plastic = copy.deepcopy(plastic)
    plastic.model.double()
    make = {
        "sgd": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        "adam": functools.partial(torch.optim.Adam, lr=1e-2),
    }[optimizer]
    check_training(plastic, as_double(inputs), make)
