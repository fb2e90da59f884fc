"""Label tracing: from a model and an example to the units that can be resized. Knows nothing of gates."""

from npn.tracing.dryrun import trace
from npn.tracing.groups import LEFT_OUT, Branches, Columns, Frozen, Group, Slot, Structure
from npn.tracing.resize import grown

__all__ = ["LEFT_OUT", "Branches", "Columns", "Frozen", "Group", "Slot", "Structure", "grown", "trace"]
