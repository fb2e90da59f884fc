"""Unpack the content of a checkpoint into a model or its handle: all of it is checked before anything changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from npn._utils.fsdp import owners, replace_shard
from npn._utils.rng import load_rng_state_dict
from npn._utils.shards import local
from npn.checkpoint.layout import check_fixed, check_norms, fold_mask
from npn.checkpoint.matching import (
    branches_to_remove,
    chosen_columns,
    densified,
    make_sparse,
    matching_tensors,
    saved_structure,
    vanishing_gates,
    without_removed_branches,
)
from npn.checkpoint.order import matching_states
from npn.checkpoint.states import Stateful, check_decision, check_rng_state, load_state
from npn.errors import CheckpointError
from npn.modules import assigned, materialize_selects
from npn.plasticity import Plasticity
from npn.structure import Structure, selected_columns
from npn.surgery import (
    Edit,
    carry_out,
    forget_edits,
    removal_edits,
    renew_places,
    replace_data,
    select_columns,
    set_attribute,
)

Target = TypeVar("Target", nn.Module, Plasticity)


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
    if isinstance(target, Plasticity):
        _unpack_handle(_match(content, path, target.model), target, stateful)
    else:
        _unpack_model(_match(content, path, target), stateful)
    return target


@dataclass(frozen=True)
class _Match:
    """The content of a file, matched with the model that it is loaded into."""

    content: Mapping[str, Any]  # sparse weights are dense here
    path: Any  # of the file
    model: nn.Module
    gone: list[str]  # branches that the file has lost
    selecting: dict[str, Tensor]  # layers of a plain model that have to select these of their inputs
    tensors: dict[str, tuple[Tensor, Tensor]]  # name -> (present, saved)
    sparse: list[str]  # weights that were sparse


def _match(content: Mapping[str, Any], path: Any, model: nn.Module) -> _Match:
    """Match a file with the model that it is loaded into; raise if it is of another one."""
    content, sparse = densified(content)
    selecting = chosen_columns(path, model, content)
    gone = branches_to_remove(path, model, content)
    saved = {name: value for name, value in content["model"].items() if name.removesuffix(".columns") not in selecting}
    tensors = matching_tensors(path, model, saved, content.get("buffers", {}), gone)
    return _Match(content, path, model, gone, selecting, tensors, sparse)


def _unpack_model(match: _Match, stateful: Mapping[str, Stateful]) -> None:
    """Load into a plain model; closed units stay absent, since the weights that read them get zeros."""
    content, path, model = match.content, match.path, match.model
    _check_names(match, stateful, stateful.keys() <= content["stateful"].keys())
    if content.get("masks", {}).get("needs"):
        raise CheckpointError(
            f"{path} holds gates of {content['masks']['needs']}, which depend on the input and are no part of this "
            "model; save method.export() instead. Nothing was loaded"
        )
    check_norms(path, content)
    _check_lengths(match, model)
    edits = removal_edits(model, match.gone, ())
    edits += [load_state(path, name, thing, content["stateful"][name]) for name, thing in stateful.items()]
    _carry_out(match, edits + _resize_edits(match))
    with torch.no_grad():
        fold_mask(model, content)
        materialize_selects(model, match.selecting)
        make_sparse(model, match.sparse)


def _unpack_handle(match: _Match, plastic: Plasticity, stateful: Mapping[str, Stateful]) -> None:
    """Load into a handle: the model with its structure, gates, optimizers and random states."""
    content, path = match.content, match.path
    _check_names(match, stateful, stateful.keys() == content["stateful"].keys())
    check_decision(plastic, stateful.values(), "npn.load(path, plastic, method=method)")
    rest = without_removed_branches(path, plastic, match.gone)
    structure = saved_structure(path, plastic, content, rest)
    plastic.gates.to(plastic.masked_weights.device)
    lost = vanishing_gates(plastic, rest)
    states = matching_states(path, plastic, content, match.gone, lost)
    check_rng_state(path, content["rng"])
    _check_lengths(match, plastic)
    edits = removal_edits(match.model, match.gone, plastic.optimizers) + forget_edits(plastic.optimizers, lost)
    for optimizer, state in zip(plastic.optimizers, states, strict=True):
        edits.append(load_state(path, type(optimizer).__name__, optimizer, state))
    edits += [load_state(path, name, thing, content["stateful"][name]) for name, thing in stateful.items()]
    _carry_out(match, edits + _resize_edits(match) + _gate_edits(match, plastic, structure))
    with torch.no_grad():
        plastic.restructure(structure)
        plastic.load_state_dict(content["plastic"])
        load_rng_state_dict(content["rng"])


def _check_names(match: _Match, stateful: Mapping[str, Stateful], agree: bool) -> None:
    """Raise unless the names of `stateful` agree with those in the file."""
    if not agree:
        raise CheckpointError(
            f"{match.path} keeps the state of {sorted(match.content['stateful'])}, load was given {sorted(stateful)}; "
            "pass the same names to npn.save and npn.load"
        )


def _check_lengths(match: _Match, target: nn.Module | Plasticity) -> None:
    """Raise unless axes without units have the saved length."""
    known = [(name, axis) for name, axis in match.content.get("fixed", ())]
    check_fixed(match.path, target, match.tensors, known)


def _carry_out(match: _Match, edits: list[Edit]) -> None:
    """Make all edits or none; nothing after them can fail. The saved values of the other tensors follow."""
    with torch.no_grad():
        carry_out(edits)
        renew_places(match.model)
        for tensor, value in match.tensors.values():
            if _keeps_storage(tensor, value):
                local(tensor).copy_(local(value))


def _keeps_storage(tensor: Tensor, value: Tensor) -> bool:
    """Whether a value can be copied into a tensor: the shapes agree, and no axis of the tensor is expanded."""
    return tensor.shape == value.shape and 0 not in tensor.stride()


def _resize_edits(match: _Match) -> list[Edit]:
    """Edits of the model's tensors whose shape changes, and of its integer attributes."""
    sharded, edits = owners(match.model), list[Edit]()
    for tensor, value in match.tensors.values():
        if not _keeps_storage(tensor, value):
            owner = sharded.get(id(tensor))
            edits.append(replace_shard(owner, value) if owner else replace_data(tensor, value.to(tensor.device)))
    for path, numbers in match.content["attributes"].items():
        module = match.model.get_submodule(path)
        edits += [set_attribute(module, name, value) for name, value in assigned(module, _single(numbers)).items()]
    return edits


def _gate_edits(match: _Match, plastic: Plasticity, structure: Structure) -> list[Edit]:
    """Edits of the gates, to the saved sizes, and of the input columns that the model's layers select."""
    edits = list[Edit]()
    sizes = {name: len(gate["logits"]) for name, gate in match.content["plastic"]["gates"].items()}
    for group in (group for group in plastic.groups if group.name in sizes):
        edits += [replace_data(t, t.new_zeros(sizes[group.name])) for t in group.gate.tensors]
    for single in (gate for gate in plastic.gates.weights if gate.name in structure.unstructured):
        shape = structure.physical()[single.name]
        edits += [replace_data(t, t.new_zeros(shape)) for t in single.tensors]
    for layer, index in selected_columns(structure).items():
        edits.append(select_columns(match.model.get_submodule(layer), index))
    return edits


def _single(numbers: Mapping[str, Any]) -> dict[str, int]:
    """Integers by name; older files hold whole tuples."""
    found = dict[str, int]()
    for name, value in numbers.items():
        many = isinstance(value, (tuple, list))
        found |= {f"{name}[{i}]": entry for i, entry in enumerate(value)} if many else {name: value}
    return found
