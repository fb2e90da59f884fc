"""New units chosen among candidates by the gradient of their fan-out, less what other units do."""

import copy
import functools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn
from npn import candidates
from npn.errors import ConfigurationError, NonFiniteLossError

pytestmark = pytest.mark.usefixtures("traces_are_shared")


def closure(plastic, x, y):
    return lambda: F.cross_entropy(plastic.model(x), y)


def state(plastic, *optimizers):
    tensors = [t.detach().clone() for t in plastic.model.state_dict().values()]
    tensors += [t.detach().clone() for g in plastic.groups for t in g.gate.tensors]
    for p in [*plastic.weights(), *plastic.logits()]:
        tensors += [] if p.grad is None else [p.grad.clone()]
        for o in optimizers:
            tensors += [v.clone() for v in o.state.get(p, {}).values() if isinstance(v, torch.Tensor)]
    return tensors


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["mlp", "conv", "residual", "recurrent", "depthwise"])
def test_the_function_is_kept_and_so_is_everything_else(tiny, name):
    model, plastic = tiny[name].attach()
    x, y = tiny[name].data()
    adam = torch.optim.Adam(plastic.weights(), lr=0.01)
    plastic.track(adam)
    plastic.backward(closure(plastic, x, y))
    adam.step()
    model.train()
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    old = {g.name: g.size for g in plastic.groups}
    report = plastic.grow({n: 2 for n in old}, init="select", loss=closure(plastic, x, y), grace=7)
    assert {n: b for n, b in report.changes.items() if n in old} == {n: (s, s + 2) for n, s in old.items()}
    assert {n: report.added[n] for n in old} == {n: (s, s + 1) for n, s in old.items()}
    assert report.params[1] == npn.count_params(model) and not report.removed
    for group in plastic.groups:
        assert group.gate.grace.tolist() == [0] * old[group.name] + [7] * 2
        first = group.slots[0]
        rows = model.get_parameter(first.tensor).grad[first.index[: old[group.name]].reshape(-1)]
        assert float(rows.square().sum()) == pytest.approx(float(grads[first.tensor].square().sum()))
    for n, b in model.named_buffers():
        assert torch.equal(b[: len(buffers[n])] if b.dim() else b, buffers[n]), n
    model.eval()
    plain = tiny[name].model()
    new = {g.name: range(old[g.name], g.size) for g in plastic.groups}
    wanted = model(x)
    for group in plastic.groups:
        plastic.close(group, list(new[group.name]))
        group.gate.grace.zero_()
    assert type(plain) is type(model)
    torch.testing.assert_close(model(x), wanted, rtol=1e-6, atol=1e-6)


