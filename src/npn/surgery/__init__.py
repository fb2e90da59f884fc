"""Resize a model and its optimizers in place; every Parameter object keeps its identity. Knows nothing of gates."""

from npn.surgery.apply import Extra, apply_plan
from npn.surgery.branches import forget_edits, removal_edits
from npn.surgery.edits import Edit, carry_out, renew_places, replace_data, select_columns, set_attribute
from npn.surgery.initial import INITS, ZERO, Finish, Start, checked_init, fan_out, start
from npn.surgery.optimizer import forget_momentum, held_by, new_entries, unmovable, weight_copies
from npn.surgery.plan import Plan, plan_growth, plan_removal
from npn.surgery.report import ResizeReport, combined, report
from npn.surgery.verify import check_shapes

__all__ = [
    "INITS",
    "ZERO",
    "Edit",
    "Extra",
    "Finish",
    "Plan",
    "ResizeReport",
    "Start",
    "apply_plan",
    "carry_out",
    "check_shapes",
    "checked_init",
    "combined",
    "fan_out",
    "forget_edits",
    "forget_momentum",
    "held_by",
    "new_entries",
    "plan_growth",
    "plan_removal",
    "removal_edits",
    "renew_places",
    "replace_data",
    "report",
    "select_columns",
    "set_attribute",
    "start",
    "unmovable",
    "weight_copies",
]
