"""What a resize does to every tensor: where each kept entry comes from and which entries are new."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from npn.errors import ResizeError
from npn.tracing import Group, Structure
from npn.tracing.resize import without

NEW = -1


@dataclass(frozen=True)
class Plan:
    """A resize, worked out whole before anything is touched.

    Attributes:
        before, after: structures.
        units: for each group that changes, the old unit behind each new one, `NEW` where there is none.
        sources: tensor name -> axis -> old position behind each new position, `NEW` where there is none.
        zeroed: tensor name -> axis -> positions that read new units (they start at zero).
        attributes: (module path, attribute, new value).
    """

    before: Structure
    after: Structure
    units: Mapping[str, Tensor]
    sources: Mapping[str, Mapping[int, Tensor]]
    zeroed: Mapping[str, Mapping[int, Tensor]]
    attributes: tuple[tuple[str, str, int], ...]


def plan_removal(structure: Structure, removed: Mapping[str, Sequence[int]]) -> Plan:
    """Plan to remove units.

    Args:
        removed: group name -> unit numbers; at least one unit of each group must stay.

    Raises:
        ResizeError: an unknown group or unit, or nothing would stay.
    """
    units = {}
    for name, gone in removed.items():
        group = _group(structure, name)
        wrong = [u for u in gone if not 0 <= u < group.size]
        if wrong:
            raise ResizeError(f"group {name!r} has units 0 to {group.size - 1}, cannot remove {wrong}")
        stay = [u for u in range(group.size) if u not in set(gone)]
        if not stay:
            raise ResizeError(f"cannot remove all {group.size} units of {name!r}: keep at least one")
        if len(stay) < group.size:
            units[name] = torch.tensor(stay)
    after = without(structure, {n: [u for u in range(_group(structure, n).size) if u not in set(s.tolist())]
                                for n, s in units.items()})  # fmt: skip
    return make_plan(structure, after, units)


def plan_growth(before: Structure, after: Structure) -> Plan:
    """Plan to add units, given the structure at the larger sizes; old units come first in each group."""
    units = {}
    for old, new in zip(before.groups, after.groups, strict=True):
        if new.size > old.size:
            units[old.name] = torch.cat([torch.arange(old.size), torch.full((new.size - old.size,), NEW)])
    return make_plan(before, after, units)


def make_plan(before: Structure, after: Structure, units: Mapping[str, Tensor]) -> Plan:
    """Sources of every axis on which a changed group lives."""
    changed = {slot.key for group in before.groups if group.name in units for slot in group.slots}
    sources: dict[str, dict[int, Tensor]] = {}
    zeroed: dict[str, dict[int, Tensor]] = {}
    for key in sorted(changed):
        name, axis = key
        old_size, new_size = before.shapes[name][axis], after.shapes[name][axis]
        source = torch.full((new_size,), NEW)
        old_free, new_free = torch.ones(old_size, dtype=torch.bool), torch.ones(new_size, dtype=torch.bool)
        for old, new in zip(before.groups, after.groups, strict=True):
            for a, b in zip(old.slots, new.slots, strict=True):
                if a.key != key:
                    continue
                behind = units.get(old.name, torch.arange(old.size))
                kept = behind >= 0
                source[b.index[kept].reshape(-1)] = a.index[behind[kept]].reshape(-1)
                old_free[a.index.reshape(-1)] = False
                new_free[b.index.reshape(-1)] = False
                if a.reads and not bool(kept.all()):
                    zeroed.setdefault(name, {})[axis] = torch.cat(
                        [zeroed.get(name, {}).get(axis, torch.zeros(0, dtype=torch.long)), b.index[~kept].reshape(-1)]
                    )
        if int(old_free.sum()) != int(new_free.sum()):
            raise ResizeError(f"{name}[{axis}] would lose entries that belong to no group; this is a bug in npn")
        source[new_free] = old_free.nonzero().reshape(-1)
        sources.setdefault(name, {})[axis] = source
    return Plan(before, after, dict(units), sources, zeroed, _attributes(before, after))


def _attributes(before: Structure, after: Structure) -> tuple[tuple[str, str, int], ...]:
    return tuple(
        (path, name, each * (new.size - old.size))
        for old, new in zip(before.groups, after.groups, strict=True)
        for path, name, each in old.attributes
        if new.size != old.size
    )


def _group(structure: Structure, name: str) -> Group:
    for group in structure.groups:
        if group.name == name:
            return group
    known = ", ".join(g.name for g in structure.groups)
    raise ResizeError(f"no group {name!r}; the model has: {known}")
