"""Units that come and go in sets: what closes is chosen among whole sets, in place of single units."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from npn._utils import cpu
from npn.gates.group import UnitGroup


def units_of_sets(groups: Sequence[UnitGroup], round_to: int) -> list[int]:
    """How many units of each group close together so that the widths of its tensors are multiples of a number.

    A unit that takes several entries wherever it lies, such as an attention head, needs fewer of them.

    Args:
        groups: of the handle.
        round_to: the number, >= 1; 1 leaves the sets in which the model's code makes units come and go.
    """
    found = []
    for group in groups:
        entries = math.gcd(*(slot.index.shape[1] for slot in group.slots)) or round_to  # branches have no width
        found.append(math.lcm(group.multiple, round_to // math.gcd(round_to, entries)))
    return found


def numbers_of_sets(scores: Tensor, sizes: Sequence[int], multiples: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Put the units of each group into sets of equal size, the highest scores together.

    A group whose units come one by one has as many sets as units, in their order. Units that fill no set belong to
    none, but a group that is smaller than a set is one.

    Args:
        scores: (gates,).
        sizes: units of each group.
        multiples: units of a set, for each group.

    Returns:
        Number of the set of each unit, int64 (gates,), counted over all groups, and the number of all sets for units
        that belong to none; and how many sets each group has.

    Example:
        >>> numbers_of_sets(torch.tensor([1.0, 4.0, 3.0, 2.0, 5.0]), [4, 1], [2, 1])
        (tensor([1, 0, 0, 1, 2]), [2, 1])
    """
    counts = [max(1, size // multiple) for size, multiple in zip(sizes, multiples, strict=True)]
    first, numbers = 0, []
    for piece, count, multiple in zip(scores.split(list(sizes)), counts, multiples, strict=True):
        rank = piece.argsort(descending=True, stable=True).argsort() if multiple > 1 else cpu.arange(len(piece))
        own = rank // multiple
        numbers.append(torch.where(own < count, first + own, sum(counts)))
        first += count
    return torch.cat(numbers), counts


def of_sets(scores: Tensor, numbers: Tensor, count: int) -> Tensor:
    """The scores of sets: the sums over their units.

    Args:
        scores: float64 (gates,).
        numbers: int64 (gates,), the number of each unit's set.
        count: of the sets.
    """
    return scores.new_zeros(count + 1).index_add_(0, numbers, scores)[:count]


def of_units(sets: Tensor, numbers: Tensor) -> Tensor:
    """The mask of the units by that of their sets; those that belong to none are closed.

    Args:
        sets: (sets,), bool or float.
        numbers: int64 (gates,), the number of each unit's set.
    """
    return torch.cat([sets, sets.new_zeros(1)])[numbers]


def sets_that_stay(sizes: Sequence[int], multiples: Sequence[int], max_pruning_ratio: float) -> list[int]:
    """How many sets of each group stay at least: one, and those that the units that may not go fill or begin.

    Args:
        sizes: units of each group.
        multiples: units of a set, for each group.
        max_pruning_ratio: share of the units that may go, in [0, 1].

    Example:
        >>> sets_that_stay([10, 10, 500], [1, 4, 8], 0.5)
        [5, 2, 32]
    """
    stay = [math.ceil((1 - max_pruning_ratio) * size - 1e-9) for size in sizes]
    return [max(1, -(-many // multiple)) for many, multiple in zip(stay, multiples, strict=True)]