def test_measured_effects_are_activations_and_gradients_those_of_the_loss():
    """Behind a last linear layer, products of effects are those of activations: checked against the net by hand."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))
    x, y = torch.randn(40, 3), torch.randint(0, 4, (40,))
    plastic = npn.attach(model, x)
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "PASSES", 4000)
        patch.setattr(candidates.math, "ceil", lambda value: 4000)
        patch.setattr(candidates, "greedy", lambda g, e, old, n: seen.update(g=g, e=e, old=old) or list(range(n)))
        plastic.grow({"0": 1}, init="select", loss=closure(plastic, x, y))
    kept = plastic.model[0]
    with torch.no_grad():
        activation = torch.tanh(kept(x))
    slope = (model(x).detach().softmax(1) - F.one_hot(y, 4)) / 40
    torch.testing.assert_close(seen["g"][0], slope.T @ activation[:, 6], rtol=1e-4, atol=1e-7)
    measured = torch.cat([seen["old"], seen["e"][:1]])
    gram = measured @ measured.T / measured.shape[1]
    wanted = activation.T @ activation
    assert float((gram - wanted).abs().max() / wanted.abs().max()) < 0.05


def test_greedy_is_the_best_of_what_is_left_by_least_squares():
    torch.manual_seed(0)
    effects, existing, gradients = torch.randn(12, 30), torch.randn(5, 30), torch.randn(12, 4)
    chosen = candidates.greedy(gradients, effects, existing, 4)
    taken = existing
    for step, best in enumerate(chosen):
        scores = []
        for j in range(12):
            fit = torch.linalg.lstsq(taken.T, effects[j]).solution
            rest = (effects[j] - taken.T @ fit).norm() / effects[j].norm()
            scores.append(float(gradients[j].norm() / effects[j].norm() * rest) if j not in chosen[:step] else -1.0)
        assert best == max(range(12), key=scores.__getitem__)
        taken = torch.cat([taken, effects[best : best + 1]])


def test_copies_of_units_and_dead_ones_come_last():
    effects = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 0], [0, 0.1, 0.1]])
    gradients = torch.tensor([[5.0], [10.0], [0.0], [1e-3]])
    assert candidates.greedy(gradients, effects, torch.tensor([[0.0, 0, 1.0]]), 2) == [0, 3]
    assert set(candidates.greedy(gradients, effects, torch.eye(3), 3)) <= {0, 1, 2, 3}
    assert candidates.greedy(gradients, effects, torch.zeros(2, 3), 1) == [0]


def test_chosen_units_lower_the_loss_more_than_random_ones():
    """One gradient step on the fan-outs alone, at equal norms: what the score promises."""
    gains = {"zero": [], "select": []}

    def loss(plastic, x, y):
        return F.mse_loss(plastic.model(x), y)

    for seed in range(8):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 1))
        x = torch.randn(400, 8)
        y = torch.relu(x[:, :1] - x[:, 1:2]) + torch.relu(x[:, 2:3])
        handle = npn.attach(model, x[:2])
        for init in gains:
            plastic = copy.deepcopy(handle)
            batch = functools.partial(loss, plastic, x, y)
            plastic.grow({"0": 2}, init=init, loss=batch if init == "select" else None)
            batch().backward()
            with torch.no_grad():
                a = torch.relu(plastic.model[0](x))[:, 3:]
                gains[init].append(float((plastic.model[2].weight.grad[0, 3:] / a.norm(dim=0).clamp(min=1e-9)).norm()))
    assert sum(s > z for s, z in zip(gains["select"], gains["zero"], strict=True)) >= 7


def test_units_in_sets_and_frozen_readers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2).requires_grad_(False))
    x, y = torch.randn(9, 3), torch.randint(0, 2, (9,))
    plastic = npn.attach(model, x)
    wanted = model(x).detach()
    with pytest.warns(UserWarning, match="frozen parameters"):
        plastic.grow({"0": 2}, init="select", loss=closure(plastic, x, y))
    torch.testing.assert_close(model(x), wanted, rtol=1e-6, atol=1e-6)
    assert not model[2].weight.requires_grad and model[2].weight.grad is None


def test_columns_with_their_own_gates():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))
    x, y = torch.randn(9, 1, 4, 4), torch.randint(0, 2, (9,))
    plastic = npn.attach(model, x, columns="3")
    plastic.close("3.columns", [0, 5, 6])
    plastic.compact()
    wanted = model(x).detach()
    report = plastic.grow({"0": 2, "3": 1}, init="select", loss=closure(plastic, x, y))
    assert report.changes == {"0": (3, 5), "3": (4, 5), "3.columns": (9, 17)}
    assert report.added["3.columns"] == tuple(range(9, 17))
    torch.testing.assert_close(model(x), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(plastic.export()(x), wanted, rtol=1e-6, atol=1e-6)


def nothing():
    return torch.ones((), requires_grad=True) * 2


FAULTS = {
    "a vector": (lambda m, x: m(x).sum(1), ConfigurationError, r"loss must return a scalar, got shape \(6,\)"),
    "a number": (lambda m, x: 1.0, ConfigurationError, "loss must return a scalar, got float"),
    "infinite": (lambda m, x: m(x).sum() / 0, NonFiniteLossError, "the loss is"),
    "without a gradient": (lambda m, x: m(x).sum().detach(), ConfigurationError, "no gradient|requires_grad|lead"),
    "of no model": (lambda m, x: nothing(), ConfigurationError, "loss must call the model"),
    "an error": (lambda m, x: {}["y"], KeyError, "y"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_loss_that_fails_changes_nothing(tiny, fault):
    loss, error, message = FAULTS[fault]
    model, plastic = tiny["conv"].attach()
    x, y = tiny["conv"].data()
    x, y = torch.cat([x, x[:1]]), torch.cat([y, y[:1]])
    adam = torch.optim.Adam(plastic.weights(), lr=0.01)
    plastic.track(adam)
    plastic.backward(closure(plastic, x, y))
    adam.step()
    before = state(plastic, adam)
    with pytest.raises(error, match=message):
        plastic.grow({"0": 2, "3": 1}, init="select", loss=lambda: loss(model, x))
    assert same(state(plastic, adam), before)
    torch.manual_seed(1)
    random.seed(1)
    plastic.grow({"0": 1}, init="select", loss=closure(plastic, x, y))
    assert plastic.group("0").size == 4


@pytest.mark.parametrize("through", ["grow", "policy"])
def test_a_missing_loss_is_said_at_once(tiny, through):
    _, plastic = tiny["mlp"].attach()
    with pytest.raises(ConfigurationError, match=r'init="select" chooses units by the loss of a batch: give loss='):
        if through == "grow":
            plastic.grow({"0": 1}, init="select")
        else:
            npn.Growth(init="select").step(1.0, plastic)
    assert plastic.group("0").size == 4


def test_a_policy_selects(tiny):
    _, plastic = tiny["mlp"].attach()
    x, y = tiny["mlp"].data()
    growth = npn.Growth(units=2, init="select", grace=3)
    report = growth.step(1.0, plastic, loss=closure(plastic, x, y))
    assert report.changes == {"0": (4, 6), "2": (3, 5)}
    assert plastic.group("0").gate.grace.tolist() == [0] * 4 + [3] * 2


def test_copies_follow(tiny):
    model, plastic = tiny["conv"].attach()
    x, y = tiny["conv"].data()
    average = plastic.follow(torch.optim.swa_utils.AveragedModel(plastic.model)).eval()
    wanted = average(x)
    plastic.grow({"0": 2}, init="select", loss=closure(plastic, x, y))
    torch.testing.assert_close(average(x), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(average.module[0].weight, model[0].weight)
