"""The table from gates to the entries of the weights that they mask."""

from typing import Any

import torch
from torch import Tensor, nn

from npn.functional import effective_gates
from npn.structure import Structure, unit_of_column
from npn.tracing.capture import model_tensors


class MaskTable:
    """The weights of a model that read gated units, and the gate of each of their entries.

    Gates are numbered through all groups, branches and columns, in this order. The gate of a branch multiplies whole
    parameters: its axis is None. The gates of single weights follow.

    Args:
        model: the model.
        structure: its structure.

    Attributes:
        units: number of gates, without those of single weights.
        names, parameters: the masked weights.
        axes: for each weight, the axes along which it is masked.
        sizes: lengths of these axes, in order of weights and axes.
        index: int64 (sum of sizes,), number of each entry's gate; `units` where there is none.
        unit_of_column: see `npn.structure.unit_of_column`.
        single: for each weight, the place of its own gates among those of all single weights; None if it has none.
        device: device of the weights.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        tensors = model_tensors(model)
        self.units = sum(part.size for part in structure.parts)
        single = {part.key for part in structure.columns}
        columns: dict[str, dict[int | None, Tensor]] = {}
        start = 0
        for group in structure.groups:
            for slot in group.slots:
                if slot.reads and slot.key not in single:
                    size = tensors[slot.tensor].shape[slot.axis]
                    owner = columns.setdefault(slot.tensor, {}).setdefault(slot.axis, torch.full((size,), self.units))
                    owner[slot.index] = torch.arange(start, start + group.size)[:, None]
            start += group.size
        for scales in structure.branches.scales if structure.branches is not None else ():
            for name in scales:
                columns.setdefault(name, {})[None] = torch.tensor([start])
            start += 1
        for part in structure.columns:
            columns.setdefault(part.tensor, {})[part.axis] = torch.arange(start, start + part.size)
            start += part.size
        places, start = dict[str, slice](), 0
        for name in structure.unstructured:
            columns.setdefault(name, {})
            places[name] = slice(start, start + tensors[name].numel())
            start = places[name].stop
        self.single = [places.get(name) for name in columns]
        self.names = list(columns)
        self.parameters: list[Tensor] = [tensors[name] for name in columns]
        self._homes = [_home(model, name) for name in columns]
        self.axes = [list(axes) for axes in columns.values()]
        self.device = self.parameters[0].device if self.parameters else torch.device("cpu")
        pieces = [owner for axes in columns.values() for owner in axes.values()]
        self.sizes = [len(piece) for piece in pieces]
        self.index = torch.cat([*pieces, torch.zeros(0, dtype=torch.long)]).to(self.device)
        feeding = unit_of_column(structure)
        self.unit_of_column = None if feeding is None else feeding.to(self.device)

    @property
    def stale(self) -> bool:
        """Whether a parameter was replaced or moved to another device since this table was made."""
        return any(
            home.get(leaf) is not p or p.device != self.device
            for (home, leaf), p in zip(self._homes, self.parameters, strict=True)
        )

    def expand(self, mask: Tensor) -> list[list[Tensor]]:
        """Turn a mask over all gates into factors that broadcast on the weights.

        Args:
            mask: (gates,).

        Returns:
            For each weight, one factor per masked axis, then one in its own shape if its single weights have gates.
        """
        units, single = mask[: self.units], mask[self.units :]
        padded = torch.cat([effective_gates(units, self.unit_of_column), mask.new_ones(1)])
        pieces = iter(padded[self.index].split(self.sizes))
        factors = []
        for parameter, axes, own in zip(self.parameters, self.axes, self.single, strict=True):
            shapes = [[-1 if a == axis else 1 for a in range(parameter.dim())] for axis in axes]
            factors.append([next(pieces).view(shape).to(parameter.dtype) for shape in shapes])
            if own is not None:
                factors[-1].append(single[own].view(parameter.shape).to(parameter.dtype))
        return factors


def _home(model: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The dict in which a module keeps a tensor, and the tensor's key in it."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    return (module._parameters if leaf in module._parameters else module._buffers), leaf
