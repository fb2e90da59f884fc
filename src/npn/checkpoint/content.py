"""The content of a checkpoint: pack a model into plain values and tensors, and unpack them into a model."""

import copy
from collections.abc import Callable, Iterable, Mapping, Set
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from npn._utils.fsdp import owners, replace_shard
from npn._utils.models import is_torch_layer
from npn._utils.rng import load_rng_state_dict, preserved_rng, rng_state_dict
from npn._utils.shards import local
from npn.checkpoint.layout import (
    check_fixed,
    fold_mask,
    pack_branches,
    pack_buffers,
    pack_columns,
    pack_fixed,
    pack_groups,
    pack_masks,
    pack_weights,
)
from npn.checkpoint.matching import (
    branches_to_remove,
    chosen_columns,
    densified,
    make_sparse,
    matching_tensors,
    saved_structure,
    selects,
    vanishing_gates,
    without_removed_branches,
)
from npn.checkpoint.order import matching_states, pack_parameters
from npn.checkpoint.plain import plain
from npn.errors import CheckpointError, ResizeError
from npn.masking.calls import attached_parts, has_closed_units
from npn.modules import absent_paths, assigned, integers, materialize_selects, parsed, shared_objects
from npn.plasticity import Plasticity
from npn.structure import selected_columns
from npn.surgery import (
    Edit,
    carry_out,
    check_shapes,
    forget_edits,
    removal_edits,
    renew_places,
    replace_data,
    select_columns,
    set_attribute,
)

FORMAT, VERSION = "npn", 1
Target = TypeVar("Target", nn.Module, Plasticity)


class Stateful(Protocol):
    """An object with a state: a `Schedule`, a `Growth`, a learning rate scheduler, a `GradScaler`."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Any, /) -> Any: ...


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


def unpack(content: Mapping[str, Any], path: Any, target: Target, stateful: Mapping[str, Stateful]) -> Target:
    """Load the result of `pack` into a model, resized to the saved shapes.

    Args:
        content: the result of `pack`.
        path: source of the content, for error messages.
        target: a model or its `Plasticity`.
        stateful: name -> object whose state is loaded.

    Returns:
        The target.

    Raises:
        CheckpointError: see `npn.load`; nothing was loaded.
    """
    model = target.model if isinstance(target, Plasticity) else target
    content, sparse = densified(content)
    chosen = chosen_columns(path, model, content)
    gone = branches_to_remove(path, model, content)
    tensors = matching_tensors(
        path,
        model,
        {k: v for k, v in content["model"].items() if k.removesuffix(".columns") not in chosen},
        content.get("buffers", {}),
        gone,
    )
    kept = set(content["stateful"])
    if set(stateful) - kept or (isinstance(target, Plasticity) and set(stateful) != kept):
        raise CheckpointError(
            f"{path} keeps the state of {sorted(content['stateful'])}, load was given {sorted(stateful)}; "
            "pass the same names to npn.save and npn.load"
        )
    if isinstance(target, Plasticity):
        check_decision(target, stateful.values(), "npn.load(path, plastic, method=method)")
    elif content.get("masks", {}).get("needs"):
        raise CheckpointError(
            f"{path} holds gates of {content['masks']['needs']}, which depend on the input and are no part of this "
            "model; save method.export() instead. Nothing was loaded"
        )
    states = [(name, thing, content["stateful"][name]) for name, thing in stateful.items()]
    if isinstance(target, Plasticity):
        rest = without_removed_branches(path, target, gone)
        structure = saved_structure(path, target, content, rest)
        target.gates.to(target.masked_weights.device)
        lost = vanishing_gates(target, rest)
        saved_states = matching_states(path, target, content, gone, lost)
        edits = removal_edits(model, gone, target.optimizers) + forget_edits(target.optimizers, lost)
        pairs = zip(target.optimizers, saved_states, strict=True)
        states = [(type(optimizer).__name__, optimizer, state) for optimizer, state in pairs] + states
        sizes = {name: len(gate["logits"]) for name, gate in content["plastic"]["gates"].items()}
        check_rng_state(path, content["rng"])
    else:
        edits = removal_edits(model, gone, ())
    check_fixed(path, target, tensors, [(name, axis) for name, axis in content.get("fixed", ())])
    edits += [_load_state(path, name, thing, state) for name, thing, state in states]
    with torch.no_grad():
        edits += _resize_edits(model, tensors, content["attributes"])
        if isinstance(target, Plasticity):
            for group in (group for group in target.groups if group.name in sizes):
                edits += [replace_data(t, t.new_zeros(sizes[group.name])) for t in group.gate.tensors]
            for single in (gate for gate in target.gates.weights if gate.name in structure.unstructured):
                shape = structure.physical()[single.name]
                edits += [replace_data(t, t.new_zeros(shape)) for t in single.tensors]
            for layer, index in selected_columns(structure).items():
                edits.append(select_columns(model.get_submodule(layer), index))
        carry_out(edits)  # nothing after this line can fail
        renew_places(model)
        for tensor, value in tensors.values():
            if _keeps_storage(tensor, value):
                local(tensor).copy_(local(value))
        if isinstance(target, Plasticity):
            target.restructure(structure)
            target.load_state_dict(content["plastic"])
            load_rng_state_dict(content["rng"])
        else:
            fold_mask(model, content)
            materialize_selects(model, chosen)
            make_sparse(model, sparse)
    return target


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


def _load_state(path: Any, name: str, thing: Stateful, state: Any) -> Edit:
    """Edit: load the state of an optimizer, a schedule, ...; undone with a copy of its previous state."""

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


def _keeps_storage(tensor: Tensor, value: Tensor) -> bool:
    """Whether a value can be copied into a tensor: the shapes agree, and no axis of the tensor is expanded."""
    return tensor.shape == value.shape and 0 not in tensor.stride()


def _resize_edits(
    model: nn.Module, tensors: Mapping[str, tuple[Tensor, Tensor]], attributes: Mapping[str, Any]
) -> list[Edit]:
    """Edits of tensors whose shape changes, and of integer attributes."""
    sharded, edits = owners(model), list[Edit]()
    for tensor, value in tensors.values():
        if not _keeps_storage(tensor, value):
            owner = sharded.get(id(tensor))
            edits.append(replace_shard(owner, value) if owner else replace_data(tensor, value.to(tensor.device)))
    for path, numbers in attributes.items():
        module = model.get_submodule(path)
        edits += [set_attribute(module, name, value) for name, value in assigned(module, _single(numbers)).items()]
    return edits


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


def _single(numbers: Mapping[str, Any]) -> dict[str, int]:
    """Integers by name; older files hold whole tuples."""
    found = dict[str, int]()
    for name, value in numbers.items():
        many = isinstance(value, (tuple, list))
        found |= {f"{name}[{i}]": entry for i, entry in enumerate(value)} if many else {name: value}
    return found
