"""Gates on single weights against masked functional calls, enumeration and plain optimizers."""

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
from npn.errors import CheckpointError, ConfigurationError
from npn.functional import exact_expectation, exact_gradient

from .stepping import UNBIASED, every_draw

K = 1.5


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1))


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


class Net(nn.Module):
    """Units on both axes of a weight, a convolution, flattened channels with gated columns, and a branch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, (1, 2))
        self.mix, self.head = nn.Linear(2, 2, bias=False), nn.Linear(4, 1)

    def forward(self, x):
        h = self.conv(x)[:, :, 0].transpose(1, 2)
        return self.head((h + self.mix(h)).transpose(1, 2).flatten(1))


def data(features=5, classes=3, n=16):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, features, generator=generator), torch.randint(classes, (n,), generator=generator)


def set_pi(plastic, seed=0):
    """Different keep probabilities for all gates; returns them."""
    plastic.k = K
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for logits in plastic.logits():
            logits.copy_(torch.logit(0.2 + 0.7 * torch.rand(logits.shape, generator=generator)) / K)
    return plastic.gates.keep_probability().detach().double()


def optimizers(plastic, momentum=0.9, decay=1e-2, adam=False):
    kind = torch.optim.Adam if adam else torch.optim.SGD
    options = {"weight_decay": decay} if adam else {"weight_decay": decay, "momentum": momentum}
    weights = kind(plastic.weights(), lr=0.05, **options)
    gates = torch.optim.Adam(plastic.logits(), lr=0.05)
    plastic.track(weights, gates)
    return weights, gates


def train(plastic, steps, both, seed=None):
    x, y = data()
    for _ in range(steps):
        for optimizer in both:
            optimizer.zero_grad()
        plastic.backward(lambda: F.cross_entropy(plastic.model(x), y))
        for optimizer in both:
            optimizer.step()


def masked_loss(plastic, name, x, y):
    """Loss at a mask over all gates of `small`, by a functional call: units on columns of 2.weight, then weights."""
    model = plastic.model
    own = {n: p.detach().double() for n, p in model.named_parameters()}

    def loss(z):
        z = z.double()
        masked = dict(own)
        masked["2.weight"] = masked["2.weight"] * z[:2]
        masked[name] = masked[name] * z[2:].view(own[name].shape)
        return F.mse_loss(functional_call(plain, masked, x.double()), y.double())

    plain = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    return loss


@pytest.mark.parametrize("name", ["0.weight", "2.weight"])
@pytest.mark.parametrize("estimator", UNBIASED)
def test_mean_over_all_draws_is_the_exact_gradient(estimator, name):
    model = small()
    x, y = torch.randn(7, 1), torch.randn(7, 1)
    plastic = npn.attach(model, x, unstructured=name, estimator=estimator, penalty=npn.Penalty(weight=0.0))
    pi = set_pi(plastic)
    found, wanted_weights = 0.0, 0.0
    for draws, probability in every_draw(estimator, pi):
        left = iter(draws)
        plastic.gates.draw = lambda *batch, left=left: next(left)
        for p in [*plastic.weights(), *plastic.logits()]:
            p.grad = None
        plastic.backward(lambda: F.mse_loss(model(x), y))
        found = found + probability * torch.cat([p.grad.reshape(-1) for p in plastic.logits()]).double()
        wanted_weights = wanted_weights + probability * model.get_parameter(name).grad
    loss = masked_loss(plastic, name, x, y)
    phi = plastic.gates.logits().detach().double()
    true = exact_gradient(loss, phi, K)
    torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-6)
    assert true[2:].abs().max() > 1e-3
    assert wanted_weights.abs().max() > 0


@pytest.mark.parametrize("estimator", ["straight_through", "reinmax"])
def test_one_pass_estimators_see_the_slope_of_each_weight(estimator):
    """One draw: pi (1 - pi) w G for the weights, with G from a functional call under the same mask."""
    model = small()
    x, y = torch.randn(7, 1), torch.randn(7, 1)
    plastic = npn.attach(model, x, unstructured="2", estimator=estimator, penalty=npn.Penalty(weight=0.0))
    pi = set_pi(plastic)
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0])
    plastic.gates.draw = lambda *batch: torch.where(mask > 0, 0.0, 1.0)
    plastic.backward(lambda: F.mse_loss(model(x), y))
    z = mask.double().requires_grad_()
    (slope,) = torch.autograd.grad(masked_loss(plastic, "2.weight", x, y)(z), z)
    keep = mask.double()
    share = pi * (1 - pi) if estimator == "straight_through" else (keep * (1 - pi) + (1 - keep) * pi) / 2
    found = torch.cat([p.grad.reshape(-1) for p in plastic.logits()]).double()
    torch.testing.assert_close(found, K * slope * share, rtol=1e-4, atol=1e-7)


def alive(plastic, z):
    """Parameter name -> bool: entries whose own gate and every unit, column and branch they lie on or in are open."""
    structure, start, left = plastic.structure, 0, {}
    shapes = structure.physical()
    left = {name: torch.ones(shapes[name], dtype=torch.bool) for name, _ in plastic.model.named_parameters()}
    kept = {part.key: part.kept for part in structure.columns}
    for part in structure.parts:
        numbers = z[start : start + part.size] > 0
        for slot in part.slots:
            if slot.tensor in left:
                length = structure.shapes[slot.tensor][slot.axis]
                there = torch.ones(length, dtype=torch.bool)
                there[slot.index] = numbers[:, None].expand(slot.index.shape)
                there = there[kept.get(slot.key, torch.arange(length))]
                left[slot.tensor] &= there.view([-1 if a == slot.axis else 1 for a in range(left[slot.tensor].dim())])
        if part is structure.branches:
            for name in left:
                if part.home(name) < part.size:
                    left[name] = left[name] & numbers[part.home(name)]
        start += part.size
    for name in structure.unstructured:
        left[name] &= z[start : start + left[name].numel()].view(left[name].shape) > 0
        start += left[name].numel()
    assert start == len(z)
    return left


def counted(plastic, kind, z):
    left = alive(plastic, z)
    if kind == "params":
        return float(sum(m.sum() for m in left.values()))
    if kind == "weights":
        return float(sum(m.sum() for m in left.values() if m.dim() > 1))
    return float(sum(m.sum() * plastic.structure.positions.get(name, 0.0) for name, m in left.items()))


NETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), (1, 2), {"unstructured": "*"}),
    "some": (lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), (1, 2), {"unstructured": "2"}),
    "recurrent": (lambda: nn.RNN(1, 2, batch_first=True), (1, 3, 1), {"unstructured": "*hh*"}),
    "twice": (Net, (1, 1, 1, 3), {"unstructured": ["mix", "conv"]}),
    "columns": (Net, (1, 1, 1, 3), {"unstructured": "head", "columns": "head"}),
}


@pytest.mark.parametrize("kind", ["params", "weights", "macs"])
@pytest.mark.parametrize("name", list(NETS))
def test_expected_cost_is_the_mean_over_all_masks(name, kind):
    make, shape, options = NETS[name]
    torch.manual_seed(0)
    plastic = npn.attach(make(), torch.randn(shape), **options)
    pi = set_pi(plastic)
    leaf = pi.clone().requires_grad_()
    wanted = exact_expectation(lambda z: torch.tensor(counted(plastic, kind, z)).double(), leaf)
    wanted.backward()
    cost = plastic.expected_cost(kind)
    torch.testing.assert_close(cost.detach().double(), wanted.detach(), rtol=1e-5, atol=1e-5)
    cost.backward()
    found = torch.cat([p.grad.reshape(-1) for p in plastic.logits()]).double()
    torch.testing.assert_close(found, K * pi * (1 - pi) * leaf.grad, rtol=1e-4, atol=1e-5)
    assert plastic.full_cost(kind) == counted(plastic, kind, torch.ones(len(pi)))


def test_a_branch_that_is_closed_costs_nothing_with_its_weights():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(2, 2), nn.Linear(2, 1)
            self.block = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
            self.other = nn.Linear(2, 2)

        def forward(self, x):
            h = self.stem(x)
            h = h + self.other(h)
            return self.head(h + self.block(h))

    torch.manual_seed(0)
    options = {"only": "block*", "branches": ["block", "other"], "unstructured": "block.2"}
    plastic = npn.attach(Residual(), torch.randn(3, 2), **options)
    pi = set_pi(plastic)
    wanted = exact_expectation(lambda z: torch.tensor(counted(plastic, "weights", z)).double(), pi)
    assert math.isclose(plastic.expected_cost("weights").item(), float(wanted), rel_tol=1e-5)
    plastic.k = math.inf
    plastic.open("branches", [0, 1])
    plastic.close("branches", [0])
    plastic.compact()
    assert plastic.unstructured == {} and len(plastic.logits()) == len(plastic.groups)
    assert math.isclose(float(plastic.expected_cost("weights")), 4 + 2 + 4, rel_tol=1e-6)


def test_layerwise_prices_and_bounds():
    plastic = npn.attach(mlp(), torch.zeros(1, 5), unstructured=["0", "2"])
    pi = set_pi(plastic)
    units, first, second = pi[:14], pi[14 : 14 + 40], pi[54:].view(6, 8)
    wanted = first.sum() + (second * units[:8]).sum() + 3 * units[8:].sum()
    assert math.isclose(plastic.expected_cost("layerwise").item(), float(wanted), rel_tol=1e-5)
    priced = plastic.expected_cost("layerwise", weights={"2": 2.0, "0.weight": 0.5})
    assert math.isclose(priced.item(), float(0.5 * first.sum() + 6 * units[8:].sum()), rel_tol=1e-5)
    assert plastic.full_cost("layerwise") == 40 + 48 + 18
    assert plastic.full_cost("weights") == 40 + 48 + 18 and plastic.minimum_cost("weights") == 1 + 1 + 3
    assert plastic.minimum_cost("units") == 2 and plastic.full_cost("units") == 14
    plastic.penalty = npn.Penalty("layerwise", {"0.weight": 0.5, "2": 2.0})
    torch.testing.assert_close(plastic.penalty.loss(plastic), priced)


def test_patterns_name_weights_or_modules_and_a_wrong_one_is_told_the_nearest():
    names = {"0.weight": (8, 5), "2.weight": (6, 8), "4.weight": (3, 6)}
    plastic = npn.attach(mlp(), torch.zeros(1, 5), unstructured="*")
    assert {n: tuple(g.logits.shape) for n, g in plastic.unstructured.items()} == names
    assert list(npn.attach(mlp(), torch.zeros(1, 5), unstructured=["4", "0.weight"]).unstructured) == [
        "0.weight",
        "4.weight",
    ]
    with pytest.raises(ConfigurationError) as error:
        npn.attach(mlp(), torch.zeros(1, 5), unstructured=["0", "2.weigth"])
    assert str(error.value) == (
        "unstructured: pattern '2.weigth' matches no parameter with two or more axes; the nearest are: "
        "2.weight, 4.weight, 0.weight"
    )
    with pytest.raises(ConfigurationError, match=r"pattern '2\.bias' matches no parameter with two or more axes"):
        npn.attach(mlp(), torch.zeros(1, 5), unstructured="2.bias")
    with pytest.raises(ConfigurationError, match='single weights have masks="batch" only'):
        npn.attach(mlp(), torch.zeros(1, 5), unstructured="2", masks="example")
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 2))
    with pytest.raises(ConfigurationError, match=r"unstructured: 0\.weight has sparse gradients"):
        npn.attach(model, torch.zeros(1, 2, dtype=torch.long), unstructured="*")


def test_a_model_without_units_can_have_single_weight_gates():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    plastic = npn.attach(model, torch.zeros(1, 3), unstructured="weight")
    plastic.close("weight", [0, 4])
    x = torch.randn(4, 3)
    wanted = model.weight.detach().clone()
    wanted[0, 0] = wanted[1, 1] = 0
    torch.testing.assert_close(model(x), F.linear(x, wanted, model.bias))
    plastic.compact()
    assert torch.equal(plastic.export().weight, wanted)


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


def everything(plastic, both):
    tensors = [*plastic.model.state_dict().values(), *(p.detach() for p in plastic.logits())]
    tensors += [t for gate in plastic.unstructured.values() for t in gate.tensors]
    for optimizer in both:
        tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    return tensors


def test_a_checkpoint_goes_on_as_if_nothing_had_happened(tmp_path):
    def start(seed):
        plastic = npn.attach(mlp(seed), torch.zeros(1, 5), unstructured="*", penalty=npn.Budget("weights", 0.4))
        plastic.k = 7.0
        return plastic, optimizers(plastic)

    def on(plastic, both):
        train(plastic, 5, both)
        plastic.compact(0.2)
        plastic.grow({"0": 1}, grace=2)
        train(plastic, 5, both)

    plastic, both = start(0)
    train(plastic, 5, both)
    plastic.close("2.weight", [0, 1, 8, 9])
    plastic.compact()
    plastic.close("0", [1])
    plastic.open("2.weight", [1], grace=7)
    plastic.compact()
    npn.save(tmp_path / "a.npn", plastic)
    again, others = start(1)
    npn.load(tmp_path / "a.npn", again)
    for a, b in zip(everything(plastic, both), everything(again, others), strict=True):
        assert torch.equal(a, b)
    on(plastic, both)
    npn.load(tmp_path / "a.npn", again)  # brings the random state back as well
    on(again, others)
    for a, b in zip(everything(plastic, both), everything(again, others), strict=True):
        assert torch.equal(a, b)


def test_masks_are_bits_and_plain_models_load_without_the_closed_weights(tmp_path):
    plastic = npn.attach(mlp(), torch.zeros(1, 5), unstructured="*")
    plastic.close("2.weight", [0, 5, 17])
    plastic.close("0", [2])
    npn.save(tmp_path / "a.npn", plastic)
    content = torch.load(tmp_path / "a.npn", weights_only=True)
    bits = {entry["name"]: entry["open"] for entry in content["weights"]}
    assert {name: (len(b), b.dtype) for name, b in bits.items()} == {
        "0.weight": (5, torch.uint8),
        "2.weight": (6, torch.uint8),
        "4.weight": (3, torch.uint8),
    }
    assert len(content["plastic"]["weights"]["2.weight"]["removed"]) == 6
    plain = npn.load(tmp_path / "a.npn", mlp(7))
    x, _ = data()
    torch.testing.assert_close(plain(x), plastic.model(x))
    assert plain[2].weight.view(-1)[[0, 5, 17]].tolist() == [0, 0, 0]


def test_a_checkpoint_of_other_single_weights_is_refused(tmp_path):
    plastic = npn.attach(mlp(), torch.zeros(1, 5), unstructured="*")
    npn.save(tmp_path / "a.npn", plastic)
    other = npn.attach(mlp(), torch.zeros(1, 5), unstructured="2")
    with pytest.raises(CheckpointError, match=r"has gates on the single weights of \['0.weight', '2.weight', '4.weig"):
        npn.load(tmp_path / "a.npn", other)
    with pytest.raises(CheckpointError, match=r"the model on those of \[\]"):
        npn.load(tmp_path / "a.npn", npn.attach(mlp(), torch.zeros(1, 5)))
    with pytest.raises(ConfigurationError, match=r"expected single-weight gates of \{'2\.weight': \(6, 8\)\}"):
        other.load_state_dict(plastic.state_dict())


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


def test_the_page_on_single_weights_runs():
    page = Path(__file__).parents[1] / "docs" / "weights.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    scope = {}
    exec(code, scope)
    small, x, y = scope["small"], scope["x"], scope["y"]
    assert sum(int((p != 0).sum()) for p in small.parameters() if p.dim() > 1) < 300
    assert small[0].out_features < 64 and (small(x).argmax(1) == y).float().mean() > 0.9
