"""From gates to resizes: the units that a model loses and gains, and the small copy that leaves it."""

from npn.resizing.carrying_out import agree, resize, warn_of_frozen
from npn.resizing.choice import decide, remove_weights, units_to_add, units_to_remove
from npn.resizing.leaving import plain_copy
from npn.resizing.planning import Subject, compaction, growth, removable, removal, start

__all__ = [
    "Subject",
    "agree",
    "compaction",
    "decide",
    "growth",
    "plain_copy",
    "removable",
    "removal",
    "remove_weights",
    "resize",
    "start",
    "units_to_add",
    "units_to_remove",
    "warn_of_frozen",
]
