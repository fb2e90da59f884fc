"""Sums over the entries of the model's weights that belong to each unit, without a loop over units."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from npn._utils import cpu
from npn._utils.models import model_tensors
from npn.errors import ConfigurationError
from npn.structure import Branches, Group, Slot, Structure


class Place(NamedTuple):
    """Where units lie in one tensor.

    Attributes:
        tensor: its name.
        axis: along which they lie; None if all of the tensor belongs to one unit.
        positions: int64 (entries,), on the axis as it is in memory.
        units: int64 (entries,), the unit at each position: number of its gate.
        gated: whether the gate multiplies these entries, as with branches and input columns.
    """

    tensor: str
    axis: int | None
    positions: Tensor
    units: Tensor
    gated: bool


class UnitEntries:
    """The entries of some of a model's tensors that belong to each unit.

    Args:
        model: the model.
        structure: its structure.
        places: which entries.
        device: of the sums.

    Attributes:
        structure: the argument.
        terms: tensor, axis (None: all of it), positions along the axis and the unit of each.
        counts: (units,), number of positions, and of entries of whole tensors; the units of groups, branches, columns.
    """

    def __init__(self, model: nn.Module, structure: Structure, places: Iterable[Place], device: torch.device) -> None:
        tensors = model_tensors(model)
        self.structure = structure
        self.terms = [(tensors[p.tensor], p.axis, p.positions.to(device), p.units.to(device)) for p in places]
        self.counts = torch.zeros(structure.units, dtype=torch.float32, device=device)
        for tensor, axis, _, units in self.terms:
            each = torch.full_like(units, tensor.numel() if axis is None else 1, dtype=torch.float32)
            self.counts.index_add_(0, units, each)

    def belong_to(self, structure: Structure, device: torch.device) -> bool:
        """Whether these are still the entries of a model: neither resized nor moved to another device.

        Args:
            structure: the model's present structure.
            device: of the sums that are wanted.
        """
        return self.structure is structure and self.counts.device == device

    def sums(self, of: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
        """Sum a function of the entries over each unit.

        Args:
            of: elementwise; its result is on the device of the sums.
            dtype: of the sums.

        Returns:
            (units,), differentiable in the tensors.
        """
        total = torch.zeros_like(self.counts, dtype=dtype)
        for tensor, axis, positions, units in self.terms:
            value = of(tensor)
            rest = [a for a in range(value.dim()) if a != axis]
            along = value.sum(rest) if rest else value
            along = along.reshape(1) if axis is None else along.index_select(0, positions)
            total = total.index_add(0, units, along.to(dtype))
        return total


def producing(structure: Structure) -> Iterator[Place]:
    """Go through what produces units, and what the gates of branches and input columns multiply.

    Args:
        structure: the structure.
    """
    for part, first in zip(structure.parts, structure.firsts, strict=True):
        units = cpu.arange(first, first + part.size)
        if isinstance(part, Branches):
            yield from (_whole(name, units[i]) for i, names in enumerate(part.scales) for name in names)
        else:
            own = (slot for slot in part.slots if not (isinstance(part, Group) and slot.reads))
            yield from (_along(slot, units, structure, not isinstance(part, Group)) for slot in own)


def all_places(structure: Structure, names: Iterable[str]) -> Iterator[Place]:
    """Go through what produces or reads units, and through all that is inside a branch.

    Args:
        structure: the structure.
        names: of tensors; the others do not count.
    """
    names = dict.fromkeys(names)  # in their order
    for part, first in zip(structure.parts, structure.firsts, strict=True):
        units = cpu.arange(first, first + part.size)
        if isinstance(part, Branches):
            yield from (_whole(name, units[home]) for name in names if (home := part.home(name)) < part.size)
        gated = not isinstance(part, Group)
        yield from (_along(slot, units, structure, gated) for slot in part.slots if slot.tensor in names)


def batchnorm_entries(
    model: nn.Module, structure: Structure, device: torch.device, what: str, advice: str
) -> UnitEntries:
    """The scales of the BatchNorms on each unit; of a branch, those that its gate multiplies.

    Args:
        model: the model.
        structure: its structure.
        device: of the sums.
        what: needs them, for the error message.
        advice: the end of the message.

    Raises:
        ConfigurationError: a unit has no BatchNorm with a scale.
    """
    owned = {id(module.weight) for module in model.modules() if isinstance(module, _BatchNorm) and module.affine}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in owned}
    entries = UnitEntries(model, structure, (p for p in producing(structure) if p.tensor in names), device)
    pieces = zip(structure.parts, entries.counts.split([part.size for part in structure.parts]), strict=True)
    without = [repr(part.name) for part, counts in pieces if not bool(counts.all())]
    if without:
        raise ConfigurationError(
            f"{what} needs a BatchNorm with a scale on every unit, but there is none in {', '.join(without)}; leave "
            f"that out with {advice}"
        )
    return entries


def _whole(name: str, unit: Tensor) -> Place:
    """All of a tensor belongs to one branch, of which `unit` is the number, ()."""
    return Place(name, None, unit.new_zeros(1), unit.reshape(1), gated=True)


def _along(slot: Slot, units: Tensor, structure: Structure, gated: bool) -> Place:
    """The units along an axis, without positions of input columns that are gone."""
    positions, owners = slot.index.reshape(-1), units.repeat_interleave(slot.index.shape[1])
    for columns in structure.columns:
        if columns.key == slot.key:
            rank = cpu.full((structure.shapes[slot.tensor][slot.axis],), -1)
            rank[columns.kept] = cpu.arange(columns.size)
            there = rank[positions] >= 0
            positions, owners = rank[positions][there], owners[there]
    return Place(slot.tensor, slot.axis, positions, owners, gated)
