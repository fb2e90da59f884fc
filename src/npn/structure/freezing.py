"""Dimensions that keep their size, and the reasons that other code asks for."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from npn.structure.structure import Frozen, Structure
from npn.structure.units import Key

LEFT_OUT = "left out by only= or skip="  # of units that could have gates
MIXES = "mixes every unit of the axis"  # within the reasons of units that a norm, a mean, ... makes one
NOT_PRODUCED = "no layer of the model produces it"
NOT_READ = "no weight reads it, so a gate would have nothing to close"
READER_GONE = "only a branch that is gone read it"  # of units that may have been removed before


def frozen_axis(places: Sequence[Key], reason: str, size: int) -> Frozen:
    """A frozen dimension, under the name of its first place.

    Args:
        places: tensor name and axis of all places.
        reason: why.
        size: number of entries along the first.
    """
    tensor, axis = places[0]
    return Frozen(f"{tensor}[{axis}]", reason, tuple(places), size)


def freeze(structure: Structure, names: Collection[str], reason: str) -> Structure:
    """The structure with some groups frozen.

    Args:
        structure: with the groups.
        names: of the groups to freeze.
        reason: of all of them.
    """
    gone = [group for group in structure.groups if group.name in names]
    frozen = [frozen_axis([slot.key for slot in group.slots], reason, group.size) for group in gone]
    rest = tuple(group for group in structure.groups if group.name not in names)
    return replace(structure, groups=rest, frozen=(*structure.frozen, *frozen))


def freeze_tensors(structure: Structure, reasons: Mapping[str, str]) -> Structure:
    """The structure with the groups frozen that lie in some tensors.

    Args:
        structure: with the groups.
        reasons: name of a tensor -> why the groups in it keep their size.
    """
    for tensor, reason in reasons.items():
        names = [group.name for group in structure.groups if any(slot.tensor == tensor for slot in group.slots)]
        structure = freeze(structure, names, reason)
    return structure


def leave_out(structure: Structure, kept: Collection[str]) -> Structure:
    """The structure with the groups alone that a user wants; the others are frozen under their own names.

    Args:
        structure: with all groups.
        kept: names of those that stay.
    """
    out = [group for group in structure.groups if group.name not in kept]
    frozen = [Frozen(group.name, LEFT_OUT, tuple(slot.key for slot in group.slots), group.size) for group in out]
    groups = tuple(group for group in structure.groups if group.name in kept)
    return replace(structure, groups=groups, frozen=(*structure.frozen, *frozen))
