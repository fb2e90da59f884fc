"""Label tracing: from a model and an example to the units that can be resized. Knows nothing of gates."""

from npn.tracing.dryrun import trace
from npn.tracing.groups import Branches, Columns, Frozen, Group, Slot, Structure
from npn.tracing.resize import grown

__all__ = ["Branches", "Columns", "Frozen", "Group", "Slot", "Structure", "grown", "trace"]
