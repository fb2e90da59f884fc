"""Gradients and costs of gates on single weights against enumeration."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import npn
from npn.errors import ConfigurationError
from npn.functional import exact_expectation, exact_gradient

from .single_weights import K, Net, mlp, set_pi, small
from .stepping import UNBIASED, every_draw

pytestmark = pytest.mark.usefixtures("traces_are_shared")


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
