"""Single input columns of a layer: the unit that feeds each, and their positions after units are removed or added."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from npn._utils import cpu
from npn.errors import ResizeError
from npn.structure.structure import Structure, gate_of_entries
from npn.structure.units import Branches, Columns, Group

NEW = -1  # marks a new entry, which has no old position


def with_unread_units(structure: Structure, removed: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Add the units that become unread to the units and columns that are to be removed.

    If every weight that reads a group has gates on its columns, a unit is removed with the last column that reads it.
    The columns of a removed unit are not listed; they are removed with the unit. One unit of each group stays: the
    first that was not requested.

    Args:
        structure: the present structure.
        removed: name of a group or of columns -> numbers to remove.

    Returns:
        name -> sorted numbers to remove.

    Raises:
        ResizeError: a name or number is unknown.
    """
    check_numbers(structure, removed)
    done = {name: sorted(set(numbers)) for name, numbers in removed.items() if len(numbers)}
    by_key = {columns.key: columns for columns in structure.columns}
    for group in structure.groups if by_key else ():
        readers = [slot for slot in group.slots if slot.reads]
        if group.normed or not all(slot.key in by_key for slot in readers):
            continue  # a norm reads all of its units
        read = cpu.zeros(group.size, dtype=torch.bool)
        for slot in readers:
            read |= remaining_positions(by_key[slot.key], structure, removed)[slot.index].any(1)
        asked = set(done.get(group.name, ()))
        unread = [unit for unit in (~read).nonzero().reshape(-1).tolist() if unit not in asked]
        if len(unread) + len(asked) == group.size:
            unread = unread[1:]
        unread = unread[: len(unread) // group.multiple * group.multiple]  # the others stay, unread
        if unread:
            done[group.name] = sorted(asked | set(unread))
    return done


def remaining_positions(columns: Columns, structure: Structure, removed: Mapping[str, Sequence[int]]) -> Tensor:
    """Mark the positions of a layer's input axis that remain after columns are removed by their own gates.

    Args:
        columns: the columns of the layer.
        structure: the present structure.
        removed: name -> numbers to remove; only the entry of these columns counts.

    Returns:
        bool (full length,), True where a column remains.
    """
    there = cpu.zeros(structure.shapes[columns.tensor][columns.axis], dtype=torch.bool)
    there[columns.kept] = True
    there[columns.kept[list(removed.get(columns.name, ()))]] = False
    return there


def resized_columns(columns: Columns, source: Tensor, there: Tensor) -> tuple[Columns, Tensor, Tensor]:
    """Compute a layer's columns after a resize of its full input axis.

    Args:
        columns: the present columns.
        source: int64 (new length,), old position of each new position of the full axis, `NEW` where there is none.
        there: bool (old length,), see `remaining_positions`.

    Returns:
        The columns at their new positions, the old column of each of them (`NEW` where there is none), and the columns
        that must read zero: if no column would remain, one closed column stays, since a layer has to read something.

    Raises:
        ResizeError: no column would remain, because every unit that stays lost its columns earlier.
    """
    fresh = source == NEW
    survives = fresh | there[source.clamp(min=0)]
    must_be_zero = cpu.zeros(0, dtype=torch.long)
    if not bool(survives.any()):
        existed = torch.zeros_like(there)
        existed[columns.kept] = True
        candidates = existed[source].nonzero().reshape(-1)
        if not len(candidates):
            raise ResizeError(
                f"nothing would be left of {columns.name!r}: every unit that stays has lost its columns before. Keep "
                "another unit"
            )
        survives[candidates[0]] = True
        must_be_zero = cpu.zeros(1, dtype=torch.long)
    kept = survives.nonzero().reshape(-1)
    rank = cpu.full((len(there),), NEW)
    rank[columns.kept] = cpu.arange(columns.size)
    behind = torch.where(fresh[kept], NEW, rank[source[kept].clamp(min=0)])
    return replace(columns, kept=kept), behind, must_be_zero


def check_numbers(structure: Structure, removed: Mapping[str, Sequence[int]]) -> None:
    """Raise unless every name is that of a group, of the branches or of columns, and every number lies in its range.

    Args:
        structure: the present structure.
        removed: name -> numbers.

    Raises:
        ResizeError: a name or number is unknown; the message names the first one.
    """
    named: dict[str, Group | Branches | Columns] = {part.name: part for part in structure.parts}
    for name, numbers in removed.items():
        if name not in named:
            raise ResizeError(f"no group {name!r}; the model has: {', '.join(named)}")
        size = named[name].size
        wrong = [number for number in numbers if not 0 <= number < size]
        if wrong:
            raise ResizeError(f"group {name!r} has units 0 to {size - 1}, cannot remove {wrong}")


def unit_of_column(structure: Structure) -> Tensor | None:
    """Find the unit that feeds each gated column.

    Args:
        structure: the structure.

    Returns:
        int64 (columns,), number of the unit; the number of all units where no unit feeds the column. None for a
        structure without gates on columns.
    """
    if not structure.columns:
        return None
    units, keys = structure.gates_before_columns, {columns.key for columns in structure.columns}
    found = gate_of_entries(structure, lambda slot: slot.key in keys, none=units)
    pieces = []
    for columns in structure.columns:
        fed_by_none = cpu.full((structure.shapes[columns.tensor][columns.axis],), units)
        pieces.append(found.get(columns.key, fed_by_none)[columns.kept])
    return torch.cat(pieces)


def selected_columns(structure: Structure) -> dict[str, Tensor | None]:
    """Find the positions that each layer with gates on its columns reads on its full input axis.

    Args:
        structure: the structure.

    Returns:
        Path of the layer -> int64 positions, None if the layer reads all of them.
    """
    return {
        columns.path: columns.kept if columns.size < structure.shapes[columns.tensor][columns.axis] else None
        for columns in structure.columns
    }
