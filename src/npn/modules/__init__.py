"""Modules and hooks that npn puts into a model: an input selection for narrowed layers, a zero for removed branches."""

from npn.modules.absent import absent, absent_paths, is_absent
from npn.modules.described import described_sizes
from npn.modules.select import full_length, hook_of, input_dim, materialize_selects, set_select

__all__ = [
    "absent",
    "absent_paths",
    "described_sizes",
    "full_length",
    "hook_of",
    "input_dim",
    "is_absent",
    "materialize_selects",
    "set_select",
]
