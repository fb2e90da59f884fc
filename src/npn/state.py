"""What a checkpoint keeps of the gates."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from npn.errors import ConfigurationError

if TYPE_CHECKING:
    from npn.plasticity import Plasticity


def collect(plastic: "Plasticity") -> dict[str, Any]:
    """Gates, sharpness, penalty and generator, in plain values and tensors."""
    return {
        "function": repr(plastic.function),
        "k": plastic.k,
        "scale": plastic.sharpness.scale,
        "resting": plastic.resting,
        "gates": {group.name: group.gate.state_dict() for group in plastic.groups},
        "penalty": plastic.penalty.state_dict(),
        "generator": plastic.generator.get_state(),
    }


def restore(plastic: "Plasticity", state: Mapping[str, Any]) -> None:
    """Take over what `collect` returned, once it is known to fit.

    Raises:
        ConfigurationError: it does not; nothing was loaded.
    """
    sizes = {group.name: group.size for group in plastic.groups}
    theirs = {name: len(gate["logits"]) for name, gate in state["gates"].items()}
    if sizes != theirs:
        raise ConfigurationError(f"expected gates of {sizes}, got {theirs}; use npn.load, which resizes the model")
    if state["function"] != repr(plastic.function):
        raise ConfigurationError(
            f"the gates were saved with function={state['function']}, these have {plastic.function!r}; "
            "attach with the same"
        )
    plastic.penalty.load_state_dict(state["penalty"])
    plastic.sharpness.k, plastic.sharpness.scale = state["k"], state["scale"]
    plastic.resting = state["resting"]
    for group in plastic.groups:
        group.gate.load_state_dict(state["gates"][group.name])
    plastic.grace_left = max(int(group.gate.grace.max()) for group in plastic.groups)
    plastic.generator.set_state(state["generator"].cpu())
    plastic.hook.reset()
