"""Units, input columns and branches of a model, and operations on them; knows names and shapes, but no model."""

from npn.structure.branches import inside, removed_paths, without_branch_entries, without_branches
from npn.structure.columns import (
    NEW,
    check_numbers,
    remaining_positions,
    resized_columns,
    selected_columns,
    unit_of_column,
    with_unread_units,
)
from npn.structure.open_sizes import open_sizes
from npn.structure.single_weights import gates_along, with_dead_units
from npn.structure.sizes import difference, match_groups, moved, resized_shapes, unmatched, without_units
from npn.structure.units import (
    LEFT_OUT,
    MIXES,
    NOT_PRODUCED,
    NOT_READ,
    Branches,
    Columns,
    Frozen,
    Group,
    Norm,
    Product,
    Slot,
    Structure,
    gate_of_entries,
)

__all__ = [
    "LEFT_OUT",
    "MIXES",
    "NEW",
    "NOT_PRODUCED",
    "NOT_READ",
    "Branches",
    "Columns",
    "Frozen",
    "Group",
    "Norm",
    "Product",
    "Slot",
    "Structure",
    "check_numbers",
    "difference",
    "gate_of_entries",
    "gates_along",
    "inside",
    "match_groups",
    "moved",
    "open_sizes",
    "remaining_positions",
    "removed_paths",
    "resized_columns",
    "resized_shapes",
    "selected_columns",
    "unit_of_column",
    "unmatched",
    "with_dead_units",
    "with_unread_units",
    "without_branch_entries",
    "without_branches",
    "without_units",
]
