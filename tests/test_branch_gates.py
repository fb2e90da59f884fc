"""The gradient and the cost of gates on branches, by enumeration of all masks."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import npn
from npn.errors import ConfigurationError
from npn.surgery import apply_plan, plan_removal

from .test_branches import Residual, units

pytestmark = pytest.mark.usefixtures("traces_are_shared")


class Tiny(nn.Module):
    """Two branches; the second has the stream on both axes of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.blocks = nn.Sequential(
            Residual(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)), Residual(nn.Tanh(), nn.Linear(2, 2))
        )
        self.head = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def tiny(**options: Any) -> tuple[Tiny, Tensor, npn.Plasticity]:
    torch.manual_seed(1)
    model, x = Tiny(), torch.randn(3, 2)
    plastic = npn.attach(model, x, branches="*.branch", penalty=npn.Penalty(weight=0.0), **options)
    plastic.k = 1.0
    with torch.no_grad():
        for group in plastic.groups:
            group.gate.logits.normal_()
    return model, x, plastic


def loss_by_hand(model: Tiny, x: Tensor, z: Tensor) -> Tensor:
    """Two gates of the first branch's units, then those of the branches; on activations, not on weights."""
    first, second = model.blocks[0].branch, model.blocks[1].branch
    h = model.stem(x)
    h = h + z[2] * first[2](torch.tanh(first[0](h)) * z[:2])
    return model.head(h + z[3] * second[1](torch.tanh(h))).square().mean()


def masks(n: int) -> list[Tensor]:
    return [torch.tensor(bits) for bits in itertools.product((0.0, 1.0), repeat=n)]


def gradient_of(plastic: npn.Plasticity, x: Tensor, *given: Tensor) -> Tensor:
    """The step's gradient with respect to the logits under these masks."""
    draws = iter([1 - mask for mask in given])
    plastic.gates.draw = lambda: next(draws)  # type: ignore[method-assign]
    for logits in plastic.logits():
        logits.grad = None
    plastic.backward(lambda: plastic.model(x).square().mean())
    return torch.cat([logits.grad for logits in plastic.logits()])  # type: ignore[misc]


def test_slopes_of_branches_under_every_mask() -> None:
    """Straight-through is dL/dz pi (1 - pi): the gates' own gradient is that of gates on the branches' outputs."""
    model, x, plastic = tiny(only="blocks.0.*", estimator="straight_through")
    assert [group.name for group in plastic.groups] == ["blocks.0.branch.0", "branches"]
    pi = plastic.gates.keep_probability().detach()
    for mask in masks(4):
        z = mask.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss_by_hand(model, x, z), z)
        assert torch.allclose(gradient_of(plastic, x, mask), slope * pi * (1 - pi), atol=1e-6)
        assert mask[2] or not slope[:2].any(), "units inside a closed branch have no gradient of the data"


def test_the_gradient_is_exact_on_average() -> None:
    """Leave-one-out over all pairs of masks, with their probabilities."""
    model, x, plastic = tiny(only="blocks.0.*", estimator="rloo")
    pi = plastic.gates.keep_probability().detach().requires_grad_()
    likely = [torch.where(mask > 0, pi, 1 - pi).prod() for mask in masks(4)]
    losses = [loss_by_hand(model, x, mask).detach() for mask in masks(4)]
    (exact,) = torch.autograd.grad(sum(p * loss for p, loss in zip(likely, losses, strict=True)), pi)
    mean = torch.zeros(4)
    for (p, one), (q, two) in itertools.product(zip(likely, masks(4), strict=True), repeat=2):
        mean += (p * q).detach() * gradient_of(plastic, x, one, two)
    assert torch.allclose(mean, exact * (pi * (1 - pi)).detach(), atol=1e-6)


@pytest.mark.parametrize("kind", ["params", "macs", "units", "layerwise"])
def test_expected_cost_is_that_of_all_masks(kind: str) -> None:
    """At each 0/1 mask what the physical network has; in between the mean over all masks, value and gradient."""
    _model, x, plastic = tiny()
    sizes = [group.size for group in plastic.groups]
    assert units(plastic) == {"stem": 2, "blocks.0.branch.0": 2, "branches": 2}
    pi = plastic.gates.keep_probability().double().detach().requires_grad_()
    logits = torch.cat([p.detach() for p in plastic.logits()])
    plastic.expected_cost(kind).backward()
    value = float(plastic.expected_cost(kind).detach())
    gradient = torch.cat([p.grad for p in plastic.logits()]).double()  # type: ignore[misc]
    total = torch.zeros((), dtype=torch.float64)
    for mask in masks(6):
        plastic.gates.keep_probability = lambda mask=mask: mask  # type: ignore[method-assign]
        cost = float(plastic.expected_cost(kind))
        total = total + cost * torch.where(mask > 0, pi, 1 - pi).prod()
        stem, inner, branches = mask.split(sizes)
        s, h, (a, b) = float(stem.sum()), float(inner.sum()), branches.tolist()
        if kind == "units":
            assert cost == s + a * h + a + b
        elif kind == "layerwise":  # readers at full width; what a branch's gate multiplies
            assert cost == s * (2 * a + 2 * b + 1) + h * 2 * a + 6 * a + 6 * b
        elif s and h and (a or b):
            small = copy.deepcopy(plastic).detach()
            closed = zip(plastic.groups, (stem, inner, branches), strict=True)
            gone = {group.name: (part == 0).nonzero().reshape(-1).tolist() for group, part in closed}
            apply_plan(small, plan_removal(plastic.structure, gone))
            assert cost == (npn.count_params(small) if kind == "params" else npn.count_macs(small, x))
    assert value == pytest.approx(float(total.detach()), rel=1e-5)
    (slope,) = torch.autograd.grad(total, pi)
    sigma = torch.sigmoid(logits.double())
    assert torch.allclose(gradient, slope * sigma * (1 - sigma), rtol=1e-4, atol=1e-5)


def test_full_and_minimum_cost() -> None:
    model, _, plastic = tiny()
    assert plastic.full_cost("params") == npn.count_params(model) == 6 + (6 + 6) + 6 + 3
    assert plastic.minimum_cost("params") == 3 + 2 + 2, "one unit in the stem, and the branch of one weight and bias"
    for name, gone in (("stem", [0]), ("blocks.0.branch.0", [0]), ("branches", [0])):
        plastic.close(name, gone)
    plastic.compact()
    assert npn.count_params(model) == plastic.minimum_cost("params") == 7
    assert plastic.full_cost("params") == 27
    with pytest.raises(ConfigurationError, match=r"with one unit left in every group the model still costs 7 of 27"):
        tiny_with_budget(6)
    assert tiny_with_budget(7).penalty.bound == 7  # type: ignore[attr-defined]


def tiny_with_budget(target: int) -> npn.Plasticity:
    return npn.attach(Tiny(), torch.randn(3, 2), branches="*.branch", penalty=npn.Budget(cost="params", target=target))
