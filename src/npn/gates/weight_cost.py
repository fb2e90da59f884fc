"""The expected cost of single weights with their own gates, given the gates of the units on their rows and columns."""

from collections.abc import Mapping

import torch
from torch import Tensor

from npn._utils import cpu
from npn._utils.layout import along
from npn.structure import Structure, gates_along


class WeightCost:
    """Expected cost of the weights with their own gates, under independent gates.

    A weight costs `pi_w`, times the pi of each unit, column and branch that it depends on: if one of them is closed, it
    costs nothing. A unit that a weight depends on twice, such as on the diagonal of a recurrent weight, counts once:
    `E[z_u z_u] = pi_u`.

    Args:
        structure: the structure, with at least one name in `unstructured`.
        weight: kind of cost -> name of the parameter -> cost of one weight.
        device: device of the tables.

    Attributes:
        names: names of the parameters.
    """

    def __init__(self, structure: Structure, weight: Mapping[str, Mapping[str, float]], device: torch.device) -> None:
        self.names = structure.unstructured
        self.weight = {kind: [each[name] for name in self.names] for kind, each in weight.items()}
        shapes, branches = structure.physical(), structure.branches
        first = sum(group.size for group in structure.groups)
        self.shapes = [shapes[name] for name in self.names]
        self._axes: list[list[tuple[int, Tensor, bool]]] = []  # per parameter: axis, gates, whether it reads them
        self._again: list[list[Tensor | None]] = []  # per axis above: where its gate is that of an earlier axis
        self._homes: list[int | None] = []  # the gate of the branch that contains the parameter
        reads = {slot.key for part in structure.parts for slot in part.slots if slot.reads}
        for name, shape in zip(self.names, self.shapes, strict=True):
            axes: list[tuple[int, Tensor, bool]] = []
            again: list[Tensor | None] = []
            for axis in range(len(shape)):
                for gates in gates_along(structure, name, axis):
                    if not bool((gates < structure.units).any()):
                        continue
                    seen = cpu.zeros(shape, dtype=torch.bool)
                    for other, earlier, _ in axes:
                        here, there = along(gates, axis, len(shape)), along(earlier, other, len(shape))
                        seen = seen | ((here == there) & (here < structure.units))
                    again.append(seen.to(device) if bool(seen.any()) else None)
                    axes.append((axis, gates.to(device), (name, axis) in reads))
            self._axes.append(axes)
            self._again.append(again)
            home = None if branches is None else branches.home(name)
            self._homes.append(None if branches is None or home == branches.size else first + int(home or 0))

    def expected(self, kind: str, units: Tensor, single: Tensor, weights: Mapping[str, float] | None = None) -> Tensor:
        """E[cost of these weights], scalar, differentiable.

        Args:
            kind: a key of `weight`; or "layerwise", in which a weight costs its pi times that of the unit it reads; or
                "units", in which it costs nothing.
            units: keep probabilities of all units, branches and columns, one by one.
            single: keep probabilities of all single weights.
            weights: name of the parameter -> factor, for "layerwise".
        """
        total = single.new_zeros(())
        if kind == "units":
            return total
        padded = torch.cat([units, units.new_ones(1)])
        for number, part in enumerate(single.split([torch.Size(shape).numel() for shape in self.shapes])):
            if kind == "layerwise":
                price = 1.0 if weights is None else weights.get(self.names[number], 0.0)
            else:
                price = self.weight[kind][number]
            if price:
                cost = self._open(number, part, padded, only_read=kind == "layerwise")
                home = self._homes[number]
                total = total + price * (cost if home is None else cost * padded[home])
        return total

    def _open(self, number: int, single: Tensor, padded: Tensor, only_read: bool) -> Tensor:
        """Expected number of open weights of one parameter, without its branch."""
        shape = self.shapes[number]
        pi = single.view(shape)
        pairs = zip(self._axes[number], self._again[number], strict=True)
        chosen = [(axis, gates, seen) for (axis, gates, read), seen in pairs if read or not only_read]
        vectors: dict[int, Tensor] = {}
        for axis, gates, seen in chosen:
            factor = padded[gates]
            if seen is not None and not only_read:
                pi = pi * torch.where(seen, 1.0, along(factor, axis, len(shape)))
            else:
                vectors[axis] = vectors[axis] * factor if axis in vectors else factor
        for axis in reversed(range(len(shape))):  # a product with a vector is cheaper than one with its outer product
            pi = pi @ vectors[axis] if axis in vectors else pi.sum(-1)
        return pi
