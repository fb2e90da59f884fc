"""The choice of units that close: by importance per marginal cost, in few rounds, without wasting room."""

import itertools
from collections.abc import Callable

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from npn._importance.closing import best_of_each, cheapest_to_close, close_down_to, refill


def brute_force(scores: Tensor, sizes: list[int], cost: Callable[[Tensor], Tensor], bound: float) -> Tensor:
    """One unit at a time, its marginal cost by difference."""
    stays, mask = best_of_each(scores, sizes), torch.ones(len(scores), dtype=torch.bool)
    while float(cost(mask.double())) > bound:
        best, ratio = -1, float("inf")
        for unit in (mask & ~stays).nonzero().reshape(-1).tolist():
            without = mask.index_fill(0, torch.tensor([unit]), False)
            saved = float(cost(mask.double()) - cost(without.double()))
            if float(scores[unit]) / saved < ratio:
                best, ratio = unit, float(scores[unit]) / saved
        mask[best] = False
    return mask


def mlp_cost(widths: list[int]) -> Callable[[Tensor], Tensor]:
    """Weights of an MLP whose hidden layers have gates; by hand."""
    hidden = widths[1:-1]

    def cost(mask: Tensor) -> Tensor:
        sums = [piece.sum() for piece in mask.split(hidden)]
        lengths = [torch.tensor(float(widths[0])), *sums, torch.tensor(float(widths[-1]))]
        return torch.stack([a * b for a, b in itertools.pairwise(lengths)]).sum()

    return cost


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=3, max_size=5), st.floats(0.05, 1.0), st.integers(0, 1000))
@example([4, 2, 12, 1], 0.9304200474743884, 513)  # an exchange leaves room for one unit within 2% above
@example([12, 4, 3, 2], 0.8998995937084183, 144)
def test_small_networks_lose_one_unit_at_a_time_and_waste_no_room(widths: list[int], share: float, seed: int) -> None:
    hidden, cost = widths[1:-1], mlp_cost(widths)
    scores = torch.rand(sum(hidden), generator=torch.Generator().manual_seed(seed)).double()
    least = float(cost(best_of_each(scores, hidden).double()))
    bound = max(share * float(cost(torch.ones(sum(hidden)).double())), least)
    mask = cheapest_to_close(scores, hidden, cost, bound)
    came, everything, best = float(cost(mask.double())), torch.ones_like(mask), best_of_each(scores, hidden)
    greedy = close_down_to(everything, best, scores, cost, bound)
    assert torch.equal(greedy, brute_force(scores, hidden, cost, bound))
    filled = refill(everything, greedy, scores, cost, bound)
    usual = float(cost(filled.double()))
    assert usual <= bound and bool((filled | ~greedy).all()) and bool((mask | ~best).all())
    if usual >= 0.98 * bound:
        assert torch.equal(mask, filled)
    elif came > bound:  # a little too much, where no choice is a little less
        assert came <= 1.02 * bound
    else:
        assert came >= usual
    for unit in (~mask).nonzero().reshape(-1) if came < 0.98 * bound else ():  # nothing fits any more
        assert float(cost(mask.index_fill(0, unit, True).double())) > 1.02 * bound


def test_a_hundred_thousand_units_take_few_rounds() -> None:
    widths = [100, 40_000, 60_000, 10]
    scores = torch.rand(100_000, generator=torch.Generator().manual_seed(0)).double()
    cost, calls = mlp_cost(widths), 0

    def counted(mask: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return cost(mask)

    bound = 0.1 * float(cost(torch.ones(100_000).double()))
    mask = cheapest_to_close(scores, widths[1:-1], counted, bound)
    assert 0.98 * bound <= float(cost(mask.double())) <= bound
    assert calls < 300
