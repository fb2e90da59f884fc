"""The layout of gated units in a checkpoint, from which a plain model can be loaded without the closed units."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from npn.errors import CheckpointError
from npn.gates.single import packed, unpacked
from npn.plasticity import Plasticity
from npn.structure import LEFT_OUT, READER_GONE, Group
from npn.tracing.capture import model_tensors


def pack_columns(plastic: Plasticity) -> list[dict[str, Any]]:
    """Describe the columns with gates, and which of them are closed.

    Args:
        plastic: the handle to save.
    """
    structure = plastic.structure
    return [
        {
            "name": columns.name,
            "closed": plastic.group(columns.name).gate.closed.cpu(),
            "tensor": columns.tensor,
            "axis": columns.axis,
            "kept": columns.kept,
            "full": structure.shapes[columns.tensor][columns.axis],
        }
        for columns in structure.columns
    ]


def pack_groups(plastic: Plasticity) -> list[dict[str, Any]]:
    """Describe the groups, the positions of their units, and which of them are closed.

    Args:
        plastic: the handle to save.
    """
    return [
        {
            "name": group.name,
            "closed": group.gate.closed.cpu(),
            "slots": [{"tensor": s.tensor, "axis": s.axis, "index": s.index, "reads": s.reads} for s in group.slots],
        }
        for group in plastic.groups
        if isinstance(group.traced, Group)
    ]


def pack_branches(plastic: Plasticity) -> list[dict[str, Any]]:
    """Describe the branches with gates, and which of them are closed.

    Args:
        plastic: the handle to save.
    """
    branches = plastic.structure.branches
    if branches is None:
        return []
    closed = plastic.group(branches.name).gate.closed.cpu()
    scales = [list(names) for names in branches.scales]
    return [{"name": branches.name, "paths": list(branches.paths), "scales": scales, "closed": closed}]


def pack_weights(plastic: Plasticity) -> list[dict[str, Any]]:
    """Describe the parameters with gates on their single weights, and which weights are open, in bits.

    Args:
        plastic: the handle to save.
    """
    return [
        {"name": gate.name, "shape": list(gate.logits.shape), "open": packed(gate.present)}
        for gate in plastic.unstructured.values()
    ]


def pack_buffers(target: nn.Module | Plasticity) -> dict[str, Tensor]:
    """Collect buffers that have units along an axis and that `state_dict` leaves out.

    Args:
        target: a `Plasticity`; or a plain model, of which all floating point buffers outside `state_dict` are
            collected.

    Returns:
        name -> buffer.
    """
    model = target.model if isinstance(target, Plasticity) else target
    found = {name: buffer for name, buffer in model.named_buffers() if buffer.dim() and buffer.is_floating_point()}
    rest = found.keys() - model.state_dict().keys()
    if isinstance(target, Plasticity):
        rest &= {slot.tensor for group in target.structure.groups for slot in group.slots}
    return {name: found[name] for name in sorted(rest)}


def pack_masks(plastic: Plasticity) -> dict[str, Any]:
    """The mask of evaluation where a method's has values between 0 and 1, which a plain model has in its weights.

    Args:
        plastic: the handle to save.

    Returns:
        "gates": (gates,), the mask, in the order of all gates; "needs": the method's name if its export is more than
        the weights times the mask. Empty where closed units tell all.
    """
    decision = plastic.gates.decision
    if decision is None:
        return {}
    mask = decision.evaluation_mask().detach().cpu()
    partial = {"gates": mask} if bool(((mask != 0) & (mask != 1)).any()) else {}
    return partial if decision.folds else partial | {"needs": type(decision).__name__}


def pack_fixed(plastic: Plasticity) -> list[tuple[str, int]]:
    """The tensors and axes that no resize changes: the model's outputs, inputs, and what its code fixes.

    Args:
        plastic: the handle to save.
    """
    never = (entry for entry in plastic.structure.frozen if entry.reason not in (LEFT_OUT, READER_GONE))
    return sorted({key for entry in never for key in entry.slots})


def check_fixed(
    path: Any,
    target: nn.Module | Plasticity,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    known: Sequence[tuple[str, int]] = (),
) -> None:
    """Raise unless axes without units have the saved length.

    Of a plain model these are the windows of convolutions, and those that the file names.

    Args:
        path: source of the content, for the error message.
        target: a model or its `Plasticity`.
        pairs: name -> (present, saved) tensor.
        known: what `pack_fixed` gave.

    Raises:
        CheckpointError: the lengths differ; the message names the first tensor.
    """
    if isinstance(target, Plasticity):
        fixed = {(id(tensor), axis) for tensor, _ in pairs.values() for axis in range(tensor.dim())}
        fixed -= _unit_axes(target)
    else:
        fixed = _windows(target) | {(id(pairs[name][0]), axis) for name, axis in known if name in pairs}
    for name, (tensor, value) in pairs.items():
        for axis, (ours, saved) in enumerate(zip(tensor.shape, value.shape, strict=True)):
            if (id(tensor), axis) in fixed and ours != saved:
                raise CheckpointError(
                    f"{path} has {name} as {tuple(value.shape)}, the model as {tuple(tensor.shape)}; no units live "
                    f"along axis {axis}, so its length cannot change: build the model as the saved one was. "
                    "Nothing was loaded"
                )


def _unit_axes(plastic: Plasticity) -> set[tuple[int, int]]:
    """(id of the tensor, axis) of all units, including those that `only` or `skip` left without gates."""
    structure, tensors = plastic.structure, model_tensors(plastic.model)
    keys = {slot.key for part in structure.parts for slot in part.slots}
    keys |= {key for frozen in structure.frozen if frozen.reason == LEFT_OUT for key in frozen.slots}
    return {(id(tensors[name]), axis) for name, axis in keys if name in tensors}  # some vanished with a branch


def _windows(model: nn.Module) -> set[tuple[int, int]]:
    """(id of the tensor, axis) of the window axes of all convolution kernels."""
    layers = [module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd)]
    return {(id(p), axis) for layer in layers for p in layer.parameters() for axis in range(2, p.dim())}


def fold_mask(model: nn.Module, content: Mapping[str, Any]) -> None:
    """Multiply the weights of a model without gates by the saved mask, if it has values between 0 and 1.

    Args:
        model: changed in place, at the saved sizes.
        content: the result of `pack`.
    """
    mask = content.get("masks", {}).get("gates")
    if mask is None:
        return
    tensors = model_tensors(model)
    columns = {(entry["tensor"], entry["axis"]): entry for entry in content["columns"]}
    branches, weights = content["branches"], content["weights"]
    sizes = [len(group["slots"][0]["index"]) for group in content["groups"]]
    sizes += [len(entry["paths"]) for entry in branches] + [len(entry["kept"]) for entry in columns.values()]
    pieces = iter(mask.split([*sizes, *(math.prod(entry["shape"]) for entry in weights)]))
    for group in content["groups"]:
        values = next(pieces)
        for slot in (slot for slot in group["slots"] if slot["reads"]):
            key = slot["tensor"], slot["axis"]
            here = columns.get(key)
            factor = mask.new_ones(tensors[key[0]].shape[key[1]] if here is None else here["full"])
            factor[slot["index"]] = values[:, None]
            _multiply(tensors[key[0]], key[1], factor if here is None else factor[here["kept"]])
    for entry in branches:
        for value, names in zip(next(pieces), entry["scales"], strict=True):
            for name in names:
                tensors[name].mul_(value.to(tensors[name]))
    for name, axis in columns:
        _multiply(tensors[name], axis, next(pieces))
    for entry in weights:
        tensors[entry["name"]].mul_(next(pieces).view(entry["shape"]).to(tensors[entry["name"]]))


def _multiply(tensor: Tensor, axis: int, factor: Tensor) -> None:
    """Multiply a tensor by one factor for each position along an axis."""
    tensor.mul_(factor.view([-1 if a == axis else 1 for a in range(tensor.dim())]).to(tensor))


def zero_closed(model: nn.Module, content: Mapping[str, Any]) -> None:
    """Zero closed weights, those that read closed units, and scales of closed branches, in a model without gates.

    Args:
        model: changed in place, at the saved sizes.
        content: the result of `pack`.
    """
    tensors = model_tensors(model)
    columns = {(entry["tensor"], entry["axis"]): entry for entry in content.get("columns", ())}
    zeroed = [(key, entry["closed"]) for key, entry in columns.items()]
    for group in content.get("groups", ()):
        for slot in group["slots"]:
            if slot["reads"]:
                key, positions = (slot["tensor"], slot["axis"]), slot["index"][group["closed"]].reshape(-1)
                if key in columns:  # positions on the full axis, of which only some exist
                    positions = torch.isin(columns[key]["kept"], positions).nonzero().reshape(-1)
                zeroed.append((key, positions))
    for (name, axis), positions in zeroed:
        tensors[name].index_fill_(axis, positions.to(tensors[name].device), 0)
    for entry in content.get("weights", ()):
        tensor = tensors[entry["name"]]
        tensor.masked_fill_(~unpacked(entry["open"], entry["shape"]).to(tensor.device), 0)
    for branches in content.get("branches", ()):
        for number in branches["closed"].tolist():
            for name in branches["scales"][number]:
                tensors[name].zero_()
