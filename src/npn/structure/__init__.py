"""Units, input columns and branches of a model, and operations on them; knows names and shapes, but no model."""

from npn.structure.branches import apart_from_branches, gone_paths, inside, without_branches
from npn.structure.columns import (
    NEW,
    check_numbers,
    completed,
    left,
    narrowed,
    selected_columns,
    unit_of_column,
)
from npn.structure.open_sizes import open_sizes
from npn.structure.sizes import difference, match, moved, resized_shapes, unmatched, without
from npn.structure.units import (
    LEFT_OUT,
    NOT_PRODUCED,
    NOT_READ,
    Branches,
    Columns,
    Frozen,
    Group,
    Slot,
    Structure,
)

__all__ = [
    "LEFT_OUT",
    "NEW",
    "NOT_PRODUCED",
    "NOT_READ",
    "Branches",
    "Columns",
    "Frozen",
    "Group",
    "Slot",
    "Structure",
    "apart_from_branches",
    "check_numbers",
    "completed",
    "difference",
    "gone_paths",
    "inside",
    "left",
    "match",
    "moved",
    "narrowed",
    "open_sizes",
    "resized_shapes",
    "selected_columns",
    "unit_of_column",
    "unmatched",
    "without",
    "without_branches",
]
