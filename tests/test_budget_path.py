"""`Budget(steps=...)`: the bound on its way from the present cost to the target."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import npn
from npn.budget import Budget, bound_along, dual_ascent
from npn.errors import CheckpointError

from .priced import FakePlastic, NoReadBack, train

pytestmark = pytest.mark.usefixtures("traces_are_shared")


class Units:
    """A model of so many units, of which a number that the test sets are open."""

    def __init__(self, full, now):
        self.k, self.full, self.now = 7.0, full, now

    def expected_cost(self, kind):
        return torch.tensor(float(self.now), requires_grad=True)

    def full_cost(self, kind):
        return float(self.full)

    def minimum_cost(self, kind):
        return 1.0


def bound_to(plastic, *args, **more):
    budget = Budget(*args, **more)
    budget.bind(plastic)
    return budget


def step(budget, plastic):
    loss = budget.loss(plastic)
    budget.update(plastic)
    return loss


def geometric(start, target, t):
    return start ** (1 - t) * target**t


def cubic(start, target, t):
    return target + (start - target) * (1 - t) ** 3


@pytest.mark.parametrize("formula", [geometric, cubic])
@pytest.mark.parametrize(("start", "target"), [(1000, 10), (900, 0.25), (7, 500)])
def test_the_bound_follows_the_formula_to_the_target_and_stays_there(formula, start, target):
    plastic = Units(1000, start)
    budget = bound_to(plastic, "units", target, 8, formula.__name__)
    assert budget.bound_now is None  # where the path begins is not known yet
    goal = target if target > 1 else target * 1000
    for done in range(1, 8):
        step(budget, plastic)
        assert budget.bound_now.item() == pytest.approx(formula(start, goal, done / 8), rel=1e-6)
        plastic.now = 3  # the path is that of the first step's cost
    for _ in range(3):
        step(budget, plastic)
        assert budget.bound_now == goal == budget.bound


@pytest.mark.parametrize("path", ["geometric", "cubic"])
def test_a_path_begins_exactly_at_the_present_cost(path):
    start = torch.tensor(1234.567)
    assert bound_along(path, start, 3.21, 0.0) == start
    assert bound_along(path, start, 3.21, 1.0).item() == pytest.approx(3.21, rel=1e-4)
    plastic = FakePlastic()
    budget = bound_to(plastic, "params", 0.1, 50, path)
    assert step(budget, plastic).item() == 0.0 and budget.multiplier.item() == 0.0
    for _ in range(10):
        loss = step(budget, plastic)
    assert budget.multiplier > 0 and loss > 0


def test_the_price_is_that_of_the_present_bound():
    plastic = Units(1000, 800)
    budget = bound_to(plastic, "units", 0.1, 10)
    for done in range(10):
        m, b = budget.multiplier.clone(), geometric(800, 100, done / 10)
        rate, scale = budget.rate, budget.scale
        price = dual_ascent(m, torch.tensor(800.0), b, budget.gain, scale=scale)
        assert step(budget, plastic).item() == pytest.approx(price.item() * 800 / b, rel=1e-4, abs=1e-9)
        assert budget.multiplier.item() == pytest.approx(
            dual_ascent(m, torch.tensor(800.0), b, rate, scale=scale).item(), rel=1e-4, abs=1e-9
        )


@pytest.mark.parametrize("k", [0.0, math.inf])
def test_only_steps_at_a_finite_k_count(k):
    plastic = Units(1000, 800)
    budget = bound_to(plastic, "units", 0.1, 10)
    plastic.k = k
    for _ in range(3):
        budget.update(plastic)
    assert budget.bound_now is None and budget.state_dict()["done"] == 0
    plastic.k, plastic.now = 7.0, 600
    step(budget, plastic)
    half = budget.bound_now.clone()
    plastic.k = k
    for _ in range(3):
        budget.update(plastic)
    assert torch.equal(budget.bound_now, half) and half.item() == pytest.approx(geometric(600, 100, 0.1))


def test_a_path_reads_nothing_back_before_during_and_after():
    plastic = FakePlastic()
    budget = bound_to(plastic, "params", 0.5, 3)
    with NoReadBack():
        for _ in range(6):
            budget.loss(plastic).backward()
            budget.update(plastic)
            _ = budget.bound_now


@pytest.mark.parametrize("path", ["geometric", "cubic"])
@pytest.mark.parametrize("killed_after", [0, 1, 20, 60])
def test_a_killed_path_goes_on_to_the_same_bits(tmp_path, path, killed_after):
    """Gates, optimizer and budget of a run of 80 steps, with and without an interruption."""

    def fresh():
        plastic = FakePlastic()
        return plastic, bound_to(plastic, "params", 0.3, 50, path), torch.optim.Adam(plastic.logits(), lr=1e-2)

    def go_on(plastic, budget, optimizer, steps):
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = budget.loss(plastic) - sum(gate.sum() for gate in plastic.logits()) / 100
            loss.backward()
            optimizer.step()
            budget.update(plastic)
            losses.append(loss.detach())
        return losses

    whole = fresh()
    losses = go_on(*whole, 80)
    first = fresh()
    before = go_on(*first, killed_after)
    saved = {"gates": first[0].logits(), "budget": first[1].state_dict(), "adam": first[2].state_dict()}
    torch.save(saved, tmp_path / "state.pt")
    second, state = fresh(), torch.load(tmp_path / "state.pt", weights_only=True)
    with torch.no_grad():
        for mine, theirs in zip(second[0].logits(), state["gates"], strict=True):
            mine.copy_(theirs)
    second[2].load_state_dict(state["adam"])
    second[1].load_state_dict(state["budget"])
    after = go_on(*second, 80 - killed_after)
    assert torch.equal(torch.stack(before + after), torch.stack(losses))
    assert second[1].state_dict() == whole[1].state_dict()
    assert whole[1].multiplier > 0


def test_states_from_before_there_were_paths_load_and_begin_at_the_present_cost():
    plastic = Units(1000, 800)
    old = {"type": "Budget", "cost": "units", "target": 0.1, "bound": 100.0, "multiplier": 0.25}
    fixed, falling = bound_to(plastic, "units", 0.1), bound_to(plastic, "units", 0.1, 10)
    for budget in (fixed, falling):
        step(budget, plastic)
        budget.load_state_dict(old)
        assert budget.multiplier == 0.25
    assert fixed.bound_now == 100.0 and falling.bound_now is None
    plastic.now = 400
    step(falling, plastic)
    assert falling.bound_now.item() == pytest.approx(geometric(400, 100, 0.1))
    assert falling.multiplier.item() == pytest.approx(0.25)


def test_a_foreign_state_leaves_the_path_as_it_was():
    plastic = Units(1000, 800)
    budget = bound_to(plastic, "units", 0.1, 10)
    step(budget, plastic)
    before = budget.state_dict()
    with pytest.raises(CheckpointError):
        budget.load_state_dict({"type": "Budget", "cost": "macs", "done": 5, "start": 3.0})
    assert budget.state_dict() == before and before["done"] == 1 and before["start"] == 800.0


def test_steps_can_be_set_when_the_length_of_an_epoch_is_known():
    plastic = Units(1000, 800)
    budget = bound_to(plastic, "units", 0.1)
    schedule = npn.Schedule(npn.Stage("pretrain", 1), npn.Stage("plastic", 5, k=7.0))
    budget.steps = round(0.8 * schedule.stages[1].epochs * 5)
    for _ in range(10):
        step(budget, plastic)
    assert budget.bound_now.item() == pytest.approx(geometric(800, 100, 0.5))
    with pytest.raises(npn.PlasticityError, match="steps must be a whole number >= 1"):
        budget.steps = 0
    assert budget.steps == 20


def test_reset_begins_the_path_anew():
    plastic = Units(1000, 800)
    budget = bound_to(plastic, "units", 0.1, 10)
    for _ in range(5):
        step(budget, plastic)
    budget.reset()
    assert budget.bound_now is None and budget.multiplier == 0
    plastic.now = 500
    step(budget, plastic)
    assert budget.bound_now.item() == pytest.approx(geometric(500, 100, 0.1))


def test_repr_tells_the_bound_and_the_way():
    plastic = Units(1000, 800)
    budget = Budget("units", 0.1, 10)
    assert repr(budget) == "Budget(cost='units', target=0.1; no model yet)"
    budget.bind(plastic)
    end = ", price=0)"
    assert repr(budget) == (
        "Budget(cost='units', target=0.1; bound=the present cost on the way to 100 (0 of 10 steps)" + end
    )
    step(budget, plastic)
    assert repr(budget) == "Budget(cost='units', target=0.1; bound=650 on the way to 100 (1 of 10 steps)" + end
    for _ in range(9):
        step(budget, plastic)
    assert repr(budget).startswith("Budget(cost='units', target=0.1; bound=100, price=")


def test_processes_agree_on_where_a_path_begins():
    """The start is averaged over the processes in the step that sets it, and no more: each average rounds."""
    here, there = Units(1000, 800), Units(1000, 802)
    mine, other = bound_to(here, "units", 0.1, 10), bound_to(there, "units", 0.1, 10)
    assert len(mine.shared_tensors()) == 1
    step(mine, here), step(other, there)
    for a, b in zip(mine.shared_tensors(), other.shared_tensors(), strict=True):
        a.copy_((a + b) / 2), b.copy_(a)
    assert mine.state_dict() == other.state_dict() and mine.state_dict()["start"] == 801.0
    assert torch.equal(mine.bound_now, other.bound_now)
    step(mine, here)
    assert len(mine.shared_tensors()) == 1


def test_a_copy_goes_its_own_way():
    plastic = Units(1000, 800)
    budget = bound_to(plastic, "units", 0.1, 10)
    step(budget, plastic)
    other = copy.deepcopy(budget)
    step(other, plastic)
    assert (budget.state_dict()["done"], other.state_dict()["done"]) == (1, 2)


# -- gates that follow


def follow(plastic, budget, steps, **more):
    """E[cost] / bound of every step; see `priced.train`."""
    return train(plastic, budget, steps, bound=lambda: budget.bound_now, **more)


@pytest.mark.parametrize("path", ["geometric", "cubic"])
@pytest.mark.parametrize("benefit", [1e-2, 1.0, 30.0])
def test_gates_follow_the_path_within_five_percent(path, benefit):
    plastic = FakePlastic()
    budget = bound_to(plastic, "params", 0.2, 1200, path, rate=0.02, scale=1e-2)
    ratios = follow(plastic, budget, 1500, benefit=benefit)
    assert ratios[0] == 1.0
    assert (ratios[300:] - 1).abs().max() < 0.05
    assert ratios[1200:].mean().item() == pytest.approx(1.0, abs=0.02)
    kept = torch.cat([group.gate.keep_probability() for group in plastic.groups])
    assert kept.max() > 0.95


def test_a_rising_path_bounds_what_grows():
    """Gates that all want to open: the cost stays under the path, within 10%, while it grows fourfold."""
    plastic = FakePlastic(probability=0.2)
    start = plastic.expected_cost("params").item()
    budget = bound_to(plastic, "params", 0.3, 1200, rate=0.02, scale=1e-2)
    ratios = follow(plastic, budget, 1500, noise=0.0, benefit=1e-2)
    assert ratios.max() < 1.1 and ratios.min() > 0.75
    assert ratios[-1] > 0.85 and plastic.expected_cost("params").item() > 4 * start
    assert (ratios[100:600] - 1).abs().max() < 0.05


def test_a_rising_path_removes_nothing_below_it():
    plastic = FakePlastic(probability=0.2)
    budget = bound_to(plastic, "params", 0.6, 50)
    for _ in range(80):  # the gates stay where they are
        loss = step(budget, plastic)
    loss.backward()
    assert budget.multiplier.item() == 0.0 == loss.item()
    assert not any(logits.grad.any() for logits in plastic.logits())


def test_a_network_in_training_shrinks_along_the_path():
    """52,650 parameters to a tenth: the expected cost stays within 5% of the bound from an eighth of the path on."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 784, generator=generator)
    labels = torch.randint(10, (2048,), generator=generator)
    images = centres[labels] + 2.0 * torch.randn(2048, 784, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    budget = Budget("params", 0.1, 800, rate=0.05, scale=1e-2)
    plastic = npn.attach(model, images[:2], penalty=budget)
    weights = torch.optim.Adam(plastic.weights(), lr=1e-3)
    gates = torch.optim.Adam(plastic.logits(), lr=5e-3)
    plastic.track(weights, gates)
    plastic.gates.generator.manual_seed(0)
    ratios, accuracies = [], []
    for number in range(1000):
        plastic.k = math.inf if number < 50 else 7.0
        chosen = torch.randint(2048, (64,), generator=generator)
        weights.zero_grad()
        gates.zero_grad()
        plastic.backward(lambda chosen=chosen: F.cross_entropy(model(images[chosen]), labels[chosen]))
        weights.step()
        gates.step()
        if budget.bound_now is not None:
            ratios.append(float(plastic.expected_cost("params").detach() / budget.bound_now))
        if number % 50 == 49:
            plastic.compact()
            with torch.no_grad():
                accuracies.append(float((model(images).argmax(1) == labels).float().mean()))
    assert len(ratios) == 950
    assert max(abs(ratio - 1) for ratio in ratios[100:]) < 0.05
    assert min(accuracies) > 0.9
    assert npn.count_params(plastic.export()) < 0.12 * 52650


@pytest.mark.parametrize("benefit", [1e-2, 1.0, 30.0])
@pytest.mark.parametrize("target", [0.1, 0.5])
def test_the_cost_stays_near_the_path_with_the_defaults(target, benefit):
    """Whatever units are worth, none of them goes in a mass extinction, and the path's end is met in time."""
    plastic = FakePlastic()
    budget = bound_to(plastic, "params", target, 1000)
    ratios = train(plastic, budget, 1500, benefit=benefit, bound=lambda: budget.bound_now)
    assert ratios.min() > 0.9 and ratios.max() < 1.5
    assert (ratios[-200:] - 1).abs().max() < 0.05


def test_a_budget_whose_path_is_set_later_follows_it_as_fast():
    budget = Budget("params", 0.5)
    assert (budget.rate, budget.scale) == (0.01, 1e-4)
    budget.bind(Units(1000, 800))
    budget.steps = 2
    for _ in range(2):
        assert (budget.rate, budget.scale) == (0.03, 1e-2)
        budget.update(Units(1000, 800))
    assert (budget.rate, budget.scale) == (0.01, 1e-4), "there"
    assert (Budget(rate=0.2, steps=3).rate, Budget(scale=0.5, steps=3).scale) == (0.2, 0.5)
