"""A last cut to the budget, against exact counts of the exported network."""

import copy
import math

import pytest
import torch
from torch import nn

import npn
from npn.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("traces_are_shared")

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def attached(penalty: npn.CostTerm, **how: object) -> npn.Plasticity:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3))
    plastic = npn.attach(model, X, penalty=penalty, **how)  # type: ignore[arg-type]
    plastic.k = 7.0
    with torch.no_grad():
        for logits in plastic.logits():
            logits.copy_(0.4 * torch.rand(logits.shape) - 0.1)
    return plastic


@pytest.mark.parametrize("k", [7.0, math.inf])
@pytest.mark.parametrize(("cost", "target"), [("params", 700), ("params", 0.2), ("weights", 500), ("macs", 0.3)])
def test_what_is_left_fits_the_budget_and_nothing_more_goes(k: float, cost: str, target: float) -> None:
    plastic = attached(npn.Budget(cost=cost, target=target))  # type: ignore[arg-type]
    plastic.k = k
    before = [group.gate.mask.clone() for group in plastic.groups]
    closed = npn.fit_to_budget(plastic)
    assert isinstance(plastic.penalty, npn.Budget) and plastic.penalty.bound is not None
    small = plastic.export()
    sizes = {
        "params": npn.count_params(small),
        "weights": sum(p.numel() for p in small.parameters() if p.dim() > 1),
        "macs": npn.count_macs(small, X),
    }
    assert 0.85 * plastic.penalty.bound < sizes[cost] <= plastic.penalty.bound
    assert closed and all(count > 0 for count in closed.values())
    for group, was in zip(plastic.groups, before, strict=True):
        gone = was & ~group.gate.mask
        assert int(gone.sum()) == closed.get(group.name, 0) and not bool((group.gate.mask & ~was).any())
    assert npn.fit_to_budget(plastic) == {}, "within the budget nothing happens"


def test_what_would_still_fit_stays() -> None:
    """One wide layer saves much at a time and another little: none that closed fits into the room that is left."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 60), nn.ReLU(), nn.Linear(60, 3))
    for seed in range(20):
        plastic = npn.attach(copy.deepcopy(model), X, penalty=npn.Budget(cost="params", target=520))
        plastic.k = 7.0
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for logits in plastic.logits():
                logits.copy_(torch.rand(logits.shape, generator=generator))
        before = [group.gate.mask.clone() for group in plastic.groups]
        npn.fit_to_budget(plastic)
        found = npn.count_params(plastic.export())
        assert found <= 520
        for group, was in zip(plastic.groups, before, strict=True):
            for unit in (was & ~group.gate.mask).nonzero().flatten().tolist()[:3]:
                plastic.open(group, [unit])
                assert npn.count_params(plastic.export()) > 520 or found >= 0.995 * 520
                plastic.close(group, [unit])


def test_the_lowest_logits_of_a_group_go() -> None:
    plastic = attached(npn.Budget(cost="params", target=0.2))
    logits = [group.gate.logits.detach().clone() for group in plastic.groups]
    masks = [group.gate.mask.clone() for group in plastic.groups]
    npn.fit_to_budget(plastic)
    for group, phi, was in zip(plastic.groups, logits, masks, strict=True):
        gone = was & ~group.gate.mask
        assert bool(gone.any()) and float(phi[gone].max()) <= float(phi[was & ~gone].min()) + 1e-6


def test_one_unit_of_each_group_stays() -> None:
    plastic = attached(npn.Budget(cost="params", target=15))
    best = [int(group.gate.logits.argmax()) for group in plastic.groups]
    npn.fit_to_budget(plastic)
    assert [group.gate.mask.nonzero().flatten().tolist() for group in plastic.groups] == [[unit] for unit in best]
    assert npn.count_params(plastic.export()) == 7 + 2 + 6


def test_what_has_no_budget_of_units_is_refused() -> None:
    message = r'^fit_to_budget needs the penalty npn\.Budget\(cost="params", "weights" or "macs"\), got Penalty'
    with pytest.raises(ConfigurationError, match=message):
        npn.fit_to_budget(attached(npn.Penalty(cost="params", weight=1e-3)))
    with pytest.raises(ConfigurationError, match=r'"weights" or "macs"\), got Budget\(cost=\'units\''):
        npn.fit_to_budget(attached(npn.Budget(cost="units", target=0.5)))
    message = r"^round_to is for units, but single weights have gates; leave it at 1, got 8$"
    with pytest.raises(ConfigurationError, match=message):
        npn.fit_to_budget(attached(npn.Budget(cost="weights", target=0.5), unstructured="0"), round_to=8)
    plastic = attached(npn.Budget(cost="params", target=0.5))
    plastic.k = math.inf
    for group in plastic.groups:
        plastic.open(group, range(group.size))
    npn.methods.HardConcrete(plastic)
    with pytest.raises(ConfigurationError, match=r"but a method decides what stays; let it close them itself$"):
        npn.fit_to_budget(plastic)


@pytest.mark.parametrize(("cost", "target"), [("weights", 300), ("params", 0.25), ("macs", 400)])
def test_single_weights_go_in_the_place_of_units(cost: str, target: float) -> None:
    plastic = attached(npn.Budget(cost=cost, target=target), unstructured="*")  # type: ignore[arg-type]
    units = [group.gate.mask.clone() for group in plastic.groups]
    single = plastic.unstructured
    before, logits = (
        {name: getattr(gate, what).clone() for name, gate in single.items()} for what in ("mask", "logits")
    )
    closed = npn.fit_to_budget(plastic)
    assert isinstance(plastic.penalty, npn.Budget) and plastic.penalty.bound is not None
    plastic.k = math.inf
    with torch.no_grad():
        left = float(plastic.expected_cost(cost))
    assert plastic.penalty.bound - 2 < left <= plastic.penalty.bound, "as few as the budget asks for"
    assert all(torch.equal(group.gate.mask, was) for group, was in zip(plastic.groups, units, strict=True))
    gone = {name: was & ~single[name].mask for name, was in before.items()}
    assert {name: int(mask.sum()) for name, mask in gone.items() if bool(mask.any())} == closed
    highest = max(float(logits[name][mask].max()) for name, mask in gone.items() if bool(mask.any()))
    rows, columns = units[0], units[1]  # a weight of a closed unit costs nothing, and stays
    costly = before["2.weight"] & columns[:, None] & rows[None] & ~gone["2.weight"]
    assert highest <= float(logits["2.weight"][costly].min()) + 1e-6
    assert npn.fit_to_budget(plastic) == {}
