"""A `Growth` belongs to one model: the losses and the end of another would silently stop it."""

import copy

import pytest
import torch
from torch import nn

import npn
from npn.errors import ConfigurationError


def attached():
    torch.manual_seed(0)
    return npn.attach(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 4))


def test_another_model_is_refused_and_nothing_changes():
    growth, first, second = npn.Growth(until=1), attached(), attached()
    growth.step(0.7, first)
    before = growth.state_dict()
    with pytest.raises(ConfigurationError, match=r"^this Growth has seen 1 losses of another model.*npn.Growth for"):
        growth.step(0.9, second)
    assert growth.state_dict() == before and second.sizes() == {"0": 3} and growth.done


def test_the_same_model_attached_anew_goes_on():
    growth, plastic = npn.Growth(), attached()
    growth.step(0.7, plastic)
    again = npn.attach(plastic.detach(), torch.zeros(1, 4))
    growth.step(0.6, again)
    assert again.sizes() == {"0": 5}


def test_a_state_goes_on_with_a_model_of_its_own():
    growth, plastic = npn.Growth(), attached()
    growth.step(0.7, plastic)
    growth.load_state_dict(growth.state_dict())
    copied = copy.deepcopy(plastic)
    growth.step(0.6, copied)
    assert copied.sizes() == {"0": 5} and plastic.sizes() == {"0": 4}


@pytest.mark.filterwarnings("ignore:every unit of")
@pytest.mark.parametrize("k", [float("inf"), 7.0])
@pytest.mark.parametrize("removed", [False, True])
def test_the_last_unit_stays_open_beside_new_ones(k, removed):
    plastic, x = attached(), torch.randn(5, 4)
    plastic.k = k
    plastic.close("0", range(3))
    if removed:
        plastic.compact()
    before = plastic.model(x)
    plastic.grow({"0": 2})
    assert torch.equal(plastic.model(x), before) and int(plastic.group("0").gate.mask.sum()) == 3
