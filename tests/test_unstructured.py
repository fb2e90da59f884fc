"""Gates on single weights: what training, removal, growth and copies do with them."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import npn
from npn.errors import ConfigurationError

from .single_weights import data, mlp, optimizers, set_pi, train
from .stepping import UNBIASED

pytestmark = pytest.mark.usefixtures("traces_are_shared")


@pytest.mark.parametrize("adam", [False, True])
def test_closed_weights_stay_zero_through_momentum_and_decay(adam):
    model = mlp()
    plastic = npn.attach(model, torch.zeros(1, 5), unstructured="*", penalty=npn.Penalty("weights", 0.0))
    both = optimizers(plastic, adam=adam)
    plastic.k = 7.0
    train(plastic, 5, both)
    closed = {}
    for name, gate in plastic.unstructured.items():
        closed[name] = torch.rand(gate.logits.shape, generator=torch.Generator().manual_seed(5)) < 0.4
        closed[name][0] = False
        plastic.close(name, closed[name])
    plastic.k = math.inf
    train(plastic, 3, both)
    for name, parameter in plastic.export().named_parameters():
        if name in closed:
            assert bool((parameter[closed[name]] == 0).all()) and bool((parameter[~closed[name]] != 0).all())
    report = plastic.compact()
    assert report.weights == {name: int(mask.sum()) for name, mask in closed.items()}
    for k in (math.inf, 7.0, 0.0, math.inf):
        plastic.k = k
        train(plastic, 3, both)
        for name, mask in closed.items():
            assert bool((model.get_parameter(name)[mask] == 0).all())
    assert not plastic.compact().weights
    for name, mask in closed.items():
        assert torch.equal(plastic.unstructured[name].mask, ~mask)


@pytest.mark.parametrize("estimator", list(UNBIASED))
def test_removed_weights_draw_no_gate_and_move_no_logit(estimator):
    plastic = npn.attach(mlp(), torch.zeros(1, 5), unstructured="2", estimator=estimator)
    plastic.k = 7.0
    plastic.close("2.weight", [1, 2, 40])
    plastic.compact()
    gate = plastic.unstructured["2.weight"]
    before = gate.logits.detach().clone()
    both = optimizers(plastic)
    train(plastic, 4, both)
    moved = (gate.logits != before).view(-1)
    assert not moved[[1, 2, 40]].any() and moved.sum() == 45
    assert plastic.gates.keep_probability()[14:][[1, 2, 40]].tolist() == [0.0, 0.0, 0.0]
    plastic.open("2.weight", [2], grace=3)
    assert bool(gate.present.view(-1)[2]) and plastic.model[2].weight.view(-1)[2] == 0
    train(plastic, 2, both)
    assert plastic.model[2].weight.view(-1)[2] != 0


def test_at_infinite_k_the_mask_is_that_of_the_signs():
    model = mlp()
    plastic = npn.attach(model, torch.zeros(1, 5), unstructured="*")
    set_pi(plastic)
    plastic.k = math.inf
    x, y = data()
    wanted = {n: p.detach() * (plastic.unstructured[n].logits > 0) if n in plastic.unstructured else p.detach()
              for n, p in model.named_parameters()}  # fmt: skip
    units = plastic.gates.deterministic_mask()
    wanted["2.weight"], wanted["4.weight"] = wanted["2.weight"] * units[:8], wanted["4.weight"] * units[8:14]
    torch.testing.assert_close(model(x), functional_call(mlp(), wanted, x))
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    assert all(p.grad is None for p in plastic.logits())
    assert bool((model[0].weight.grad[~plastic.unstructured["0.weight"].mask] == 0).all())


def test_units_that_no_weight_reads_leave_and_the_function_stays():
    model = mlp()
    plastic = npn.attach(model, torch.zeros(1, 5), unstructured=["2", "4"])
    both = optimizers(plastic)
    train(plastic, 2, both)
    last, middle = torch.zeros(3, 6, dtype=torch.bool), torch.zeros(6, 8, dtype=torch.bool)
    last[:, [1, 4]] = True  # no weight reads units 1 and 4 of the second group,
    middle[:, 3] = True  # none reads unit 3 of the first,
    middle[[0, 2, 3, 5], 6] = True  # and only the two that go read unit 6
    plastic.close("4.weight", last)
    plastic.close("2.weight", middle)
    x, _ = data()
    before = model(x).detach()
    values = model[2].weight.detach().clone(), both[0].state[model[2].weight]["momentum_buffer"].clone()
    report = plastic.compact()
    assert report.removed == {"0": (3, 6), "2": (1, 4)}
    torch.testing.assert_close(model(x), before)
    rows, columns = [0, 2, 3, 5], [0, 1, 2, 4, 5, 7]
    assert plastic.unstructured["2.weight"].logits.shape == (4, 6) == model[2].weight.shape
    assert torch.equal(model[2].weight, values[0][rows][:, columns])
    assert torch.equal(both[0].state[model[2].weight]["momentum_buffer"], values[1][rows][:, columns])
    train(plastic, 2, both)
    torch.testing.assert_close(plastic.export()(x), model(x))


def test_a_layer_keeps_one_weight_and_one_unit():
    plastic = npn.attach(mlp(), torch.zeros(1, 5), unstructured="*")
    with pytest.warns(UserWarning, match=r"every unit of '4\.weight' is closed; unit \d+ stays open"):
        plastic.close("4.weight", torch.ones(3, 6, dtype=torch.bool))
    plastic.compact()
    assert plastic.sizes() == {"0": 8, "2": 1}
    assert int(plastic.unstructured["4.weight"].mask.sum()) == 1
    x, _ = data()
    torch.testing.assert_close(plastic.export()(x), plastic.model(x))


def test_grown_units_bring_open_weights_and_removed_ones_take_theirs_along():
    model = mlp()
    plastic = npn.attach(model, torch.zeros(1, 5), unstructured="*")
    both = optimizers(plastic)
    plastic.k = 7.0
    train(plastic, 3, both)
    gate = plastic.unstructured["2.weight"]
    plastic.close("2.weight", [0])
    plastic.compact()
    logits = gate.logits.detach().clone()
    moments = both[1].state[gate.logits]["exp_avg_sq"].clone()
    x, _ = data()
    before = model(x).detach()
    plastic.grow({"0": 2, "2": 1}, grace=4)
    torch.testing.assert_close(model(x), before)
    assert gate.logits.shape == model[2].weight.shape == (7, 10)
    torch.testing.assert_close(gate.logits[:6, :8], logits)
    torch.testing.assert_close(both[1].state[gate.logits]["exp_avg_sq"][:6, :8], moments)
    torch.testing.assert_close(gate.keep_probability()[6:], torch.full((1, 10), 0.95))
    assert bool((gate.grace[6:] == 4).all()) and bool((gate.grace[:, 8:] == 4).all())
    assert int((gate.grace > 0).sum()) == 70 - 48 and int(gate.removed.sum()) == 1
    train(plastic, 5, both)
    assert int(gate.grace.max()) == 0
    plastic.close("0", [0, 9])
    plastic.close("2", [2])
    left = gate.logits.detach()[[0, 1, 3, 4, 5, 6]][:, 1:9]
    plastic.compact()
    torch.testing.assert_close(gate.logits.detach(), left)
    assert torch.equal(gate.removed, torch.zeros(6, 8, dtype=torch.bool)), "column 0 took the removed weight along"


def test_a_budget_of_weights_is_met():
    model = mlp()
    plastic = npn.attach(
        model, torch.zeros(1, 5), unstructured="*", penalty=npn.Budget("weights", 30, steps=150, rate=0.05)
    )
    both = optimizers(plastic)
    plastic.k = 7.0
    train(plastic, 400, both)
    assert 20 < float(plastic.expected_cost("weights")) < 36
    plastic.compact()
    plastic.k = math.inf
    left = sum(int((p != 0).sum()) for p in plastic.export().parameters() if p.dim() > 1)
    assert 15 < left < 45
    with pytest.raises(ConfigurationError, match="with one unit left in every group the model still costs 3 of 106"):
        npn.attach(mlp(), torch.zeros(1, 5), unstructured="*", penalty=npn.Budget("weights", 2))


def test_copies_and_deep_copies_know_the_masks():
    model = mlp()
    plastic = npn.attach(model, torch.zeros(1, 5), unstructured="*")
    teacher = plastic.follow(copy.deepcopy(model))
    plastic.close("2.weight", [3, 4])
    x, _ = data()
    torch.testing.assert_close(teacher(x), model(x))
    plastic.close("0", [1])
    plastic.compact()
    torch.testing.assert_close(teacher(x), model(x))
    assert bool((plastic.export(teacher)[2].weight.view(-1)[[2, 3]] == 0).all())
    twin = copy.deepcopy(plastic)
    twin.close("4.weight", [0])
    assert int(plastic.unstructured["4.weight"].mask.sum()) == 18
    assert not torch.equal(twin.model(x), model(x))


def test_a_frozen_weight_and_channels_last_are_masked_as_well():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    model = model.to(memory_format=torch.channels_last)
    model[2].weight.requires_grad_(False)
    x = torch.randn(3, 2, 6, 6).to(memory_format=torch.channels_last)
    plastic = npn.attach(model, x, unstructured=["0", "2"])
    both = optimizers(plastic)
    plastic.k = 2.0
    frozen = model[2].weight.detach().clone()
    for _ in range(3):
        plastic.backward(lambda: F.cross_entropy(model(x), torch.tensor([0, 1, 0])))
        for optimizer in both:
            optimizer.step()
    assert bool((plastic.unstructured["2.weight"].logits.grad != 0).any()) and model[2].weight.grad is None
    assert torch.equal(model[2].weight, frozen)
    plastic.close("2.weight", [0, 1, 2])
    plastic.close("0.weight", [0, 9])
    before = model(x).detach()
    plastic.compact()
    torch.testing.assert_close(model(x), before)
    torch.testing.assert_close(plastic.export()(x), before)


def test_importance_is_that_of_units_under_the_masks():
    plastic = npn.attach(mlp(), torch.zeros(1, 5), unstructured="*")
    plastic.close("2.weight", torch.arange(48).view(6, 8) % 8 == 2)
    for criterion in ("taylor", "magnitude", "random"):
        x, y = data()
        scores = npn.importance(plastic, criterion, [(x, y)], lambda m, b: F.cross_entropy(m(b[0]), b[1]), per="params")
        assert {name: len(each) for name, each in scores.items()} == {"0": 8, "2": 6}
        assert criterion != "taylor" or float(scores["0"][2]) == 0.0


def test_the_repr_says_how_many_weights_are_open():
    plastic = npn.attach(mlp(), torch.zeros(1, 5), unstructured="2")
    plastic.close("2.weight", [0])
    assert "unstructured=[WeightGates('2.weight', shape=(6, 8), open=47)]" in repr(plastic)


def test_growth_reopens_the_connections_with_the_largest_gradient_at_zero():
    """RigL's criterion, with the gradient from a functional call on the masked network."""
    model = mlp()
    plastic = npn.attach(model, torch.zeros(1, 5), unstructured="2", estimator="straight_through")
    both = optimizers(plastic)
    train(plastic, 2, both)
    plastic.close("2.weight", list(range(0, 48, 2)))  # every other column: four units go
    plastic.close("2.weight", [1, 11, 21])
    plastic.compact()
    plastic.close("2.weight", [2, 7])  # closed, but with a value
    growth = npn.Growth({"0": 1}, limit=5, connections=3, grace=5)
    x, y = data()
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    gate = plastic.unstructured["2.weight"]
    closed = ~gate.mask.view(-1)
    masked = {name: p.detach().clone() for name, p in model.named_parameters()}
    masked["2.weight"] = (masked["2.weight"] * gate.mask).requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(functional_call(mlp(), masked, x), y), masked["2.weight"])
    score = torch.where(closed, slope.view(-1).abs(), 0.0)
    wanted = set(score.topk(3).indices.tolist())
    before = model(x).detach()
    report = growth.step(1.0, plastic)
    assert report.added == {"0": (4,)} and model[2].weight.shape == (6, 5)
    torch.testing.assert_close(model(x), before)
    closed = F.pad(closed.view(6, 4), (0, 1)).view(-1)  # the new unit's column is open
    wanted = {i // 4 * 5 + i % 4 for i in wanted}
    opened = (closed & gate.mask.view(-1)).nonzero().view(-1).tolist()
    assert set(opened) == wanted and growth.history[-1].connections == {"2.weight": 3}
    assert bool((gate.grace.view(-1)[opened] == 5).all()) and not gate.removed.view(-1)[opened].any()
    assert growth.step(2.0, plastic) is None and len(growth.history) == 1, "no better than at the last growth"
    train(plastic, 1, both)
    assert bool((model[2].weight.view(-1)[opened] != 0).all())
    again = npn.Growth(connections=0.5)
    again.load_state_dict(growth.state_dict())
    assert again.history == growth.history
    with pytest.raises(ConfigurationError, match="connections must be an int >= 0 or a float fraction"):
        npn.Growth(connections=-1)


def test_connections_of_closed_units_stay_closed():
    model = mlp()
    plastic = npn.attach(model, torch.zeros(1, 5), unstructured="2")
    plastic.close("2.weight", torch.ones(6, 8, dtype=torch.bool).index_fill(0, torch.tensor([0]), False))
    plastic.close("0", [3])
    plastic.close("2", [4])
    assert plastic.reconnect(0.5) == {}, "no gradient yet"
    x, y = data()
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    assert plastic.reconnect(48) == {"2.weight": 4 * 7}
    mask = plastic.unstructured["2.weight"].mask
    assert not mask[1:, 3].any() and not mask[4].any() and int(mask.sum()) == 8 + 28


@pytest.mark.filterwarnings("ignore:every unit of")
def test_the_last_weight_stays_open_beside_new_connections():
    model, (x, y) = mlp(), data()
    plastic = npn.attach(model, torch.zeros(1, 5), unstructured="2")
    plastic.close("2.weight", range(48))
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    before = model(x)
    assert plastic.reconnect(3) == {"2.weight": 3}
    assert torch.equal(model(x), before) and int(plastic.unstructured["2.weight"].mask.sum()) == 4


@pytest.mark.filterwarnings("ignore:every unit of")
def test_a_resize_opens_no_closed_weight_in_place_of_the_last():
    model, (x, _) = mlp(), data()
    plastic = npn.attach(model, torch.zeros(1, 5), unstructured="2")
    plastic.close("2.weight", range(48))
    row, column = plastic.unstructured["2.weight"].mask.nonzero()[0].tolist()
    before = model(x)
    plastic.grow({"0": 2, "2": 1})
    assert torch.equal(model(x), before) and plastic.unstructured["2.weight"].open_by_rule[row, column]
    weights = plastic.unstructured["2.weight"].logits
    for opened in ((), torch.arange(weights.numel()).view_as(weights)[:, column]):
        twin = copy.deepcopy(plastic)
        twin.close("2.weight", range(weights.numel()))
        twin.open("2.weight", opened)
        twin.close("0", [column])
        before = twin.model(x)
        twin.compact()
        assert torch.allclose(twin.model(x), before, atol=1e-6)


@pytest.mark.parametrize(
    ("share", "grace", "message"),
    [
        (-1, 0, r"^share must be an int >= 0 or a float fraction of the open weights, got -1$"),
        ("x", 0, r"^share must be an int >= 0 or a float fraction of the open weights, got 'x'$"),
        (1, -3, r"^grace must be a whole number >= 0 of calls of backward, got -3$"),
    ],
)
def test_wrong_numbers_of_connections_are_refused(share, grace, message):
    plastic = npn.attach(mlp(), torch.zeros(1, 5), unstructured="2")
    with pytest.raises(ConfigurationError, match=message):
        plastic.reconnect(share, grace=grace)


class Bare(nn.Module):
    """Products with parameters of the model itself."""

    def __init__(self):
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.randn(8, 2))

    def forward(self, x):
        return torch.relu(x @ self.w1) @ self.w2


