"""Expected costs against enumeration: every masked network built physically and counted."""

import math

import pytest
import torch

import npn
from npn.errors import ConfigurationError
from npn.functional import logits_for
from npn.surgery import apply_plan, plan_removal

NAMES = ["four", "mlp", "residual", "recurrent", "depthwise"]
K = 1.7


def spread(plastic, seed=0):
    """Keep probabilities that differ from unit to unit."""
    plastic.k = K
    generator = torch.Generator().manual_seed(seed)
    n = sum(g.size for g in plastic.groups)
    pi = 0.1 + 0.8 * torch.rand(n, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for group, part in zip(plastic.groups, pi.split([g.size for g in plastic.groups]), strict=True):
            group.gate.logits.copy_(logits_for(part, K, plastic.function))
    return plastic.gates.keep_probability().detach().double()


def sizes_table(spec, plastic, tools):
    """(mask, (parameters, MACs)) of every mask that leaves a unit in each group; counted once for each set of sizes."""
    x, _ = spec.data()
    seen, rows = {}, []
    for mask in tools.all_masks(sum(g.size for g in plastic.groups)):
        masks = tools.masks_of(plastic, mask)
        sizes = tuple(int(m.sum()) for m in masks.values())
        if 0 in sizes:
            continue
        if sizes not in seen:
            closed = {n: (m == 0).nonzero().reshape(-1).tolist() for n, m in masks.items()}
            model = spec.model()
            apply_plan(model, plan_removal(plastic.structure, closed))
            seen[sizes] = npn.count_params(model), npn.count_macs(model, x)
        rows.append((mask, seen[sizes]))
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_params_and_macs_of_every_masked_network(tiny, tools, name):
    """At each 0/1 mask the expectation is what is counted on the physical network, over the whole example batch."""
    spec = tiny[name]
    _, plastic = spec.attach()
    plastic.k = 1.0
    for mask, (params, macs) in sizes_table(spec, plastic, tools):
        plastic.gates.keep_probability = lambda mask=mask: mask
        assert float(plastic.expected_cost("params")) == params
        assert float(plastic.expected_cost("macs")) == macs
        assert float(plastic.expected_cost("units")) == float(mask.sum())
    del plastic.gates.keep_probability
    assert plastic.full_cost("macs") == npn.count_macs(spec.model(), spec.data()[0])


@pytest.mark.parametrize("function", ["sigmoid", "hard_sigmoid", "shifted_sigmoid"])
@pytest.mark.parametrize("kind", ["params", "macs", "units", "layerwise"])
@pytest.mark.parametrize("name", ["four", "mlp", "residual", "recurrent", "conv"])
def test_expectation_is_the_mean_over_all_masks(tiny, tools, name, kind, function):
    """E[cost] at inner probabilities, value and gradient, from the costs at the corners."""
    spec = tiny[name]
    _, plastic = spec.attach(function=function)
    pi = spread(plastic)
    plastic.expected_cost(kind).backward()
    value, gradient = plastic.expected_cost(kind).detach(), torch.cat([p.grad for p in plastic.logits()]).double()
    slope = npn.functional.keep_probability_derivative(plastic.gates.logits().detach(), K, plastic.function).double()
    costs = []
    for mask in tools.all_masks(len(pi)):
        plastic.gates.keep_probability = lambda mask=mask: mask
        costs.append(float(plastic.expected_cost(kind)))
    leaf = pi.clone().requires_grad_()
    total = sum(
        torch.where(m > 0, leaf, 1 - leaf).prod() * c for m, c in zip(tools.all_masks(len(pi)), costs, strict=True)
    )
    total.backward()
    torch.testing.assert_close(value.double(), total.detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(gradient, slope * leaf.grad, rtol=1e-4, atol=1e-4)


def test_by_hand(tiny):
    _, plastic = tiny["mlp"].attach()
    pi = spread(plastic)
    a, b = float(pi[:4].sum()), float(pi[4:].sum())
    assert math.isclose(float(plastic.expected_cost("params")), 4 * a + (a + 1) * b + 2 * (b + 1), rel_tol=1e-5)
    assert math.isclose(float(plastic.expected_cost("layerwise")), 3 * a + 2 * b, rel_tol=1e-5)
    weights = {"0": 2.0}
    assert math.isclose(float(plastic.expected_cost("layerwise", weights=weights)), 6 * a, rel_tol=1e-5)
    assert plastic.full_cost("params") == 4 * 4 + 5 * 3 + 4 * 2 and plastic.minimum_cost("params") == 4 + 2 + 4
    assert plastic.full_cost("units") == 7 and plastic.full_cost("layerwise") == 4 * 3 + 3 * 2
    with pytest.raises(ConfigurationError, match=r"cost must be one of 'params', .*'layerwise', got 'flops'"):
        plastic.expected_cost("flops")
    with pytest.raises(ConfigurationError, match=r"got 'flops'"):
        plastic.full_cost("flops")


def test_recurrent_weight_counts_its_diagonal_once(tiny):
    """hidden x hidden: E[(sum z)^2] = (sum pi)^2 + sum pi (1 - pi), times the four LSTM gates."""
    _, plastic = tiny["recurrent"].attach()
    pi = spread(plastic)
    stem, hidden = pi[:3], pi[3:]
    square = hidden.sum() ** 2 + (hidden * (1 - hidden)).sum()
    s, h = stem.sum(), hidden.sum()
    wanted = 4 * s + 4 * (s * h + square + 2 * h) + 2 * h + 2
    assert math.isclose(float(plastic.expected_cost("params")), float(wanted), rel_tol=1e-5)


def test_minimum_is_a_network_that_exists(tiny):
    for name in NAMES:
        spec = tiny[name]
        model, plastic = spec.attach()
        assert plastic.full_cost("params") == npn.count_params(model)
        least = plastic.minimum_cost("params")
        for group in plastic.groups:
            plastic.close(group, range(1, group.size))
        plastic.compact()
        assert npn.count_params(model) == least == plastic.minimum_cost("params")


def test_full_cost_is_that_at_attach(tiny):
    _, plastic = tiny["mlp"].attach()
    full = plastic.full_cost("params")
    plastic.close("0", [0])
    plastic.compact()
    plastic.grow({"2": 4})
    assert plastic.full_cost("params") == full
    plastic.k = math.inf
    assert float(plastic.expected_cost("params")) == npn.count_params(plastic.model)


def test_units_in_grace_cost_the_same_whatever_their_gate(tiny):
    _, plastic = tiny["mlp"].attach()
    plastic.k = 1.0
    plastic.open("0", [2], grace=5)
    plastic.expected_cost("params").backward()
    grad = plastic.groups[0].gate.logits.grad
    assert grad[2] == 0 and bool((grad[[0, 1, 3]] > 0).all())


class CrossCovariance(torch.nn.Module):
    """Features of one projection against those of another: both are resized, each on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = torch.nn.Linear(6, 5), torch.nn.Linear(6, 4)
        self.rows, self.columns = torch.nn.Linear(5, 2), torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        met = self.left(x).transpose(1, 2) @ self.right(x)
        return self.rows(self.columns(met).transpose(1, 2))


def test_a_product_of_two_groups_costs_what_both_leave() -> None:
    model, x = CrossCovariance(), torch.randn(2, 7, 6)
    plastic = npn.attach(model, x)
    assert {group.name: group.size for group in plastic.groups} == {"left": 5, "right": 4}
    assert plastic.full_cost("macs") == npn.count_macs(model, x)
    plastic.close("left", [0, 3])
    plastic.close("right", [1])
    cost = float(plastic.expected_cost("macs"))
    plastic.compact()
    assert cost == npn.count_macs(model, x) == 2 * (7 * (6 * 3 + 6 * 3 + 3 * 3) + 3 * 3 * 3 + 3 * 3 * 2)


@pytest.mark.parametrize("heads", [2, -1], ids=["frozen heads", "heads with gates"])
def test_attention_in_a_branch_costs_nothing_once_the_branch_is_closed(heads: int) -> None:
    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = torch.nn.Linear(8, 24), torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, heads, 4)).permute(2, 0, 3, 1, 4)
            met = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            return self.out(met.transpose(1, 2).flatten(2))

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Attention(), Attention()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.first(x)
            return x + self.second(x)

    model, x = Two(), torch.randn(1, 5, 8)
    plastic = npn.attach(model, x, branches=["first", "second"])
    full = plastic.full_cost("macs")
    assert full == npn.count_macs(model, x)
    name = next(group.name for group in plastic.groups if group.size == 2 and "." not in group.name)
    plastic.close(name, [0])
    cost = float(plastic.expected_cost("macs"))
    plastic.compact()
    assert cost == full / 2 == npn.count_macs(model, x)
