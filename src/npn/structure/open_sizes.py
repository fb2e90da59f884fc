"""Sizes of the groups after the closed units are removed."""

from collections.abc import Mapping, Sequence

import torch

from npn._utils import cpu
from npn.functional.columns import effective_gates
from npn.structure.branches import without_branch_entries, without_branches
from npn.structure.columns import unit_of_column, with_unread_units
from npn.structure.structure import Structure
from npn.structure.units import remaining


def open_sizes(structure: Structure, closed: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Count the units, branches and columns that remain after everything closed is removed.

    Args:
        structure: the present structure.
        closed: name -> numbers of the closed gates.

    Returns:
        Sizes by name; 0 for a group whose every unit is removed with closed branches.
    """
    left = without_branches(structure, closed)
    gone = with_unread_units(left, without_branch_entries(left, closed))
    gates = torch.cat([*(remaining(part.size, gone.get(part.name, [])).float() for part in left.parts), cpu.zeros(0)])
    pieces = effective_gates(gates, unit_of_column(left)).split([part.size for part in left.parts])
    sizes = {part.name: int(piece.sum()) for part, piece in zip(left.parts, pieces, strict=True)}
    return {part.name: sizes.get(part.name, 0) for part in structure.parts}
