"""What npn puts into a model: an input selection for narrowed layers, a zero for removed branches, gates of inputs."""

from npn.modules.absent import absent, absent_paths, is_absent
from npn.modules.described import described_sizes
from npn.modules.gated import InputGate, gateable, gated_layer
from npn.modules.select import full_length, hook_of, input_dim, materialize_selects, set_select

__all__ = [
    "InputGate",
    "absent",
    "absent_paths",
    "described_sizes",
    "full_length",
    "gateable",
    "gated_layer",
    "hook_of",
    "input_dim",
    "is_absent",
    "materialize_selects",
    "set_select",
]
