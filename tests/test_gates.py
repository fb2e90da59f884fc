"""Gates that are set, held, frozen or loaded by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn
from npn.errors import ConfigurationError


def test_a_mask_of_units_is_a_mask(tiny):
    _, plastic = tiny["mlp"].attach()
    gate = plastic.group("0").gate
    plastic.close("0", torch.tensor([False, False, False, True]))
    assert gate.mask.tolist() == [True, True, True, False]
    plastic.close("0", [True, False, False, False])
    assert gate.mask.tolist() == [False, True, True, False]
    plastic.open("0", {0, 3})
    assert gate.mask.all()


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([1.7], "group '0': units must be whole numbers, or a mask with one bool for each of the 4 units, got [1.7]"),
        ([True], "group '0': units must be whole numbers, or a mask with one bool for each of the 4 units, got [True]"),
        ("two", "group '0': units must be a list or tensor of numbers, got 'two'"),
        ([0, 4], "group '0': there are units 0 to 3, got [0, 4]"),
        ([-1], "group '0': there are units 0 to 3, got [-1]"),
    ],
)
def test_what_is_no_list_of_units(tiny, units, message):
    _, plastic = tiny["mlp"].attach()
    with pytest.raises(ConfigurationError) as error:
        plastic.close("0", units)
    assert str(error.value) == message and plastic.group("0").gate.mask.all()


@pytest.mark.parametrize("grace", [-3, 1.5, True])
def test_what_is_no_grace(tiny, grace):
    _, plastic = tiny["mlp"].attach()
    for change in (lambda: plastic.open("0", [1], grace=grace), lambda: plastic.grow({"0": 1}, grace=grace)):
        with pytest.raises(ConfigurationError) as error:
            change()
        assert str(error.value) == f"grace must be a whole number >= 0 of calls of backward, got {grace!r}"
    assert plastic.group("0").size == 4


def test_a_unit_that_is_held_open_is_exported_saved_and_counted(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(6, 3)
    plastic = npn.attach(model, x)
    plastic.k = 7.0
    plastic.open("0", [1], grace=100)
    with torch.no_grad():
        plastic.group("0").gate.logits[1] = -1.0
    assert plastic.sizes() == {"0": 4}
    torch.testing.assert_close(plastic.export()(x), model(x))
    npn.save(tmp_path / "held.npn", plastic)
    fresh = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    torch.testing.assert_close(npn.load(tmp_path / "held.npn", fresh)(x), model(x))


def test_gates_set_by_hand_do_not_go_on_moving(tiny):
    _, plastic = tiny["mlp"].attach()
    plastic.k = 7.0
    gates = torch.optim.Adam(plastic.logits(), lr=0.1)
    plastic.track(gates)
    for _ in range(5):
        for logits in plastic.logits():
            logits.grad = torch.ones_like(logits)  # downhill
        gates.step()
    plastic.open("0", [1])
    before = plastic.group("0").gate.logits.detach().clone()
    for logits in plastic.logits():
        logits.grad = torch.zeros_like(logits)
    gates.step()
    after = plastic.group("0").gate.logits.detach()
    assert after[1] == before[1] and bool((after[[0, 2, 3]] < before[[0, 2, 3]]).all())


def test_a_unit_that_has_reopened_is_no_longer_closed_by_hand(tiny):
    _, plastic = tiny["mlp"].attach()
    plastic.k = 7.0
    plastic.close("0", [1])
    gate = plastic.group("0").gate
    with torch.no_grad():
        gate.logits[1] = 0.5
    assert not plastic.compact()
    with torch.no_grad():
        gate.logits[1] = -1e-3  # pi just under 1/2: closed, and far from gone
    assert not plastic.compact()


def test_frozen_gates_get_no_gradient(tiny):
    model, plastic = tiny["mlp"].attach()
    x, y = tiny["mlp"].data()
    plastic.k = 7.0
    plastic.group("0").gate.logits.requires_grad_(False)
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    assert plastic.group("0").gate.logits.grad is None
    assert plastic.group("2").gate.logits.grad is not None


def test_an_incomplete_state_is_refused(tiny):
    _, plastic = tiny["mlp"].attach()
    state = plastic.state_dict()
    del state["gates"], state["k"]
    with pytest.raises(ConfigurationError) as error:
        plastic.load_state_dict(state)
    assert str(error.value) == (
        "not the state of a Plasticity: it lacks gates, k; give what plastic.state_dict() returned"
    )


def test_a_later_growth_does_not_shorten_a_grace():
    plastic = npn.attach(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4))
    plastic.open("0", range(8), grace=200)
    plastic.grow({"0": 1}, grace=5, init="split")
    assert plastic.group("0").gate.grace.tolist() == [200] * 8 + [5]


def test_no_warning_while_units_are_open_by_another_gate_function(recwarn):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    plastic = npn.attach(model, torch.zeros(1, 4), function="shifted_sigmoid")
    plastic.k, gate = 7.0, plastic.group("0").gate
    with torch.no_grad():
        gate.logits.fill_(-0.1)  # pi = 0.79
    plastic.close("0", [0])
    assert not recwarn.list and int(gate.mask.sum()) == 7
