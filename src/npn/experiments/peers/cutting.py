"""Sizes by budget: remove the units of the lowest score until the weights fit, and shares that fit from the start."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import npn
from npn._importance.closing import best_of_each, cheapest_to_close
from npn._importance.costs import cost_function, value_and_slope


def threshold(plastic: npn.Plasticity, scores: Tensor, weights: float) -> float:
    """Find the lowest score at which the units of this score and above fit into a budget.

    Args:
        plastic: the attached model, without closed units.
        scores: of all units, (units,); the best of each group stays in any case.
        weights: the most weights, without biases.

    Returns:
        The score; -inf where everything fits, and the highest score where nothing does.
    """
    cost, scores = cost_function(plastic, "weights"), scores.detach().cpu().double()
    best = best_of_each(scores, [group.size for group in plastic.groups])
    ladder = [-torch.inf, *scores.unique().tolist()]
    low, high = 0, len(ladder) - 1
    while low < high:  # bisection: the cost falls as the score rises
        middle = (low + high) // 2
        fits = value_and_slope(cost, (scores >= ladder[middle]) | best)[0] <= weights
        low, high = (low, middle) if fits else (middle + 1, high)
    return float(ladder[low])


def close_by_importance(plastic: npn.Plasticity, scores: dict[str, Tensor], weights: float) -> None:
    """Remove the units that matter least per weight until the network fits into a budget, as `npn.prune` does.

    Args:
        plastic: the attached model, without a method.
        scores: name of the group -> importance, see `npn.importance`.
        weights: the most weights, without biases.
    """
    sizes = [group.size for group in plastic.groups]
    values = torch.cat([scores[group.name].cpu().double() for group in plastic.groups])
    stay = cheapest_to_close(values, sizes, cost_function(plastic, "weights"), weights)
    remove(plastic, stay, sizes)


def remove(plastic: npn.Plasticity, stay: Tensor, sizes: Sequence[int]) -> None:
    """Close and remove units.

    Args:
        plastic: the attached model, without a method.
        stay: which units stay, bool (units,).
        sizes: units of each group.
    """
    for group, piece in zip(plastic.groups, stay.split(list(sizes)), strict=True):
        if not bool(piece.all()):
            plastic.close(group, ~piece)
    plastic.compact()


def keep_weights(plastic: npn.Plasticity, scores: Mapping[str, Tensor], weights: float) -> None:
    """Close and remove single weights until no more than a budget are left, those of the lowest score first.

    Args:
        plastic: the attached model, without a method.
        scores: name of the parameter -> score of each of its weights, those of closed ones the lowest.
        weights: the most weights.
    """
    values = torch.cat([scores[name].detach().reshape(-1) for name in plastic.unstructured])
    stay = torch.zeros_like(values, dtype=torch.bool)
    stay[values.topk(min(len(values), int(weights))).indices] = True
    sizes = [gate.logits.numel() for gate in plastic.unstructured.values()]
    for name, piece in zip(plastic.unstructured, stay.split(sizes), strict=True):
        if not bool(piece.all()):
            plastic.close(name, ~piece)
    plastic.compact()


def even_share(plastic: npn.Plasticity, weights: float) -> float:
    """Find the share of every group, the same for all, that has to go so that the network fits into a budget.

    Args:
        plastic: the attached model at full size.
        weights: the most weights, without biases.
    """
    cost, sizes = cost_function(plastic, "weights"), [group.size for group in plastic.groups]

    def fits(share: float) -> bool:
        kept = [torch.arange(size) < max(1, size - int(share * size)) for size in sizes]
        return value_and_slope(cost, torch.cat(kept))[0] <= weights

    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
