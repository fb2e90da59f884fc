"""Whether saved gates are those of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

from npn._utils.validation import complete_state
from npn.errors import ConfigurationError


def check_state(own: Mapping[str, Any], state: Mapping[str, Any], also: Sequence[str]) -> None:
    """Raise unless a state belongs to gates with the same names, sizes and function.

    Args:
        own: `Gates.state_dict` of the gates that are to load it.
        state: the state to load.
        also: further keys that it must have.

    Raises:
        ConfigurationError: the state is incomplete or belongs to other gates.
    """
    complete_state(state, (*own, *also), "a Plasticity", "plastic", ConfigurationError)
    sizes, theirs = ({name: len(gate["logits"]) for name, gate in each["gates"].items()} for each in (own, state))
    if sizes != theirs:
        raise ConfigurationError(f"expected gates of {sizes}, got {theirs}; use npn.load, which resizes the model")
    shapes, found = (
        {name: tuple(gate["logits"].shape) for name, gate in each.get("weights", {}).items()} for each in (own, state)
    )
    if shapes != found:
        raise ConfigurationError(
            f"expected single-weight gates of {shapes}, got {found}; attach with the same unstructured=, and use "
            "npn.load, which resizes the model"
        )
    if state["function"] != own["function"]:
        raise ConfigurationError(
            f"the gates were saved with function={state['function']}, these have {own['function']}; "
            "attach with the same"
        )
