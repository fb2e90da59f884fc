"""Pack a model or its handle into plain values and tensors, the content of a checkpoint."""

from collections.abc import Mapping, Set
from typing import Any

from torch import nn

from npn._utils.models import is_torch_layer
from npn._utils.rng import rng_state_dict
from npn.checkpoint.layout import (
    pack_branches,
    pack_buffers,
    pack_columns,
    pack_fixed,
    pack_groups,
    pack_masks,
    pack_weights,
)
from npn.checkpoint.matching import selects
from npn.checkpoint.order import pack_parameters
from npn.checkpoint.plain import plain
from npn.checkpoint.states import Stateful, check_decision
from npn.errors import CheckpointError, ResizeError
from npn.masking.calls import attached_parts, has_closed_units
from npn.modules import absent_paths, integers, parsed, shared_objects
from npn.plasticity import Plasticity
from npn.surgery import check_shapes

FORMAT, VERSION = "npn", 1


def pack(
    target: nn.Module | Plasticity,
    extra: Mapping[str, Any] | None = None,
    stateful: Mapping[str, Stateful] | None = None,
) -> dict[str, Any]:
    """Collect the content that `save` writes, as plain values and tensors.

    Args:
        target: a model or its `Plasticity`.
        extra: plain values and tensors to include.
        stateful: name -> object whose state is included.

    Returns:
        The content.

    Raises:
        CheckpointError: the target is an attached model with closed units, one of `stateful` follows the sizes of a
            model, or a value is no plain one, so that the file could not be loaded.
    """
    for name, thing in (stateful or {}).items():
        if isinstance(thing, nn.Module) and attached_parts(thing):
            raise CheckpointError(
                f"{name} has the sizes of its model, but its state would be loaded before the model has its saved "
                f"sizes; save extra={{{name!r}: {name}.state_dict()}}, and after npn.load give "
                f"npn.read_extra(path)[{name!r}] to a new copy of the model"
            )
    if isinstance(target, Plasticity):
        check_decision(target, (stateful or {}).values(), "npn.save(path, plastic, method=method)")
        _check_unchanged(target)
        target.gates.decide()  # weights or a method's parameters may have changed since the last call of the model
    if isinstance(target, nn.Module) and has_closed_units(target):
        raise CheckpointError(
            "units of the model are closed, which its weights do not tell; save the handle that npn.attach returned, "
            "or plastic.export()"
        )
    model = target.model if isinstance(target, Plasticity) else target
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "model": dict(model.state_dict()),
        "buffers": pack_buffers(target),
        "attributes": _integers(model),
        "absent": absent_paths(model),
        "selects": [path for path, module in model.named_modules() if selects(module)],
        "extra": dict(extra or {}),
        "stateful": {name: thing.state_dict() for name, thing in (stateful or {}).items()},
    }
    if isinstance(target, Plasticity):
        content["plastic"] = target.state_dict()
        content["groups"], content["columns"] = pack_groups(target), pack_columns(target)
        content["branches"], content["weights"] = pack_branches(target), pack_weights(target)
        content["fixed"], content["masks"] = pack_fixed(target), pack_masks(target)
        content["optimizers"] = [(type(o).__name__, o.state_dict()) for o in target.optimizers]
        content["parameters"] = pack_parameters(target)
        content["rng"] = rng_state_dict()
    return {key: plain(value, key) for key, value in content.items()}


def _check_unchanged(plastic: Plasticity) -> None:
    """Raise if the model has other tensors than its structure, so that no file of it could be loaded."""
    try:
        check_shapes(plastic.model, plastic.structure)
    except ResizeError as error:
        raise CheckpointError(str(error)) from error


def _integers(model: nn.Module) -> dict[str, dict[str, int]]:
    """Integers that may have followed a resize, of every module: out_features, groups, shape[0], config.num_heads, ...

    A resize gives a module its own copy of a config; what several modules share has not followed.
    """
    shared, found = shared_objects(model), dict[str, dict[str, int]]()
    for path, module in model.named_modules():
        followed = {n: v for n, v in integers(module).items() if _may_follow(module, n, shared)}
        if followed:
            found[path] = followed
    return found


def _may_follow(module: nn.Module, name: str, shared: Set[int]) -> bool:
    attribute, entry = parsed(name)
    if entry and is_torch_layer(module):  # other tuples of torch's layers are kernels, strides, ...
        return attribute == "normalized_shape"
    return id(getattr(module, attribute)) not in shared
