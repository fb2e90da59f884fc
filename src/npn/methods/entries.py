"""Sums over the entries of the model's weights that belong to each unit, without a loop over units."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from npn._utils import cpu
from npn._utils.models import model_tensors
from npn.plasticity import Plasticity
from npn.structure import Branches, Columns, Group

Wanted = Callable[[Tensor, bool], bool]  # (parameter, whether its gate multiplies it) -> whether it counts


class UnitEntries:
    """The entries of some of the model's parameters that belong to each unit.

    Args:
        plastic: the handle of the model.
        wanted: chooses among the parameters that produce a unit, and those of branches and input columns, which the
            gate multiplies.

    Attributes:
        structure: that these entries belong to.
        terms: parameter, axis (None: all of it), positions along the axis and the unit of each.
        counts: (units,), number of positions; the units of groups, branches and columns.
    """

    def __init__(self, plastic: Plasticity, wanted: Wanted) -> None:
        tensors, device = model_tensors(plastic.model), plastic.gates.device
        self.structure = plastic.structure
        self.terms: list[tuple[Tensor, int | None, Tensor, Tensor]] = []
        self.counts = torch.zeros(plastic.structure.units, dtype=torch.float32, device=device)
        for part, start in zip(self.structure.parts, self.structure.firsts, strict=True):
            for name, axis, positions, units in _positions(part):
                if wanted(tensors[name], not isinstance(part, Group)):
                    term = (tensors[name], axis, positions.to(device), (units + start).to(device))
                    self.terms.append(term)
                    self.counts.index_add_(0, term[3], torch.ones(len(units), dtype=torch.float32, device=device))

    def belong_to(self, plastic: Plasticity) -> bool:
        """Whether these are still the entries of the model: neither resized nor moved to another device."""
        return self.structure is plastic.structure and self.counts.device == plastic.gates.device

    def sums(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        """Sum a function of the entries over each unit.

        Args:
            of: elementwise.

        Returns:
            float32 (units,), differentiable in the parameters.
        """
        total = torch.zeros_like(self.counts)
        for tensor, axis, positions, units in self.terms:
            value = of(tensor)
            rest = [a for a in range(value.dim()) if a != axis]
            along = value.sum(rest) if rest else value
            along = along.reshape(1) if axis is None else along.index_select(0, positions)
            total = total.index_add(0, units, along.float())
        return total


def _positions(part: Group | Branches | Columns) -> Iterator[tuple[str, int | None, Tensor, Tensor]]:
    """Tensor, axis, positions along it and their units, of what produces units and of what a gate multiplies."""
    every = cpu.arange(part.size)
    if isinstance(part, Branches):
        for number, names in enumerate(part.scales):
            for name in names:
                yield name, None, every[:1] * 0, every[number : number + 1]
    elif isinstance(part, Columns):
        yield part.tensor, part.axis, every, every
    else:
        for slot in part.slots:
            if not slot.reads:
                units = every.repeat_interleave(slot.index.shape[1])
                yield slot.tensor, slot.axis, slot.index.reshape(-1), units
