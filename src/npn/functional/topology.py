"""Which units or weights a dropout targets, and sparse topologies that change: drop, grow, density of each layer."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from npn.errors import ConfigurationError


def targeted(magnitude: Tensor, share: float) -> Tensor:
    """The ``floor(share n)`` smallest entries along the last axis.

    Entries equal to the largest targeted one count in the order of their position.

    Args:
        magnitude: (..., n), >= 0.
        share: in [0, 1].

    Returns:
        bool (..., n).

    Raises:
        ConfigurationError: the share lies outside [0, 1].

    Example:
        >>> targeted(torch.tensor([[3.0, 1.0, 2.0, 5.0], [1.0, 4.0, 3.0, 2.0]]), 0.5)
        tensor([[False,  True,  True, False],
                [ True, False, False,  True]])

    References:
        Gomez et al., "Learning Sparse Networks Using Targeted Dropout", 2019, Eq. 1, 2.
    """
    if not 0 <= share <= 1:  # also refuses NaN
        raise ConfigurationError(f"share must lie in [0, 1], got {share!r}")
    return smallest(magnitude, rounded_down(share * magnitude.shape[-1]))


def smallest(magnitude: Tensor, count: int) -> Tensor:
    """The ``count`` smallest entries along the last axis, bool (..., n); of equal ones the first.

    Args:
        magnitude: (..., n).
        count: from 0 to n.
    """
    if count == 0:
        return torch.zeros_like(magnitude, dtype=torch.bool)
    # a stable sort of every row would cost four times as much
    last = magnitude.topk(count, dim=-1, largest=False, sorted=False).values.amax(-1, keepdim=True)
    below, ties = magnitude < last, magnitude == last
    return below | (ties & (ties.cumsum(-1) <= count - below.sum(-1, keepdim=True)))


def rounded_down(count: float) -> int:
    """The whole part of a product such as 0.7 * 10, which is just below 7 in binary."""
    return math.floor(count + 1e-9)


def cosine_share(share: float, t: float) -> float:
    """The share of weights to replace at a fraction t of the training: ``share / 2 (1 + cos(pi t))``, 0 from t = 1 on.

    Args:
        share: at t = 0.
        t: >= 0.

    Returns:
        The share, in [0, share].

    Example:
        >>> [round(cosine_share(0.3, t), 4) for t in (0.0, 0.5, 1.0, 2.0)]
        [0.3, 0.15, 0.0, 0.0]

    References:
        Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020, Section 3(2).
    """
    return share / 2 * (1 + math.cos(math.pi * min(t, 1.0)))


def replaced(mask: Tensor, magnitude: Tensor, promise: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Drop the share of active weights of least magnitude, and grow as many inactive ones of the largest promise.

    A weight that has just been dropped may grow again if its promise ranks; the number of active weights stays.

    Args:
        mask: bool, any shape, active weights.
        magnitude: same shape, |w|.
        promise: same shape: |dL/dw| (RigL) or random numbers (SET).
        share: of the active weights, in [0, 1].

    Returns:
        The new mask, and which of its weights were grown (those that were dropped and grew again included).

    Example:
        >>> mask = torch.tensor([True, True, True, True, False, False])
        >>> magnitude = torch.tensor([0.1, 4.0, 3.0, 0.2, 0.0, 0.0])
        >>> replaced(mask, magnitude, torch.tensor([0.0, 9.0, 0.0, 5.0, 1.0, 2.0]), 0.5)
        (tensor([False,  True,  True,  True, False,  True]), tensor([False, False, False,  True, False,  True]))

    References:
        Evci et al., ICML 2020, Algorithm 1; Mocanu et al., "Scalable Training of Artificial Neural Networks with
        Adaptive Sparse Connectivity inspired by Network Science", Nature Communications 2018.
    """
    flat = mask.reshape(-1)
    active = int(flat.sum())
    count = min(rounded_down(share * active), flat.numel() - active)
    low = torch.where(flat, magnitude.reshape(-1), torch.inf)
    dropped = low.argsort(stable=True)[:count]
    rest = flat.index_fill(0, dropped, False)
    high = torch.where(rest, -torch.inf, promise.reshape(-1))
    grown = torch.zeros_like(flat).index_fill_(0, high.argsort(descending=True, stable=True)[:count], True)
    return (rest | grown).view_as(mask), grown.view_as(mask)


def layer_densities(shapes: Mapping[str, Sequence[int]], density: float, distribution: str = "erk") -> dict[str, float]:
    """The density of each layer, for one density of them all.

    ``"erk"``: proportional to ``(in + out + kh + kw) / (in out kh kw)``; a layer that would exceed 1 is dense, and the
    factor of the others rises. ``"uniform"``: the same everywhere.

    Args:
        shapes: name -> (out, in, *kernel).
        density: active share of all weights, in (0, 1].
        distribution: "erk" or "uniform".

    Returns:
        name -> density, in (0, 1].

    Raises:
        ConfigurationError: the distribution is unknown, or the density outside its range.

    Example:
        >>> found = layer_densities({"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}, 0.1)
        >>> {name: round(value, 4) for name, value in found.items()}
        {'fc1': 0.0796, 'fc2': 0.2302, 'fc3': 1.0}

    References:
        Evci et al., ICML 2020, Section 3(1).
    """
    if distribution not in ("erk", "uniform"):
        raise ConfigurationError(f'distribution must be "erk" or "uniform", got {distribution!r}')
    if not 0 < density <= 1:
        raise ConfigurationError(f"density must lie in (0, 1], got {density!r}")
    if distribution == "uniform":
        return dict.fromkeys(shapes, density)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        left = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        factor = left / sum(raw[name] * sizes[name] for name in rest) if rest else 0.0
        over = {name for name in rest if factor * raw[name] > 1}
        if not over:
            return {name: 1.0 if name in dense else factor * raw[name] for name in shapes}
        dense.add(max(over, key=lambda name: raw[name]))
