"""Units, input columns and branches of a model, and operations on them; knows names and shapes, but no model."""

from npn.structure.branches import inside, inside_branches, removed_paths, without_branch_entries, without_branches
from npn.structure.columns import (
    NEW,
    check_numbers,
    remaining_positions,
    resized_columns,
    selected_columns,
    unit_of_column,
    with_unread_units,
)
from npn.structure.freezing import (
    LEFT_OUT,
    MIXES,
    NOT_PRODUCED,
    NOT_READ,
    READER_GONE,
    freeze,
    freeze_tensors,
    frozen_axis,
    leave_out,
)
from npn.structure.open_sizes import open_sizes
from npn.structure.single_weights import gates_along, output_axis, with_dead_units
from npn.structure.sizes import (
    difference,
    match_groups,
    moved,
    other_ops,
    other_outputs,
    resized_shapes,
    unmatched,
    without_units,
)
from npn.structure.structure import Decisions, Frozen, Norm, Product, Structure, gate_of_entries
from npn.structure.units import Branches, Columns, Group, Key, Slot

__all__ = [
    "LEFT_OUT",
    "MIXES",
    "NEW",
    "NOT_PRODUCED",
    "NOT_READ",
    "READER_GONE",
    "Branches",
    "Columns",
    "Decisions",
    "Frozen",
    "Group",
    "Key",
    "Norm",
    "Product",
    "Slot",
    "Structure",
    "check_numbers",
    "difference",
    "freeze",
    "freeze_tensors",
    "frozen_axis",
    "gate_of_entries",
    "gates_along",
    "inside",
    "inside_branches",
    "leave_out",
    "match_groups",
    "moved",
    "open_sizes",
    "other_ops",
    "other_outputs",
    "output_axis",
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
