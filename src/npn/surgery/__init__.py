"""Identity-keeping surgery: resize a model and its optimizers in place. Knows nothing of gates."""

from npn.surgery.apply import Extra, apply_plan, set_data
from npn.surgery.branches import (
    absent_paths,
    apart_from_branches,
    forget_edits,
    inside,
    removal_edits,
    without_branches,
)
from npn.surgery.columns import NEW, completed
from npn.surgery.optimizer import forget_momentum
from npn.surgery.plan import Plan, plan_growth, plan_removal
from npn.surgery.scales import with_branches
from npn.surgery.select import bake, choices, full_length, input_dim, set_select, with_columns
from npn.surgery.verify import check_shapes

__all__ = [
    "NEW",
    "Extra",
    "Plan",
    "absent_paths",
    "apart_from_branches",
    "apply_plan",
    "bake",
    "check_shapes",
    "choices",
    "completed",
    "forget_edits",
    "forget_momentum",
    "full_length",
    "input_dim",
    "inside",
    "plan_growth",
    "plan_removal",
    "removal_edits",
    "set_data",
    "set_select",
    "with_branches",
    "with_columns",
    "without_branches",
]
