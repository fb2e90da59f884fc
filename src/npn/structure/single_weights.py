"""Single weights with their own gates: the units on their rows and columns, and units that no weight reads any more."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from npn._utils import cpu
from npn._utils.layout import along
from npn.structure.structure import Structure, gate_of_entries
from npn.structure.units import Columns, Group, remaining


def gates_along(structure: Structure, name: str, axis: int) -> tuple[Tensor, Tensor]:
    """Find the gates that each position along one axis of a parameter depends on.

    Args:
        structure: the structure.
        name: name of the parameter.
        axis: the axis.

    Returns:
        int64 (length in memory,) twice: number of the unit's gate at each position, and of the column's gate;
        `structure.units` where there is none.
    """
    found = gate_of_entries(structure, lambda slot: slot.key == (name, axis))
    unit = found.get((name, axis), cpu.full((structure.shapes[name][axis],), structure.units))
    for columns, start in zip(structure.parts, structure.firsts, strict=True):
        if isinstance(columns, Columns) and columns.key == (name, axis):
            return unit[columns.kept], cpu.arange(start, start + columns.size)
    return unit, torch.full_like(unit, structure.units)


def output_axis(structure: Structure, name: str) -> int | None:
    """The axis of a parameter along which the units lie that it makes: rows of a linear layer, columns of an ``x @ W``.

    Args:
        structure: the structure.
        name: name of the parameter.

    Returns:
        The axis; None where no unit of the structure lies along the parameter.
    """
    slots = [slot for part in structure.parts for slot in part.slots if slot.tensor == name]
    makes = [slot.axis for slot in slots if not slot.reads]
    reads = [slot.axis for slot in slots if slot.reads]
    if makes:
        return makes[0]
    return 1 - reads[0] if reads and reads[0] < 2 else None


def with_dead_units(
    structure: Structure,
    removed: Mapping[str, Sequence[int]],
    gone: Mapping[str, Tensor],
    held: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, list[int]]:
    """Add the units and columns whose every reader is gone to those that are to be removed.

    A weight is gone if its own gate removes it, or if the unit on another axis of it is removed; so a removed unit may
    leave units before it without readers, and these are removed too. A unit read by a parameter without gates on its
    weights stays.

    Args:
        structure: the present structure.
        removed: name -> numbers to remove.
        gone: name of each parameter with one gate per weight -> bool, in its shape: weights that are to be removed.
        held: name -> numbers of units that stay in any case, as those in a grace period.

    Returns:
        name -> sorted numbers to remove; it may name every unit of a group.
    """
    done = {name: set(numbers) for name, numbers in removed.items()}
    left = {name: ~weights.cpu() for name, weights in gone.items()}
    gates_on = {(n, a): gates_along(structure, n, a) for n, w in left.items() for a in range(w.dim())}
    while True:
        stay = [remaining(part.size, list(done.get(part.name, ()))) for part in structure.parts]
        stays = torch.cat([*stay, cpu.ones(1, dtype=torch.bool)])
        for (name, axis), (unit, column) in gates_on.items():
            there = stays[unit] & stays[column]
            left[name] &= along(there, axis, left[name].dim())
        read = cpu.zeros(structure.units + 1, dtype=torch.bool)
        for part, start in zip(structure.parts, structure.firsts, strict=True):
            for slot in part.slots:
                numbers = cpu.arange(start, start + part.size)
                if slot.tensor not in left:
                    read[numbers] |= slot.reads
                elif slot.reads:
                    weights = left[slot.tensor]
                    rest = [a for a in range(weights.dim()) if a != slot.axis]
                    some = weights.any(dim=rest) if rest else weights
                    for gates in gates_on[slot.key]:
                        hit = some & (gates >= start) & (gates < start + part.size)
                        read[gates[hit]] = True
            if part is structure.branches or (isinstance(part, Group) and part.normed):  # a norm reads all of its units
                read[start : start + part.size] = True
            read[[start + unit for unit in (held or {}).get(part.name, ())]] = True
        more = False
        for part, start in zip(structure.parts, structure.firsts, strict=True):
            dead = (~read[start : start + part.size]).nonzero().reshape(-1).tolist()
            known = done.setdefault(part.name, set())
            more |= not known.issuperset(dead)
            known.update(dead)
        if not more:
            return {name: sorted(numbers) for name, numbers in done.items() if numbers}
