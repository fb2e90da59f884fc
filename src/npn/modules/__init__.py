"""What npn puts into a model: selections and gates of inputs, zeros for removed branches, attention in plain layers."""

from npn.modules.absent import absent, absent_paths
from npn.modules.attention import UnfusedAttention
from npn.modules.described import described_sizes
from npn.modules.gated import InputGate, gated_layer
from npn.modules.integers import assigned, holding, increased, integers, parsed, replaced, shared_objects
from npn.modules.select import full_length, hook_of, input_dim, materialize_selects, set_select
from npn.modules.unfuse import fuse, unfuse

__all__ = [
    "InputGate",
    "UnfusedAttention",
    "absent",
    "absent_paths",
    "assigned",
    "described_sizes",
    "full_length",
    "fuse",
    "gated_layer",
    "holding",
    "hook_of",
    "increased",
    "input_dim",
    "integers",
    "materialize_selects",
    "parsed",
    "replaced",
    "set_select",
    "shared_objects",
    "unfuse",
]
