"""The states that a checkpoint holds beside the model's: of optimizers, schedules, methods and random generators."""

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

from torch.optim import Optimizer

from npn._utils.rng import load_rng_state_dict, preserved_rng
from npn.errors import CheckpointError
from npn.plasticity import Plasticity
from npn.surgery import Edit


class Stateful(Protocol):
    """An object with a state: a `Schedule`, a `Growth`, a learning rate scheduler, a `GradScaler`."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Any, /) -> Any: ...


def check_rng_state(path: Any, state: Mapping[str, Any]) -> None:
    """Raise unless the states of the random generators of the CPU can be restored; they stay what they are.

    Args:
        path: source of the states, for the error message.
        state: of `rng_state_dict`.

    Raises:
        CheckpointError: they cannot.
    """
    try:
        with preserved_rng():
            load_rng_state_dict({kind: each for kind, each in state.items() if kind != "cuda"})
    except Exception as error:
        raise CheckpointError(
            f"{path} holds states of random generators that cannot be restored ({type(error).__name__}: {error}); it "
            "is damaged. Nothing was loaded; go back to an older file"
        ) from error


def check_decision(plastic: Plasticity, stateful: Iterable[object], call: str) -> None:
    """Raise if a method decides which units stay and its state is not among what is saved or loaded.

    Args:
        plastic: the handle.
        stateful: what is saved or loaded with it.
        call: how that is done, for the error message.

    Raises:
        CheckpointError: it is not.
    """
    decision = plastic.gates.decision
    if decision is not None and not any(thing is decision for thing in stateful):
        raise CheckpointError(
            f"{type(decision).__name__} decides which units stay, and its state is apart from that of the gates; give "
            f"the method as well, as in {call}"
        )


def load_state(path: Any, name: str, thing: Stateful, state: Any) -> Edit:
    """Edit: load the state of an optimizer, a schedule, ...; undone with a copy of its previous state.

    Args:
        path: source of the state, for the error message.
        name: of the object in the file.
        thing: changed in place by the edit.
        state: its saved state.
    """

    def edit() -> Callable[[], Any]:
        undo: Callable[[], Any]
        if isinstance(thing, Optimizer):  # loading replaces its attributes, so a shallow copy suffices
            undo = partial(vars(thing).update, dict(vars(thing)))
        else:
            undo = partial(thing.load_state_dict, copy.deepcopy(thing.state_dict()))
        try:
            thing.load_state_dict(state)
        except Exception as error:
            undo()
            raise CheckpointError(
                f"{path} holds a state of {name!r} that the given {type(thing).__name__} refuses: {error}; build it as "
                "the saved one was. Nothing was loaded"
            ) from error
        return undo

    return edit
