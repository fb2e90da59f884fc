"""Plan a resize: the old position of each kept entry of every tensor, and the positions that are new."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from npn._utils import cpu
from npn.errors import ResizeError
from npn.structure import (
    NEW,
    Columns,
    Structure,
    check_numbers,
    remaining_positions,
    resized_columns,
    with_unread_units,
    without_branch_entries,
    without_branches,
    without_units,
)

Sources = dict[str, dict[int, Tensor]]


@dataclass(frozen=True)
class Plan:
    """A resize, computed completely before anything changes.

    Attributes:
        before, after: the structures.
        units: name of each group, branches or columns that change -> int64 (new size,), old number of each unit, `NEW`
            where there is none; empty for a group that vanishes with a branch.
        sources: tensor name -> axis -> int64 (new length,), old position of each new position, `NEW` where there is
            none.
        zeroed: tensor name -> axis -> positions that read new units and start at zero.
        attributes: (module path, attribute, change of its value).
    """

    before: Structure
    after: Structure
    units: Mapping[str, Tensor]
    sources: Mapping[str, Mapping[int, Tensor]]
    zeroed: Mapping[str, Mapping[int, Tensor]]
    attributes: tuple[tuple[str, str, int], ...]


def plan_removal(
    structure: Structure,
    removed: Mapping[str, Sequence[int]],
    retraced: Callable[[Structure, Mapping[str, int]], Structure] | None = None,
) -> Plan:
    """Plan to remove units, branches and columns, together with everything that only they used.

    See `npn.structure.with_unread_units` and `npn.structure.without_branches`.

    Args:
        structure: the present structure.
        removed: name -> numbers to remove; at least one unit of each group and one branch must stay.
        retraced: (structure, group name -> units that go) -> the structure without them, for groups whose units go in
            sets: where the others are then, a re-trace says.

    Returns:
        The plan.

    Raises:
        ResizeError: a group or unit is unknown, or nothing would remain of a group.
    """
    check_numbers(structure, removed)
    rest = without_branches(structure, removed)
    gone = with_unread_units(rest, without_branch_entries(rest, removed))
    units = {}
    for group in rest.groups:
        stay = sorted(set(range(group.size)) - set(gone.get(group.name, ())))
        if not stay:
            raise ResizeError(f"cannot remove all {group.size} units of {group.name!r}: keep at least one")
        if len(stay) < group.size:
            units[group.name] = cpu.tensor(stay)
    after = without_units(rest, {name: gone[name] for name in units})
    sets = [group.name for group in rest.groups if group.multiple > 1 and group.name in units]
    if sets:
        _check_sets(rest, gone)
        if retraced is None:
            raise ResizeError(f"{', '.join(sets)} lose units in sets: a re-trace must say where the others are then")
        after = retraced(rest, {name: len(gone[name]) for name in units})
    plan = make_plan(rest, after, units, gone)
    if rest is structure:
        return plan
    return replace(plan, before=structure, units={**plan.units, **_lost(structure, rest)})


def _check_sets(structure: Structure, removed: Mapping[str, Sequence[int]]) -> None:
    for group in structure.groups:
        count = len(removed.get(group.name, ()))
        if count % group.multiple:
            raise ResizeError(
                f"{group.name!r} loses units in sets of {group.multiple} only, cannot remove {count}; leave the "
                "rest closed"
            )


def _lost(structure: Structure, rest: Structure) -> dict[str, Tensor]:
    """Entries of `Plan.units` for the branches that stay and for the groups that vanish with the others."""
    assert structure.branches is not None and rest.branches is not None
    if not rest.branches.size:
        raise ResizeError(
            f"cannot remove all {structure.branches.size} units of {structure.branches.name!r}: keep at least one"
        )
    names = {part.name for part in rest.parts}
    lost = {part.name: cpu.zeros(0, dtype=torch.long) for part in structure.parts if part.name not in names}
    stay = [i for i, path in enumerate(structure.branches.paths) if path in rest.branches.paths]
    return lost | {structure.branches.name: cpu.tensor(stay)}


def plan_growth(before: Structure, after: Structure) -> Plan:
    """Plan to add units.

    Args:
        before: the present structure.
        after: the structure at the larger sizes, with the old units first in each group.

    Returns:
        The plan.
    """
    units = {}
    for old, new in zip(before.groups, after.groups, strict=True):
        if new.size > old.size:
            units[old.name] = torch.cat([cpu.arange(old.size), cpu.full((new.size - old.size,), NEW)])
    return make_plan(before, after, units, {})


def make_plan(
    before: Structure, after: Structure, units: Mapping[str, Tensor], removed: Mapping[str, Sequence[int]]
) -> Plan:
    """Compute the sources of every axis on which a changed group lies, without columns removed by their own gates.

    Args:
        before: the present structure.
        after: the structure at the new sizes, except for its columns.
        units: group name -> int64 (new size,), old number of each unit, `NEW` where there is none.
        removed: name -> numbers to remove; the entries of columns count.

    Returns:
        The plan.

    Raises:
        ResizeError: nothing would remain of a layer's columns.
    """
    sources: Sources = {}
    zeroed: Sources = {}
    for name, axis in sorted({slot.key for group in before.groups if group.name in units for slot in group.slots}):
        source, zero = _axis(before, after, units, name, axis)
        sources.setdefault(name, {})[axis] = source
        if len(zero):
            zeroed.setdefault(name, {})[axis] = zero
    units, kept = dict(units), []
    for columns in before.columns:
        new = _columns(columns, before, removed, units, sources, zeroed)
        kept.append(new)
    after = replace(after, columns=tuple(kept))
    return Plan(before, after, units, sources, zeroed, _attributes(before, after))


def _axis(
    before: Structure, after: Structure, units: Mapping[str, Tensor], name: str, axis: int
) -> tuple[Tensor, Tensor]:
    """Sources along one axis at its full length, and the positions that read new units."""
    old_size, new_size = before.shapes[name][axis], after.shapes[name][axis]
    source, zeroed = cpu.full((new_size,), NEW), [cpu.zeros(0, dtype=torch.long)]
    old_free, new_free = cpu.ones(old_size, dtype=torch.bool), cpu.ones(new_size, dtype=torch.bool)
    for old, new in zip(before.groups, after.groups, strict=True):
        for a, b in zip(old.slots, new.slots, strict=True):
            if a.key != (name, axis):
                continue
            behind = units.get(old.name, cpu.arange(old.size))
            kept = behind >= 0
            source[b.index[kept].reshape(-1)] = a.index[behind[kept]].reshape(-1)
            old_free[a.index.reshape(-1)] = False
            new_free[b.index.reshape(-1)] = False
            if a.reads:
                zeroed.append(b.index[~kept].reshape(-1))
    if int(old_free.sum()) != int(new_free.sum()):
        raise ResizeError(f"{name}[{axis}] would lose entries that belong to no group; this is a bug in npn")
    source[new_free] = old_free.nonzero().reshape(-1)
    return source, torch.cat(zeroed)


def _columns(
    columns: Columns,
    before: Structure,
    removed: Mapping[str, Sequence[int]],
    units: dict[str, Tensor],
    sources: Sources,
    zeroed: Sources,
) -> Columns:
    """One layer's columns after the resize; restricts the sources of its input axis to the columns that exist."""
    name, axis = columns.key
    full = sources.get(name, {}).get(axis, cpu.arange(before.shapes[name][axis]))
    new, behind, zero = resized_columns(columns, full, remaining_positions(columns, before, removed))
    if len(behind) == columns.size and bool((behind == cpu.arange(columns.size)).all()):
        sources.get(name, {}).pop(axis, None)
        return new
    units[columns.name] = behind
    sources.setdefault(name, {})[axis] = behind
    reads_new = (behind == NEW).nonzero().reshape(-1)
    if len(zero) or len(reads_new):
        zeroed.setdefault(name, {})[axis] = torch.cat([zero, reads_new])
    return new


def _attributes(before: Structure, after: Structure) -> tuple[tuple[str, str, int], ...]:
    """Changes of the integer attributes that follow the groups' sizes."""
    return tuple(
        (path, name, each * (new.size - old.size))
        for old, new in zip(before.groups, after.groups, strict=True)
        for path, name, each in old.attributes
        if new.size != old.size
    )
