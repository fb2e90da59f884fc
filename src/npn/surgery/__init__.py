"""Identity-keeping surgery: resize a model and its optimizers in place. Knows nothing of gates."""

from npn.surgery.apply import Extra, apply_plan, set_data
from npn.surgery.columns import NEW, completed
from npn.surgery.plan import Plan, plan_growth, plan_removal
from npn.surgery.select import bake, choices, full_length, input_dim, set_select, with_columns
from npn.surgery.verify import check_shapes

__all__ = [
    "NEW",
    "Extra",
    "Plan",
    "apply_plan",
    "bake",
    "check_shapes",
    "choices",
    "completed",
    "full_length",
    "input_dim",
    "plan_growth",
    "plan_removal",
    "set_data",
    "set_select",
    "with_columns",
]
