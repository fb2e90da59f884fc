"""Units that come and go in sets: what closes is chosen among whole sets, in place of single units."""

from collections.abc import Sequence

import torch
from torch import Tensor


def numbers_of_sets(scores: Tensor, sizes: Sequence[int], multiples: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Put the units of each group into sets of equal size, the highest scores together.

    A group whose units come one by one has as many sets as units, in their order.

    Args:
        scores: (gates,).
        sizes: units of each group.
        multiples: units of a set, for each group; a divisor of its size.

    Returns:
        Number of the set of each unit, int64 (gates,), counted over all groups; and how many sets each group has.

    Example:
        >>> numbers_of_sets(torch.tensor([1.0, 4.0, 3.0, 2.0, 5.0]), [4, 1], [2, 1])
        (tensor([1, 0, 0, 1, 2]), [2, 1])
    """
    counts = [size // multiple for size, multiple in zip(sizes, multiples, strict=True)]
    first, numbers = 0, []
    for piece, count, multiple in zip(scores.split(list(sizes)), counts, multiples, strict=True):
        rank = piece.argsort(descending=True, stable=True).argsort() if multiple > 1 else torch.arange(len(piece))
        numbers.append(first + rank // multiple)
        first += count
    return torch.cat(numbers), counts


def of_sets(scores: Tensor, numbers: Tensor) -> Tensor:
    """The scores of sets: the sums over their units.

    Args:
        scores: float64 (gates,).
        numbers: int64 (gates,), the number of each unit's set.
    """
    return scores.new_zeros(int(numbers.max()) + 1).index_add_(0, numbers, scores)
