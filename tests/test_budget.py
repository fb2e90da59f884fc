import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npn import Penalty
from npn.budget import Budget, dual_ascent
from npn.errors import CheckpointError, ConfigurationError

from .priced import FakePlastic, NoReadBack, train

pytestmark = pytest.mark.usefixtures("traces_are_shared")


@pytest.mark.parametrize(
    ("target", "bound"), [(0.5, 50.0), (1.0, 100.0), (1, 1.0), (60, 60.0), (60.5, 60.5), (500, 500.0)]
)
def test_targets_are_fractions_or_costs(target, bound):
    plastic = FakePlastic(sizes=(100,))
    budget = Budget(cost="units", target=target)
    budget.bind(plastic)
    assert budget.bound == bound


@pytest.mark.parametrize(("target", "allows", "hint"), [(0.001, "0.7", "0.0072"), (4, "4", "5")])
def test_unreachable_targets_are_refused_with_figures(target, allows, hint):
    with pytest.raises(ConfigurationError) as error:
        Budget(cost="params", target=target).bind(FakePlastic())
    assert str(error.value) == (
        f"Budget(cost='params', target={target}) allows {allows} params, but with one unit left in every group "
        f"the model still costs 5 of 700; raise the target to {hint} or more, or let more of the model be removed "
        "(plastic.frozen says what is not, and why)"
    )


def test_the_target_of_the_hint_is_reachable():
    Budget(cost="params", target=0.0072).bind(FakePlastic())
    Budget(cost="params", target=5).bind(FakePlastic())


def test_an_unbound_budget_says_so():
    with pytest.raises(ConfigurationError, match=r"give it to npn.attach"):
        Budget().loss(FakePlastic())


@settings(deadline=None)
@given(st.floats(0.0, 100.0), st.floats(1e-3, 1e6), st.floats(1.0, 1e6), st.floats(0.001, 3.0))
def test_dual_ascent_moves_with_the_violation_and_within_its_bounds(multiplier, cost, target, rate):
    m = torch.tensor(multiplier, dtype=torch.float64)
    c = torch.tensor(cost, dtype=torch.float64)
    new = dual_ascent(m, c, target, rate)
    assert 0.0 <= new <= 1e4
    assert new >= m - 1e-12 if cost >= target else new <= m + 1e-12
    assert dual_ascent(m, 2 * c, target, rate) >= new
    assert (new + 1e-4) / (m + 1e-4) <= math.exp(rate) * (1 + 1e-9)
    assert dual_ascent(m, torch.tensor(target, dtype=torch.float64), target, rate).item() == pytest.approx(multiplier)


@pytest.mark.parametrize("benefit", [1e-2, 1.0, 30.0])
@pytest.mark.parametrize("target", [0.1, 0.5])
def test_a_budget_settles_within_five_percent(target, benefit):
    plastic, budget = FakePlastic(), Budget(cost="params", target=target)
    budget.bind(plastic)
    ratios = train(plastic, budget, steps=1500, benefit=benefit)
    assert ratios[0] > 1.5
    assert (ratios[-200:] - 1).abs().max() < 0.05
    assert ratios.min() > 0.8  # no collapse on the way
    kept = torch.cat([group.gate.keep_probability() for group in plastic.groups])
    assert kept.max() > 0.95


def test_a_budget_that_growth_runs_into_settles_too():
    plastic, budget = FakePlastic(probability=0.2), Budget(cost="params", target=0.5)
    budget.bind(plastic)
    ratios = train(plastic, budget, steps=1500, noise=0.0)
    assert ratios[0] < 0.2
    assert (ratios[-200:] - 1).abs().max() < 0.05


def test_a_target_already_met_costs_nothing():
    plastic, budget = FakePlastic(probability=0.3), Budget(cost="params", target=0.9)
    budget.bind(plastic)
    for _ in range(300):
        loss = budget.loss(plastic)
        budget.update(plastic)
    assert budget.multiplier.item() == 0.0
    loss.backward()
    assert loss.item() == 0.0 and not any(logits.grad.any() for logits in plastic.logits())


def test_a_target_out_of_reach_does_not_wind_up_without_bound():
    plastic, budget = FakePlastic(), Budget(cost="params", target=0.1, ceiling=5.0)
    budget.bind(plastic)
    for _ in range(2000):  # the gates do not follow
        loss = budget.loss(plastic)
        budget.update(plastic)
    assert budget.multiplier.item() == 5.0
    assert loss.item() <= 5.0 * 0.95 / 0.1
    for logits in plastic.logits():  # now they are closed, at once
        logits.data.fill_(-1.0)
    ratio = plastic.expected_cost("params").item() / budget.bound
    assert budget.loss(plastic).item() / ratio == pytest.approx(5.0 * math.exp(-3.0), rel=1e-2)


@pytest.mark.parametrize("k", [0.0, math.inf])
def test_the_multiplier_rests_where_no_gate_can_move(k):
    plastic, budget = FakePlastic(), Budget(cost="params", target=0.5)
    budget.bind(plastic)
    plastic.k = k
    budget.update(plastic)
    assert budget.multiplier.item() == 0.0


def test_update_works_without_a_loss_before_it():
    plastic, one, two = FakePlastic(), Budget("params", 0.5), Budget("params", 0.5)
    for budget in (one, two):
        budget.bind(plastic)
    one.loss(plastic)
    one.update(plastic)
    two.update(plastic)
    assert one.multiplier.item() == two.multiplier.item() > 0.0
    assert not two.multiplier.requires_grad


@pytest.mark.parametrize(
    "term",
    [Penalty("params", 1e-3), Penalty("layerwise", {"*": 1e-3}), Budget("params", 0.5), Budget("params", 0.5, 3)],
)
def test_a_step_reads_nothing_back(term):
    plastic = FakePlastic()
    term.bind(plastic)
    with pytest.raises(AssertionError), NoReadBack():
        torch.ones(()).item()  # the detector itself works
    with NoReadBack():
        term.loss(plastic).backward()
        term.update(plastic)


def test_a_resumed_budget_continues_identically(tmp_path):
    plastic, first = FakePlastic(), Budget("params", 0.5)
    first.bind(plastic)
    train(plastic, first, 60)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = Budget("params", 0.5)
    second.bind(FakePlastic(sizes=(10, 10)))  # a compact model: the fraction is still one of the first
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.bound == first.bound
    assert torch.equal(second.multiplier, first.multiplier) and first.multiplier > 0
    assert torch.equal(first.loss(plastic), second.loss(plastic))


def test_a_changed_target_wins_over_the_state():
    first, second = Budget("params", 0.5), Budget("params", 0.25)
    for budget in (first, second):
        budget.bind(FakePlastic())
    first.update(FakePlastic())
    second.load_state_dict(first.state_dict())
    assert second.bound == 175.0 and second.multiplier == first.multiplier


def test_reset_forgets():
    plastic, budget = FakePlastic(), Budget("params", 0.5)
    budget.bind(plastic)
    budget.update(plastic)
    budget.reset()
    assert budget.multiplier.item() == 0.0 and budget.bound == 350.0


def test_foreign_states_are_refused():
    budget = Budget("params", 0.5)
    for state in (Penalty("params").state_dict(), Budget("macs", 0.5).state_dict(), {}):
        with pytest.raises(CheckpointError, match="the state belongs to another penalty"):
            budget.load_state_dict(state)
    with pytest.raises(CheckpointError, match="lacks bound, multiplier, target"):
        budget.load_state_dict({"type": "Budget", "cost": "params"})
    penalty = Penalty("macs", 1e-6)
    penalty.load_state_dict(penalty.state_dict())
