"""What a checkpoint keeps of the gates and of randomness."""

import random
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

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
    missing = sorted({"function", "k", "scale", "resting", "gates", "penalty", "generator"} - set(state))
    if missing:
        raise ConfigurationError(
            f"not the state of a Plasticity: it lacks {', '.join(missing)}; give what plastic.state_dict() returned"
        )
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
    _go_on(plastic.generator, state["generator"].cpu())
    plastic.hook.reset()


def _go_on(generator: torch.Generator, saved: Tensor) -> None:
    """On another kind of device, whose generators have other states, from a seed that follows from the saved one."""
    if saved.shape == generator.get_state().shape:
        generator.set_state(saved)
    else:
        generator.manual_seed(zlib.crc32(saved.numpy().tobytes()))


def collect_randomness() -> dict[str, Any]:
    """The state of every random number generator but the gates', in plain values and tensors."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": (
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ),
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_randomness(state: Mapping[str, Any]) -> None:
    """Take over what `collect_randomness` returned; of GPUs, those that are there."""
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        for number, each in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(each, number)
