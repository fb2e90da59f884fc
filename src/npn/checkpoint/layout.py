"""The layout of gated units in a checkpoint, from which a plain model can be loaded without the closed units."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from npn._utils import cpu
from npn._utils.layout import along
from npn._utils.models import model_tensors
from npn.errors import CheckpointError
from npn.gates.weight_gates import packed, unpacked
from npn.plasticity import Plasticity
from npn.structure import LEFT_OUT, READER_GONE, Group, Key, Structure


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
            "normed": group.traced.normed,
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
    """The mask of evaluation where a method's is not just what stays, which a plain model has in its weights.

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
    partial = {} if torch.equal(mask, decision.kept_gates().to(mask)) else {"gates": mask}
    return partial if decision.folds else partial | {"needs": type(decision).__name__}


def pack_fixed(plastic: Plasticity) -> list[Key]:
    """The tensors and axes that no resize changes: the model's outputs, inputs, and what its code fixes.

    Args:
        plastic: the handle to save.
    """
    frozen = {key for entry in plastic.structure.frozen for key in entry.slots}
    return sorted(frozen - _unit_axes(plastic.structure))  # in cat([x, units]), part of an axis is fixed


def check_fixed(
    path: Any,
    target: nn.Module | Plasticity,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    known: Sequence[Key],
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
        tensors = model_tensors(target.model)  # some vanished with a branch
        fixed -= {(id(tensors[name]), axis) for name, axis in _unit_axes(target.structure) if name in tensors}
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


def check_norms(path: Any, content: Mapping[str, Any]) -> None:
    """Raise if a model without gates would count closed units in a norm: zeros where they are read are not enough.

    Args:
        path: source of the content, for the error message.
        content: the result of `pack`; in older files nothing tells of norms.

    Raises:
        CheckpointError: units under a norm are closed.
    """
    for group in content.get("groups", ()):
        if group.get("normed") and len(group["closed"]):
            raise CheckpointError(
                f"{path} has closed units of {group['name']!r} under a norm, which a model without gates would count; "
                "save after plastic.compact(), or save plastic.export(), or load into a handle. Nothing was loaded"
            )


def _unit_axes(structure: Structure) -> set[Key]:
    """Tensor name and axis of all units, including those that `only` or `skip` left without gates."""
    ungated = (frozen for frozen in structure.frozen if frozen.reason in (LEFT_OUT, READER_GONE))
    return {slot.key for part in structure.parts for slot in part.slots} | {k for each in ungated for k in each.slots}


def _windows(model: nn.Module) -> set[tuple[int, int]]:
    """(id of the tensor, axis) of the window axes of all convolution kernels."""
    layers = [module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd)]
    return {(id(p), axis) for layer in layers for p in layer.parameters() for axis in range(2, p.dim())}


def fold_mask(model: nn.Module, content: Mapping[str, Any]) -> None:
    """Multiply the weights of a model without gates by the saved mask: what reads closed units gets zeros.

    Args:
        model: changed in place, at the saved sizes.
        content: the result of `pack`.
    """
    tensors, masks = model_tensors(model), _masks(content)
    columns = {(entry["tensor"], entry["axis"]): entry for entry in content.get("columns", ())}
    for group in content.get("groups", ()):
        mask = next(masks)
        for slot in (slot for slot in group["slots"] if slot["reads"]):
            name, axis = key = slot["tensor"], slot["axis"]
            factor = cpu.ones(columns[key]["full"] if key in columns else tensors[name].shape[axis])
            factor[slot["index"]] = mask[:, None]
            _multiply(tensors[name], factor[columns[key]["kept"]] if key in columns else factor, axis)
    for branches in content.get("branches", ()):
        for factor, names in zip(next(masks), branches["scales"], strict=True):
            for name in names:
                _multiply(tensors[name], factor)
    for name, axis in columns:
        _multiply(tensors[name], next(masks), axis)
    for entry in content.get("weights", ()):
        _multiply(tensors[entry["name"]], next(masks).view(entry["shape"]))


def _masks(content: Mapping[str, Any]) -> Iterator[Tensor]:
    """The masks of groups, branches, columns and single weights: the method's, or 0 for what is closed."""
    parts = [(len(group["slots"][0]["index"]), group["closed"]) for group in content.get("groups", ())]
    parts += [(len(entry["paths"]), entry["closed"]) for entry in content.get("branches", ())]
    parts += [(len(entry["kept"]), entry["closed"]) for entry in content.get("columns", ())]
    pieces = [cpu.ones(size).index_fill(0, closed, 0) for size, closed in parts]
    pieces += [unpacked(entry["open"], entry["shape"]).flatten().float() for entry in content.get("weights", ())]
    real = content.get("masks", {}).get("gates")
    return iter(pieces if real is None else real.split([len(piece) for piece in pieces]))


def _multiply(tensor: Tensor, factor: Tensor, axis: int | None = None) -> None:
    """Multiply a tensor by a factor in its shape, or by one for each position along an axis; 0 is 0, NaN or not."""
    if axis is not None:
        factor = along(factor, axis, tensor.dim())
    factor = factor.to(tensor)
    tensor.mul_(factor).masked_fill_(factor == 0, 0)
