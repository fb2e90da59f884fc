"""A last cut: units that are open beyond a budget close, those of the lowest logit for their cost first."""

from collections.abc import Sequence

import torch
from torch import Tensor

from npn._importance.closing import best_of_each, close_down_to, refill
from npn._importance.costs import cost_function, value_and_slope
from npn._importance.gradients import present_mask
from npn._importance.sets import numbers_of_sets, of_sets, of_units, units_of_sets
from npn._utils.validation import HANDLE, instance, whole_number
from npn.budget import Budget
from npn.errors import ConfigurationError
from npn.plasticity import Plasticity

COSTS = ("params", "weights", "macs")
NEAR = 0.05  # share of the budget above which several units close at once


def fit_to_budget(plastic: Plasticity, *, round_to: int = 1) -> dict[str, int]:
    """Close open units until the network costs no more than its budget allows.

    A `Budget` bounds the expected cost E[cost(z)]. The units with pi > 1/2, of which the small network consists, may
    cost somewhat more. They close in the order of phi over marginal cost: their logit, and what the network would save
    at that moment if the unit alone were closed, without what goes beyond the excess; where a unit saves more than was
    needed, those closed before it stay as far as they fit. Units that come in sets close in sets. The unit of each
    group with the highest logit stays, and nothing happens within the budget. Call it after the plastic stage and
    before fine-tuning, at k = inf: at a finite k gates may open again.

    With `round_to`, the units of the lowest logits that are more than a multiple close first, within the budget, too.

    Where single weights have gates, weights close in the place of units, in the same order, as few as the budget asks
    for; the one with the highest logit of each parameter stays.

    Args:
        plastic: the handle of the model, with a `Budget` as its penalty.
        round_to: every group keeps a multiple of so many channels, or all open ones where they are fewer; 8 or 16 suit
            tensor cores.

    Returns:
        Group name -> number of units closed, for groups that lose any; of single weights, the parameter's name.

    Raises:
        ConfigurationError: the penalty is no `Budget`, or its cost is not "params", "weights" or "macs", or a method of
            `npn.methods` decides, or `round_to` is no positive integer, or above 1 where single weights have gates.

    Example:
        >>> import npn
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))  # 7 parameters for a unit, and 2
        >>> plastic = npn.attach(model, torch.zeros(1, 4), penalty=npn.Budget(cost="params", target=40))
        >>> fit_to_budget(plastic), npn.count_params(plastic.export())
        ({'0': 5}, 37)
    """
    instance("plastic", plastic, Plasticity, HANDLE)
    whole_number("round_to", round_to, 1, "channels")
    budget = plastic.penalty
    if not isinstance(budget, Budget) or budget.cost not in COSTS or budget.bound is None:
        raise ConfigurationError(
            f'fit_to_budget needs the penalty npn.Budget(cost="params", "weights" or "macs"), got {budget!r}'
        )
    if plastic.gates.decision is not None:
        raise ConfigurationError(
            "fit_to_budget closes units that gates keep, but a method decides what stays; let it close them itself"
        )
    if plastic.unstructured:
        if round_to > 1:
            raise ConfigurationError(
                f"round_to is for units, but single weights have gates; leave it at 1, got {round_to}"
            )
        return _close_weights(plastic, budget.cost, budget.bound)
    return _close_units(plastic, budget.cost, budget.bound, round_to)


def _close_units(plastic: Plasticity, kind: str, bound: float, round_to: int) -> dict[str, int]:
    groups = plastic.groups
    scores = torch.cat([group.gate.logits.detach().cpu().double() for group in groups])  # pi is 1 or 0 at k = inf
    is_open = present_mask(plastic).cpu().bool()
    sizes = [group.size for group in groups]
    ranks = torch.where(is_open, scores, -torch.inf)
    numbers, counts = numbers_of_sets(ranks, sizes, units_of_sets(groups, round_to))

    def summed(units: Tensor) -> Tensor:
        return of_sets(units.double(), numbers, sum(counts))

    # a set of the model's own leaves when all of its units are closed; one that makes a width round, when any is
    stays, many = summed(best_of_each(ranks, sizes)) > 0, summed(is_open)
    present = (many > 0) if round_to == 1 else (many == summed(torch.ones_like(is_open))) | stays
    values, price = summed(scores.clamp(min=0.0)), cost_function(plastic, kind)

    def cost(sets: Tensor) -> Tensor:
        return price(of_units(sets, numbers))

    left = close_down_to(present, stays, values, cost, (1 + NEAR) * bound)
    left = close_down_to(left, stays, values, cost, bound, singly=True)
    left = refill(present, left, values, cost, bound)
    return _close(plastic, [group.name for group in groups], (is_open & ~of_units(left, numbers)).split(sizes))


def _close_weights(plastic: Plasticity, kind: str, bound: float) -> dict[str, int]:
    single = plastic.unstructured
    sizes = [gate.logits.numel() for gate in single.values()]
    present = present_mask(plastic).cpu().bool()
    units, is_open = present.split([len(present) - sum(sizes), sum(sizes)])
    scores = torch.cat([gate.logits.detach().cpu().double().flatten() for gate in single.values()])
    stays = best_of_each(torch.where(is_open, scores, -torch.inf), sizes)
    price = cost_function(plastic, kind)
    saved = value_and_slope(price, present)[1][len(units) :]
    candidates = (is_open & ~stays & (saved > 0)).nonzero().reshape(-1)  # a weight of a closed unit saves nothing
    order = candidates[(scores / saved)[candidates].argsort(stable=True)]

    def without(count: int) -> Tensor:
        left: Tensor = is_open.clone()
        left[order[:count]] = False
        return left

    low, high = 0, len(order)
    while low < high:  # bisection: the cost falls with every weight that goes
        middle = (low + high) // 2
        fits = float(price(torch.cat([units, without(middle)]).double())) <= bound
        low, high = (low, middle) if fits else (middle + 1, high)
    return _close(plastic, list(single), (is_open & ~without(low)).split(sizes))


def _close(plastic: Plasticity, names: Sequence[str], masks: Sequence[Tensor]) -> dict[str, int]:
    """Close units or weights by their masks; name -> how many, where there are any."""
    closed = {name: int(mask.sum()) for name, mask in zip(names, masks, strict=True) if bool(mask.any())}
    for name, mask in zip(names, masks, strict=True):
        if name in closed:
            plastic.close(name, mask)
    return closed
