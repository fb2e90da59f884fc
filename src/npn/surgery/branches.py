"""Whole branches go: what a structure is without them, and the scalar zero that stands in a removed one's place."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, fx, nn
from torch.optim import Optimizer

from npn.errors import OptimizerError
from npn.tracing import Frozen, Group, Structure

Edit = Callable[[], Callable[[], None]]  # changes something, and returns what puts it back


def absent() -> fx.GraphModule:
    """What is left of a removed branch: a module that returns a scalar zero, whatever it is called with.

    `shortcut(x) + 0` broadcasts, so the code around it stays as it is. There is nothing of npn in it, so an exported
    model can be copied, pickled and exported where npn is not installed.

    Example:
        >>> import torch
        >>> absent()(torch.ones(2, 3))
        tensor(0.)
    """
    graph = fx.Graph()
    first = graph.placeholder("input")
    graph.placeholder("*rest")
    graph.placeholder("**options")
    graph.output(graph.call_method("new_zeros", (first, ())))
    return fx.GraphModule(nn.Module(), graph, "Absent")


def is_absent(module: nn.Module) -> bool:
    """Whether a module is what `absent` returned, or a copy of it."""
    return isinstance(module, fx.GraphModule) and [str(n.target) for n in module.graph.nodes] == _NODES


_NODES = ["input", "*rest", "**options", "new_zeros", "output"]


def absent_paths(model: nn.Module) -> list[str]:
    """Paths of the branches that have gone."""
    return [path for path, module in model.named_modules() if is_absent(module)]


def inside(name: str, paths: Iterable[str]) -> bool:
    """Whether a tensor or module of that name lives in one of the submodules."""
    return any(f"{name}.".startswith(f"{path}.") for path in paths)


def without_branches(structure: Structure, removed: Mapping[str, Sequence[int]]) -> Structure:
    """The structure without some branches, and without what they alone had.

    A group that lived wholly inside them vanishes. So does one that nothing reads any more; it counts as frozen.

    Args:
        removed: name -> numbers, those of branches among them.
    """
    branches = structure.branches
    numbers = set(removed.get(branches.name, ())) if branches is not None else set()
    if branches is None or not numbers:
        return structure
    paths = [path for i, path in enumerate(branches.paths) if i in numbers]
    stay = [i for i in range(branches.size) if i not in numbers]
    frozen = [
        replace(entry, slots=tuple(key for key in entry.slots if not inside(key[0], paths)))
        for entry in structure.frozen
        if not entry.slots or not all(inside(tensor, paths) for tensor, _ in entry.slots)
    ]
    groups: list[Group] = []
    for group in structure.groups:
        slots = tuple(slot for slot in group.slots if not inside(slot.tensor, paths))
        attributes = tuple(entry for entry in group.attributes if not inside(entry[0], paths))
        if any(slot.reads for slot in slots):
            groups.append(replace(group, slots=slots, attributes=attributes))
        elif slots:
            frozen.append(
                Frozen(group.name, "only a branch that is gone read it", tuple(s.key for s in slots), group.size)
            )
    return replace(
        structure,
        groups=tuple(groups),
        frozen=tuple(frozen),
        shapes={name: shape for name, shape in structure.shapes.items() if not inside(name, paths)},
        positions={name: count for name, count in structure.positions.items() if not inside(name, paths)},
        columns=tuple(columns for columns in structure.columns if not inside(columns.tensor, paths)),
        branches=replace(
            branches,
            paths=tuple(branches.paths[i] for i in stay),
            scales=tuple(branches.scales[i] for i in stay),
        ),
    )


def apart_from_branches(structure: Structure, removed: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Of what is to go, that which belongs to groups and columns of this structure."""
    names = {part.name for part in structure.parts if part is not structure.branches}
    return {name: numbers for name, numbers in removed.items() if name in names}


def gone_paths(before: Structure, after: Structure) -> list[str]:
    """Paths of the branches that one structure has and the other has not."""
    if before.branches is None or after.branches is None:
        return []
    return [path for path in before.branches.paths if path not in after.branches.paths]


def removal_edits(model: nn.Module, paths: Sequence[str], optimizers: Sequence[Optimizer]) -> list[Edit]:
    """Put `absent` in the place of submodules, and let the optimizers forget their parameters.

    Raises:
        OptimizerError: an optimizer keeps state that does not belong to single parameters.
    """
    gone = [p for path in paths for p in model.get_submodule(path).parameters()]
    return [partial(_replace_module, model, path) for path in paths] + forget_edits(optimizers, gone)


def forget_edits(optimizers: Sequence[Optimizer], gone: Collection[Tensor]) -> list[Edit]:
    """Take parameters out of the optimizers' groups and state; a group may be left empty.

    Raises:
        OptimizerError: see `removal_edits`.
    """
    ids = {id(p) for p in gone}
    edits: list[Edit] = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if not any(id(p) in ids for p in group["params"]):
                continue
            if isinstance(optimizer, torch.optim.LBFGS) and optimizer.state:
                raise OptimizerError(
                    "LBFGS keeps one flat history of all its parameters, from which a branch cannot be taken; use an "
                    "optimizer with elementwise state, or clear its state before resizing"
                )
            edits.append(partial(_forget, optimizer, group["params"], ids))
    return edits


def _replace_module(model: nn.Module, path: str) -> Callable[[], None]:
    parent, _, leaf = path.rpartition(".")
    children = model.get_submodule(parent)._modules
    before = children[leaf]
    assert before is not None
    children[leaf] = absent().train(before.training)
    return partial(children.__setitem__, leaf, before)


def _forget(optimizer: Optimizer, parameters: list[Tensor], ids: set[int]) -> Callable[[], None]:
    before, states = (
        list(parameters),
        {p: optimizer.state[p] for p in parameters if id(p) in ids and p in optimizer.state},
    )

    def undo() -> None:
        parameters[:] = before
        optimizer.state.update(states)

    parameters[:] = [p for p in before if id(p) not in ids]
    for p in states:
        del optimizer.state[p]
    return undo
