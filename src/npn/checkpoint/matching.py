"""Compare a checkpoint with the target model, before anything changes."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from npn._utils.csr import csr_weight
from npn.errors import CheckpointError
from npn.functional import function_name
from npn.modules import absent_paths, input_dim
from npn.plasticity import Plasticity
from npn.structure import Structure, inside, without_branches


def branches_to_remove(path: Any, model: nn.Module, content: Mapping[str, Any]) -> list[str]:
    """Find the branches that the checkpoint has lost and the model still has.

    Args:
        path: source of the content, for the error message.
        model: the target model.
        content: the result of `pack`.

    Returns:
        Their paths.

    Raises:
        CheckpointError: the model has no module at a branch's path, or has itself lost a branch that is in the file.
    """
    back = [branch for branch in absent_paths(model) if any(inside(name, [branch]) for name in content["model"])]
    if back:
        raise CheckpointError(
            f"{path} has the branches {', '.join(back)}, which were removed from this model: a removed branch does not "
            "come back. Build the model anew, attach it as before, and load the file into that. Nothing was loaded"
        )
    gone = [branch for branch in content.get("absent", ()) if branch not in absent_paths(model)]
    for branch in gone:
        if branch not in dict(model.named_modules()):
            raise CheckpointError(
                f"{path} is of a model without its branch {branch!r}, this model has nothing there; nothing was loaded"
            )
    return gone


def matching_tensors(
    path: Any, model: nn.Module, saved: Mapping[str, Any], buffers: Mapping[str, Tensor], gone: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Pair present and saved tensors; names, ranks and dtypes must agree, except inside removed branches.

    Args:
        path: source of the content, for error messages.
        model: the target model.
        saved: saved `state_dict`.
        buffers: saved buffers outside `state_dict`.
        gone: paths of the branches to remove.

    Returns:
        name -> (present, saved) tensor.

    Raises:
        CheckpointError: the tensors do not correspond.
    """
    present = {name: value for name, value in model.state_dict(keep_vars=True).items() if not inside(name, gone)}
    if set(present) != set(saved):
        odd = sorted(set(present) ^ set(saved))[:5]
        raise CheckpointError(
            f"{path} is of another model: {', '.join(odd)} are in one of them only; nothing was loaded"
        )
    unsaved = {name: buffer for name, buffer in model.named_buffers() if name in buffers and not inside(name, gone)}
    pairs = {}
    for name, tensor in (present | unsaved).items():
        value = saved[name] if name in present else buffers[name]
        if not isinstance(value, Tensor) or not isinstance(tensor, Tensor):
            continue
        if value.dim() != tensor.dim() or value.dtype != tensor.dtype:
            raise CheckpointError(
                f"{path} has {name} as {tuple(value.shape)} {value.dtype}, the model as {tuple(tensor.shape)} "
                f"{tensor.dtype}; nothing was loaded"
            )
        pairs[name] = (tensor, value)
    return pairs


def selects(module: nn.Module) -> bool:
    """Whether a module is a layer that selects its inputs, as `npn.modules.materialize_selects` makes them.

    Args:
        module: any module.
    """
    return isinstance(module, fx.GraphModule) and "columns" in module._buffers


