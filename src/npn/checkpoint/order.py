"""The parameters in the groups of tracked optimizers, by name: a file's state goes to those that it belongs to."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from npn.errors import CheckpointError
from npn.optimizers import parameter_names
from npn.plasticity import Plasticity
from npn.structure import inside

OTHER = "a parameter that is not the model's"


def pack_parameters(plastic: Plasticity, lost: Collection[int] = ()) -> list[list[list[str]]]:
    """Name the parameters of all groups of the tracked optimizers, in their order; no two of an optimizer alike.

    Args:
        plastic: the handle.
        lost: `id` of parameters to leave out.
    """
    seen, names = Counter[str](), dict[int, str]()

    def numbered(name: str) -> str:  # of a method, several tensors belong to the gates of one group
        seen[name] += 1
        return name if seen[name] == 1 else f"{name} ({seen[name]})"

    for key, name in parameter_names(plastic.model, plastic.gates).items():
        names[key] = numbered(name)
    return [
        [
            [names.get(id(p)) or numbered(OTHER) for p in group["params"] if id(p) not in lost]
            for group in o.param_groups
        ]
        for o in plastic.optimizers
    ]


def in_saved_order(plastic: Plasticity, content: Mapping[str, Any], number: int) -> list[Tensor | None]:
    """The parameters of a tracked optimizer in the order of a file; None where it has none of this name.

    Args:
        plastic: the target.
        content: the result of `npn.checkpoint.pack`.
        number: of the optimizer.
    """
    parameters = [p for group in plastic.optimizers[number].param_groups for p in group["params"]]
    if "parameters" not in content:
        return parameters
    names = [name for group in pack_parameters(plastic)[number] for name in group]
    places = dict(zip(names, parameters, strict=True))
    return [places.get(name) for group in content["parameters"][number] for name in group]


def matching_states(
    path: Any, plastic: Plasticity, content: Mapping[str, Any], gone: Sequence[str], lost: Sequence[Tensor]
) -> list[dict[str, Any]]:
    """The saved states of the optimizers, with the parameters in the order in which the tracked ones have them.

    Files written before parameters had names there keep their order.

    Args:
        path: source of the content, for the error message.
        plastic: the target.
        content: the result of `npn.checkpoint.pack`.
        gone: paths of the branches that the checkpoint has lost.
        lost: tensors of the gates that go with them.

    Raises:
        CheckpointError: a group has other parameters than the saved one.
    """
    states = []
    inner = [p for name, p in plastic.model.named_parameters() if inside(name, gone)]
    ours = pack_parameters(plastic, {id(tensor) for tensor in (*inner, *lost)})
    theirs = content.get("parameters", [None] * len(ours))
    for (kind, state), groups, names in zip(content["optimizers"], ours, theirs, strict=True):
        counts, saved = [len(group) for group in groups], [len(group["params"]) for group in state["param_groups"]]
        if counts != saved:
            raise CheckpointError(
                f"{path} holds {kind} with {saved} parameters in its groups, the tracked one has {counts}; build it "
                "the same way. Nothing was loaded"
            )
        ordered = []
        for number, (group, named) in enumerate(zip(state["param_groups"], names or groups, strict=True)):
            places = dict(zip(named, group["params"], strict=True))
            if odd := sorted(places.keys() ^ set(groups[number])):
                raise CheckpointError(
                    f"{path} holds {kind} with other parameters in its group {number}: {', '.join(odd[:5])} are in one "
                    "of them only; build it the same way. Nothing was loaded"
                )
            ordered.append({**group, "params": [places[name] for name in groups[number]]})
        states.append({**state, "param_groups": ordered})
    return states
