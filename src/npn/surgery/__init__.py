"""Identity-keeping surgery: resize a model and its optimizers in place. Knows nothing of gates."""

from npn.surgery.apply import Extra, apply_plan, set_data
from npn.surgery.plan import NEW, Plan, plan_growth, plan_removal
from npn.surgery.verify import check_shapes

__all__ = ["NEW", "Extra", "Plan", "apply_plan", "check_shapes", "plan_growth", "plan_removal", "set_data"]