def chosen_columns(path: Any, model: nn.Module, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Find the layers of a plain model that must select their inputs, as the saved ones do.

    Args:
        path: source of the content, for the error message.
        model: the target model.
        content: the result of `pack`.

    Returns:
        Path of the layer -> int64 (columns,), positions on its full input axis.

    Raises:
        CheckpointError: the model has no linear or convolution layer at such a path.
    """
    chosen = {layer: content["model"][f"{layer}.columns"] for layer in content.get("selects", ())}
    for entry in content.get("columns", ()):
        if len(entry["kept"]) < entry["full"]:
            chosen[entry["tensor"].rpartition(".")[0]] = entry["kept"]
    modules = dict(model.named_modules())
    chosen = {layer: index for layer, index in chosen.items() if not selects(modules.get(layer, model))}
    for layer in chosen:
        if layer not in modules or input_dim(modules[layer]) is None:
            raise CheckpointError(
                f"{path} has a linear or convolution layer {layer!r} that selects its inputs, the model has none "
                "there; nothing was loaded"
            )
    return chosen


def without_removed_branches(path: Any, plastic: Plasticity, gone: Sequence[str]) -> Structure:
    """The present structure without the branches that the checkpoint has lost.

    Args:
        path: source of the content, for the error message.
        plastic: the target.
        gone: paths of these branches.

    Raises:
        CheckpointError: the model has no gates on these branches.
    """
    branches = plastic.structure.branches
    if not gone:
        return plastic.structure
    if branches is None or not set(gone) <= set(branches.paths):
        raise CheckpointError(
            f"{path} has lost the branches {', '.join(gone)}, on which this model has no gates; build and attach it as "
            "then. Nothing was loaded"
        )
    return without_branches(plastic.structure, {branches.name: [branches.paths.index(branch) for branch in gone]})


def vanishing_gates(plastic: Plasticity, rest: Structure) -> list[Tensor]:
    """Logits, and what is carried along with them, of the gates that go with the branches that the checkpoint has lost.

    Args:
        plastic: the target.
        rest: its structure without these branches.
    """
    gates, left = plastic.gates, {*(part.name for part in rest.parts), *rest.unstructured}
    named = [(group.name, group.gate.logits) for group in gates.groups]
    named += [(gate.name, gate.logits) for gate in gates.weights]
    return [tensor for name, tensor in (*named, *((e.name, e.tensor) for e in gates.carried)) if name not in left]


def saved_structure(path: Any, plastic: Plasticity, content: Mapping[str, Any], rest: Structure) -> Structure:
    """Compute the saved structure from the present one, and check that target and checkpoint correspond.

    Args:
        path: source of the content, for error messages.
        plastic: the target.
        content: the result of `pack`.
        rest: the present structure without the branches that the checkpoint has lost.

    Returns:
        The structure at the saved sizes.

    Raises:
        CheckpointError: gates, groups, optimizers or penalty do not correspond.
    """
    _check_same_gates(path, plastic, content, rest)
    groups = []
    for group, saved in zip(rest.groups, content["groups"], strict=True):
        if [(s["tensor"], s["axis"]) for s in saved["slots"]] != [slot.key for slot in group.slots]:
            raise CheckpointError(
                f"{path}: the units of {group.name!r} live elsewhere in this model; nothing was loaded"
            )
        slots = tuple(replace(a, index=b["index"]) for a, b in zip(group.slots, saved["slots"], strict=True))
        groups.append(replace(group, size=len(slots[0].index), slots=slots))
    saved = content.get("buffers", {}) | content["model"]
    saved_shapes = {name: tuple(t.shape) for name, t in saved.items() if isinstance(t, Tensor)}
    shapes = {name: saved_shapes.get(name, shape) for name, shape in rest.shapes.items()}
    columns = []
    for part, saved in zip(rest.columns, content.get("columns", ()), strict=True):
        columns.append(replace(part, kept=saved["kept"]))
        shape = shapes[part.tensor]
        shapes[part.tensor] = (*shape[: part.axis], saved["full"], *shape[part.axis + 1 :])
    return replace(rest, groups=tuple(groups), shapes=shapes, columns=tuple(columns))


def _check_same_gates(path: Any, plastic: Plasticity, content: Mapping[str, Any], rest: Structure) -> None:
    """Raise unless gates, groups, optimizers and penalty of the target are those of the file, whatever their sizes."""
    if "plastic" not in content:
        raise CheckpointError(f"{path} holds a plain model without gates; load it into the model before npn.attach")
    function = content["plastic"]["function"]
    if function != function_name(plastic.function):
        raise CheckpointError(
            f"{path} has gates of {function}, these are {function_name(plastic.function)}; attach with the same "
            "function"
        )
    names = [part.name for part in rest.parts]
    kinds_of_parts = (content["groups"], content.get("branches", ()), content.get("columns", ()))
    saved_names = [part["name"] for parts in kinds_of_parts for part in parts]
    if names != saved_names:
        raise CheckpointError(
            f"{path} has groups {saved_names}, the model has {names}; "
            "attach it with the same options. Nothing was loaded"
        )
    single = [entry["name"] for entry in content.get("weights", ())]
    if list(rest.unstructured) != single:
        raise CheckpointError(
            f"{path} has gates on the single weights of {single}, the model on those of {list(rest.unstructured)}; "
            "attach it with the same unstructured=. Nothing was loaded"
        )
    kinds = [type(o).__name__ for o in plastic.optimizers]
    saved_kinds = [kind for kind, _ in content["optimizers"]]
    if kinds != saved_kinds:
        raise CheckpointError(
            f"{path} holds optimizers {saved_kinds}, plastic.track was given {kinds}; track the same. "
            "Nothing was loaded"
        )
    copy.deepcopy(plastic.penalty).load_state_dict(content["plastic"]["penalty"])  # raises if it is another kind


def densified(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Replace the sparse weights of a saved model by dense ones.

    Args:
        content: the result of `pack`.

    Returns:
        The content, and the names of the weights that were sparse.
    """
    saved = content["model"]
    sparse = [name for name, value in saved.items() if isinstance(value, Tensor) and value.layout == torch.sparse_csr]
    return {**content, "model": saved | {name: saved[name].to_dense() for name in sparse}}, sparse


def make_sparse(model: nn.Module, names: Sequence[str]) -> None:
    """Replace weights by sparse ones, as `npn.sparse.to_csr` does.

    Args:
        model: changed in place.
        names: of the weights.
    """
    for name in names:
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, csr_weight(model.get_parameter(name)))
