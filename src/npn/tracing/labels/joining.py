"""Join labels into units, and decide whether a parameter serves several units or its entries belong to one each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Served:
    """Labels of a parameter or buffer that is combined with units that vary along more axes than it does.

    Attributes:
        own: its labels, squeezed.
        units: labels of what it is combined with, squeezed.
        buffer: it is made of buffers alone.
        where: op and source line.
    """

    own: Tensor
    units: Tensor
    buffer: bool
    where: str

    def alike(self, unit: np.ndarray, among: bool) -> bool:
        """Whether all that share an entry of it are one unit (`among`), or all its entries meet the same units.

        Args:
            unit: int64 (labels,), unit of every label.
            among: which of the two.
        """
        axes = tuple(a for a, n in enumerate(self.units.shape) if n > 1 and (self.own.shape[a] == 1) == among)
        found = unit[self.units.numpy()]
        low = np.where(found > 0, found, len(unit)).min(axes, keepdims=True)
        return bool(((found == low) | (found == 0)).all())


def decide(
    total: int, edges: list[tuple[Tensor, Tensor]], served: Sequence[Served]
) -> tuple[np.ndarray, list[tuple[Tensor, str]]]:
    """Decide what serves several units and what belongs to one: first what the edges decide, then the first left.

    Args:
        total: number of labels, including 0.
        edges: certain edges.
        served: what to decide.

    Returns:
        int64 (total,), unit of every label; and labels that are frozen thereby, with reasons.
    """
    frozen: list[tuple[Tensor, str]] = []
    waiting = list(served)
    edges = [distinct_pairs(total, edges)] if edges else []
    while True:
        unit = components(total, edges)
        if not waiting:
            return unit, frozen
        belong = [s for s in waiting if s.alike(unit, among=True)]
        serve = [s for s in waiting if s not in belong and s.alike(unit, among=False)]
        if not belong and not serve:
            (serve if waiting[0].buffer else belong).append(waiting[0])
        for s in belong:
            edges.append(edge(s.own, s.units))
            frozen += [(labels, f"added to zero padding at {s.where}") for labels in unmet(s.own, s.units)]
        for s in serve:
            axes = [a for a, n in enumerate(s.own.shape) if n > 1]
            edges.append(edge(s.units, s.units.amax(axes, keepdim=True)))
            frozen.append((s.own.reshape(-1), f"one table serves several units at {s.where}"))
        waiting = [s for s in waiting if s not in belong and s not in serve]


def unmet(a: Tensor, b: Tensor) -> list[Tensor]:
    """Labels of each tensor where the other one has none, unless it has none there for all units alike.

    Padding along other axes than those of the units, as of time steps or pixels, does not depend on their number.

    Args:
        a, b: labels that broadcast against each other, with stride 0 along axes on which they do not vary.
    """
    found = []
    for labels, other in (torch.broadcast_tensors(a, b), torch.broadcast_tensors(b, a)):
        for axis in range(other.dim()):
            other = other.narrow(axis, 0, 1) if other.stride(axis) == 0 else other
        missing = first = other == 0
        for axis in (axis for axis in range(labels.dim()) if labels.stride(axis) != 0):
            first = first.narrow(axis, 0, 1)
        if bool((missing != first).any()):
            for axis in range(labels.dim()):  # a label that is repeated is looked at once
                if labels.stride(axis) == 0:
                    labels, missing = labels.narrow(axis, 0, 1), missing.any(axis, keepdim=True)
            found.append(labels[missing.expand(labels.shape)])
    return found


def edge(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of elements of two label tensors that broadcast against each other."""
    a, b = torch.broadcast_tensors(a, b)
    return a.reshape(-1), b.reshape(-1)


def components(total: int, edges: Sequence[tuple[Tensor, Tensor]]) -> np.ndarray:
    """Find the connected components of a graph of labels; label 0 joins nothing.

    Repeated minimum over edges with pointer jumping: O(edges log labels), no Python loop over labels.

    Args:
        total: number of labels, including 0.
        edges: pairs of int64 tensors of equal length; an edge joins the entries at one position.

    Returns:
        int64 (total,), smallest label of each label's component.
    """
    unit = np.arange(total)
    if not edges:
        return unit
    a, b = (side.numpy() for side in distinct_pairs(total, edges))
    while True:
        low = np.minimum(unit[a], unit[b])
        before = unit.copy()
        np.minimum.at(unit, unit[a], low)
        np.minimum.at(unit, unit[b], low)
        while True:  # pointer jumping: every label points at its root
            jumped = unit[unit]
            if np.array_equal(jumped, unit):
                break
            unit = jumped
        if np.array_equal(before, unit):
            return unit


def distinct_pairs(total: int, edges: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All edges as one, each pair of labels once, those left out that join nothing.

    Args:
        total, edges: see `components`.
    """
    pieces = [codes[codes > 0] for codes in (_codes(a.numpy(), b.numpy(), total) for a, b in edges)]
    codes = np.sort(np.concatenate(pieces))
    codes = np.concatenate([codes[:1], codes[1:][codes[1:] != codes[:-1]]])
    return torch.from_numpy(codes // total), torch.from_numpy(codes % total)


def _codes(a: np.ndarray, b: np.ndarray, total: int) -> np.ndarray:
    """One number for each pair of labels, the same in either order; 0 where they join nothing, or repeat the last."""
    codes: np.ndarray = np.minimum(a, b) * total + np.maximum(a, b)
    codes[(a == b) | (a == 0) | (b == 0)] = 0
    codes[1:][codes[1:] == codes[:-1]] = 0
    return codes


def distinct(labels: np.ndarray, total: int) -> np.ndarray:
    """The distinct labels in ascending order; in place of `np.unique`, which sorts or hashes them.

    Args:
        labels: of any shape, from 0 to `total` - 1.
        total: number of labels, including 0.
    """
    found = np.zeros(total, dtype=bool)
    found[labels.reshape(-1)] = True
    return np.flatnonzero(found)