def test_one_name_does_not_stand_for_units_and_single_weights():
    model, x = Bare(), torch.randn(2, 4)
    with pytest.raises(ConfigurationError, match=r"^unstructured: 'w1' names single weights and the group of units"):
        npn.attach(model, x, unstructured="*")
    assert list(npn.attach(model, x, skip="w1", unstructured="*").unstructured) == ["w1", "w2"]
    plastic = npn.attach(Bare(), x, unstructured="w2")
    with pytest.raises(ConfigurationError, match=r"^no group 'w3'; the model has: w1; single weights of: w2$"):
        plastic.close("w3", [0])


def test_units_in_grace_stay_without_readers():
    plastic = npn.attach(mlp(), torch.zeros(1, 5), unstructured="2")
    plastic.k = 7.0
    plastic.open("0", [3], grace=100)
    plastic.close("2.weight", torch.zeros(6, 8, dtype=torch.bool).index_fill(1, torch.tensor([3, 4]), True))
    assert plastic.compact(below=0.5).removed["0"] == (4,)


def test_the_page_on_single_weights_runs():
    page = Path(__file__).parents[1] / "docs" / "weights.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    scope = {}
    exec(code, scope)
    small, x, y = scope["small"], scope["x"], scope["y"]
    assert sum(int((p != 0).sum()) for p in small.parameters() if p.dim() > 1) < 300
    assert small[0].out_features < 64 and (small(x).argmax(1) == y).float().mean() > 0.9
