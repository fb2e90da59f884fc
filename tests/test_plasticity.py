"""The handle: k and its transitions, opening and closing, its state."""

import math

import pytest
import torch
import torch.nn.functional as F

import npn
from npn.errors import ConfigurationError

FUNCTIONS = ("sigmoid", "hard_sigmoid", "shifted_sigmoid")


def pi_of(plastic):
    return torch.cat([g.gate.keep_probability() for g in plastic.groups]).detach()


@pytest.mark.parametrize("k", [1e-3, 0.5, 1.0, 7.0, 5000.0])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_open_units_start_at_095_and_closed_at_005(tiny, function, k):
    _, plastic = tiny["mlp"].attach(function=function)
    plastic.close("0", [1])
    plastic.k = k
    plastic.close("2", [0])
    wanted = torch.tensor([0.95, 0.05, 0.95, 0.95, 0.05, 0.95, 0.95])
    torch.testing.assert_close(pi_of(plastic), wanted, rtol=1e-4, atol=1e-5)
    plastic.open("0", [1])
    plastic.grow({"0": 2})
    assert torch.allclose(pi_of(plastic)[[1, 4, 5]], torch.tensor(0.95), atol=1e-4)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_stages_keep_probabilities(tiny, function):
    """inf, k, inf, another k; and 0 in between: pi is what it was, and so is the mask."""
    _, plastic = tiny["mlp"].attach(function=function)
    plastic.k = 3.0
    with torch.no_grad():
        for g in plastic.groups:
            g.gate.logits.add_(torch.linspace(-1.2, 0.1, g.size))
    before, sizes = pi_of(plastic), plastic.sizes()
    assert 0.05 < before.min() < 0.5 < before.max() < 1.0
    for rest in (math.inf, 0.0):
        for k in (0.2, 20.0, 3.0):
            plastic.k = rest
            assert rest == 0.0 or set(pi_of(plastic).tolist()) <= {0.0, 1.0}
            plastic.k = k
            torch.testing.assert_close(pi_of(plastic), before, rtol=1e-3, atol=1e-5)
            assert plastic.sizes() == sizes


def test_annealing_sharpens_the_same_logits(tiny):
    _, plastic = tiny["mlp"].attach()
    plastic.k = 1.0
    phi = plastic.gates.logits().detach().clone()
    plastic.k = 2.0
    assert torch.equal(phi, plastic.gates.logits())
    torch.testing.assert_close(pi_of(plastic), torch.sigmoid(2 * phi))


def test_k_is_checked(tiny):
    _, plastic = tiny["mlp"].attach()
    for wrong in (-1.0, math.nan, -math.inf):
        with pytest.raises(ConfigurationError, match=r"must be a number >= 0"):
            plastic.k = wrong
    assert plastic.k == math.inf


def test_phi_rests_at_inf_and_zero(tiny):
    for k in (math.inf, 0.0):
        model, plastic = tiny["mlp"].attach(penalty=npn.Penalty(weight=1.0))
        x, y = tiny["mlp"].data()
        plastic.k = k
        plastic.backward(lambda m=model, x=x, y=y: F.cross_entropy(m(x), y))
        assert all(p.grad is None for p in plastic.logits())


def test_closing_ends_a_grace_period(tiny):
    model, plastic = tiny["mlp"].attach()
    x, _ = tiny["mlp"].data()
    plastic.open("0", [0], grace=100)
    plastic.close("0", [0])
    masks = {"0": torch.tensor([0.0, 1, 1, 1]), "2": torch.ones(3)}
    torch.testing.assert_close(model(x), tiny["mlp"].masked_copy(model, masks)(x))
    assert plastic.compact().removed == {"0": (0,)}


def test_grown_units_survive_their_grace(tiny):
    model, plastic = tiny["mlp"].attach(penalty=npn.Penalty(weight=10.0))
    x, y = tiny["mlp"].data()
    gates = torch.optim.SGD(plastic.logits(), lr=0.5)
    plastic.track(gates)
    plastic.k = 2.0
    plastic.grow({"0": 2}, grace=4)
    for step in range(6):
        gates.zero_grad()
        plastic.backward(lambda: F.cross_entropy(model(x), y))
        gates.step()
        held = plastic.group("0").gate.grace[4:].tolist()
        assert held == [max(3 - step, 0)] * 2
        report = plastic.compact(below=0.9)
        if step < 3:
            assert {4, 5} & set(report.removed.get("0", ())) == set()
            plastic.open("0", range(plastic.group("0").size - 2))
            if plastic.group("0").size < 6:
                break  # the old units went, numbers moved
    else:
        pytest.fail("nothing was ever removed: the test shows nothing")
    assert held[0] > 0


def test_state_dict_round_trip(tiny):
    model, plastic = tiny["mlp"].attach(penalty=npn.Budget("params", 0.7))
    x, y = tiny["mlp"].data()
    plastic.k = 2.0
    plastic.open("0", [1], grace=3)
    plastic.close("2", [0])
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    state = plastic.state_dict()
    twin_model, twin = tiny["mlp"].attach(penalty=npn.Budget("params", 0.7))
    twin.load_state_dict(state)
    assert twin.k == 2.0 and torch.equal(twin.gates.logits(), plastic.gates.logits())
    assert torch.equal(twin.gates.held(), plastic.gates.held()) and torch.equal(twin.gates.draw(), plastic.gates.draw())
    torch.testing.assert_close(twin_model(x), model(x))
    twin.k = 5.0
    plastic.k = 5.0
    assert torch.equal(pi_of(twin), pi_of(plastic))
    other = tiny["conv"].attach(penalty=npn.Budget("params", 0.7))[1]
    with pytest.raises(ConfigurationError, match=r"expected gates of .*'0': 3.*, got .*'0': 4.*use npn.load"):
        other.load_state_dict(state)
    plastic.gates.logits()[0].item()
    state["gates"]["0"]["logits"].fill_(-1)
    assert bool((plastic.group("0").gate.logits > 0).all()), "a state is a copy"


def test_groups_by_name(tiny):
    _, plastic = tiny["mlp"].attach()
    assert plastic.group("2") is plastic.groups[1] and plastic.group(plastic.groups[1]) is plastic.groups[1]
    with pytest.raises(ConfigurationError, match=r"no group '9'; the model has: 0, 2"):
        plastic.group("9")
    assert "size=4, open=4" in repr(plastic.groups[0])
