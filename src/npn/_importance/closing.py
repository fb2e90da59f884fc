"""Which units close to bring a network's cost under a bound: the least important per marginal cost first."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from npn._importance.costs import value_and_slope
from npn._utils import cpu

Cost = Callable[[Tensor], Tensor]  # mask, float64 (gates,) -> scalar, linear in each gate, increasing

CLOSE_ENOUGH = 0.005  # of the bound: less room than that is not filled
COARSE = 0.02  # of the bound: if more room is left, units are coarse, and other choices are tried
SWAPPED = 8  # units of one group that are exchanged at most


def cheapest_to_close(
    scores: Tensor, sizes: Sequence[int], cost: Cost, bound: float, least: Sequence[int] | None = None
) -> Tensor:
    """Choose the units to keep so that the cost meets a bound, closing the least important per marginal cost first.

    Marginal costs are computed again as units close. Because whole units overshoot, units that fit under the bound are
    opened again. If that still leaves more than 2% of the bound, a few units of one group are exchanged for units of
    others; if no exchange comes within 2% below the bound, one that comes within 2% above it is taken.

    Args:
        scores: float64 (gates,), >= 0.
        sizes: units of each group.
        cost: from a mask, float64 (gates,), to the cost; linear in each gate, with no negative term.
        bound: on the cost.
        least: how many units of each group stay, those with the highest scores; one by default.

    Returns:
        bool (gates,), True where open; only those that stay in any case where the bound is out of reach.

    Example:
        >>> scores = torch.tensor([3.0, 1.0, 2.0, 4.0], dtype=torch.float64)
        >>> cheapest_to_close(scores, [4], lambda mask: 10 * mask.sum(), 25.0)
        tensor([ True, False, False,  True])
    """
    stays = best_of_each(scores, sizes, least)
    everything = torch.ones_like(stays)
    mask = refill(everything, close_down_to(everything, stays, scores, cost, bound), scores, cost, bound)
    if bool(mask.all()) or value_and_slope(cost, mask)[0] >= (1 - COARSE) * bound:
        return mask
    tried = [mask, *_exchanges(mask, stays, scores, sizes, cost, bound)]
    return max([*tried, *(_one_more(each, scores, cost, bound) for each in tried)], key=_fit(scores, cost, bound))


def close_down_to(
    mask: Tensor, stays: Tensor, scores: Tensor, cost: Cost, bound: float, singly: bool = False
) -> Tensor:
    """The mask after closing units in order of score per marginal cost until the cost is at most the bound.

    Without negative terms in the cost, units that close together save at most the sum of what each saves alone, so that
    a round whose sum stays below the excess cannot go too far. A round takes a quarter of the excess or 2% of the cost,
    whichever is less, and one unit at least.

    Args:
        mask, stays: bool (gates,); the latter do not close.
        scores, cost, bound: see `cheapest_to_close`.
        singly: one unit a round, in the order that counts no saving beyond the excess.
    """
    mask = mask.clone()
    while True:
        total, saved = value_and_slope(cost, mask)
        candidates = (mask & ~stays & (saved > 0)).nonzero().reshape(-1)
        if total <= bound or not len(candidates):
            return mask
        worth = saved.clamp(max=total - bound) if singly else saved
        order = candidates[(scores / worth)[candidates].argsort(stable=True)]
        allowed = 0.0 if singly else min((total - bound) / 4, total / 50)
        mask[order[: max(1, int((saved[order].cumsum(0) <= allowed).sum()))]] = False


def refill(may_open: Tensor, mask: Tensor, scores: Tensor, cost: Cost, bound: float) -> Tensor:
    """The mask after opening what fits under the bound, the most important per marginal cost first.

    Args:
        may_open: bool (gates,), others stay closed.
        mask: bool (gates,), at a cost of at most the bound.
        scores, cost, bound: see `cheapest_to_close`.
    """
    mask, may_open = mask.clone(), may_open.clone()
    while True:
        total, added = value_and_slope(cost, mask)
        candidates = (may_open & ~mask & (added <= bound - total)).nonzero().reshape(-1)
        if total >= (1 - CLOSE_ENOUGH) * bound or not len(candidates):
            return mask
        order = candidates[(scores / added)[candidates].argsort(descending=True, stable=True)]
        many = max(1, int((added[order].cumsum(0) <= bound - total).sum()))
        while many and value_and_slope(cost, mask.index_fill(0, order[:many], True))[0] > bound:
            many //= 2  # together they add more than each alone
        mask[order[:many]] = True
        may_open[order[:1]] = many > 0  # else it never fits: a set reads itself, beyond the slope


def _exchanges(
    mask: Tensor, stays: Tensor, scores: Tensor, sizes: Sequence[int], cost: Cost, bound: float
) -> Iterator[Tensor]:
    """Masks near one that leaves much room: up to `SWAPPED` units of a group less, and others refilled."""
    for group in cpu.arange(len(sizes)).repeat_interleave(cpu.tensor(sizes)).eq(cpu.arange(len(sizes))[:, None]):
        candidates = (group & mask & ~stays).nonzero().reshape(-1)
        order = candidates[scores[candidates].argsort(stable=True)]
        for count in range(1, min(SWAPPED, len(order)) + 1):
            others = refill(~group, mask.index_fill(0, order[:count], False), scores, cost, bound)
            yield refill(torch.ones_like(mask), others, scores, cost, bound)


def _one_more(mask: Tensor, scores: Tensor, cost: Cost, bound: float) -> Tensor:
    """The mask with one unit more, of the highest score per marginal cost, if one fits within 2% above the bound."""
    total, added = value_and_slope(cost, mask)
    fits = ~mask & (total + added <= (1 + COARSE) * bound)
    best = torch.where(fits, scores / added, -torch.inf).argmax()
    return mask.index_fill(0, best, True) if bool(fits.any()) else mask


def _fit(scores: Tensor, cost: Cost, bound: float) -> Callable[[Tensor], tuple[int, float]]:
    """Rank of a mask: within 2% below the bound and of high scores, else within 2% above, else nearest below."""

    def rank(mask: Tensor) -> tuple[int, float]:
        total = value_and_slope(cost, mask)[0]
        if total > bound:
            return (1, -total) if total <= (1 + COARSE) * bound else (-1, 0.0)
        return (2, float(scores[mask].sum())) if total >= (1 - COARSE) * bound else (0, total)

    return rank


def best_of_each(scores: Tensor, sizes: Sequence[int], many: Sequence[int] | None = None) -> Tensor:
    """bool (gates,): the units of each group with the highest scores, the first of several; one of each by default."""
    ranks = [piece.argsort(descending=True, stable=True).argsort() for piece in scores.split(list(sizes))]
    return torch.cat([rank < most for rank, most in zip(ranks, many or [1] * len(ranks), strict=True)])
