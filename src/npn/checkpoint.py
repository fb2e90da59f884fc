"""Checkpoints: weights, structure, gates, optimizers and randomness in one file, written whole or not at all."""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.optim import Optimizer

from npn.errors import CheckpointError
from npn.packing import check_fixed, mute, pack_branches, pack_buffers, pack_columns, pack_groups
from npn.plasticity import Plasticity
from npn.state import collect_randomness, restore_randomness
from npn.surgery import (
    absent_paths,
    bake,
    choices,
    forget_edits,
    input_dim,
    inside,
    removal_edits,
    set_data,
    set_select,
    without_branches,
)
from npn.tracing import Structure

FORMAT, VERSION = "npn", 1
Target = TypeVar("Target", nn.Module, Plasticity)


class Stateful(Protocol):
    """Anything with a state: a `Schedule`, a `Growth`, a learning rate scheduler, a `GradScaler`."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Any, /) -> Any: ...


def save(
    path: str | os.PathLike[str],
    target: nn.Module | Plasticity,
    *,
    extra: Mapping[str, Any] | None = None,
    **stateful: Stateful,
) -> None:
    """Write a checkpoint that `torch.load(weights_only=True)` can read.

    The file appears whole or not at all: it is written beside its place and moved there.

    Args:
        path: of the file.
        target: a model, or a `Plasticity` with its gates, tracked optimizers and the state of every RNG.
        extra: plain values and tensors to keep with it, see `read_extra`.
        stateful: objects whose `state_dict` goes along, by a name that `load` is given again.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> save(folder.name + "/model.npn", nn.Linear(4, 3), extra={"epoch": 7})
        >>> load(folder.name + "/model.npn", nn.Linear(4, 8))
        Linear(in_features=4, out_features=3, bias=True)
        >>> read_extra(folder.name + "/model.npn")
        {'epoch': 7}
        >>> folder.cleanup()
    """
    content = pack(target, extra, stateful)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if isinstance(target, Plasticity):
            target.last_checkpoint = str(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def pack(
    target: nn.Module | Plasticity,
    extra: Mapping[str, Any] | None = None,
    stateful: Mapping[str, Stateful] | None = None,
) -> dict[str, Any]:
    """What `save` writes: plain values and tensors."""
    model = target.model if isinstance(target, Plasticity) else target
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "model": dict(model.state_dict()),
        "buffers": pack_buffers(target),
        "attributes": _integers(model),
        "absent": absent_paths(model),
        "selects": [path for path, module in model.named_modules() if _is_baked(module)],
        "extra": dict(extra or {}),
        "stateful": {name: thing.state_dict() for name, thing in (stateful or {}).items()},
    }
    if isinstance(target, Plasticity):
        content["plastic"] = target.state_dict()
        content["groups"], content["columns"] = pack_groups(target), pack_columns(target)
        content["branches"] = pack_branches(target)
        content["optimizers"] = [(type(o).__name__, o.state_dict()) for o in target.optimizers]
        content["rng"] = collect_randomness()
    return content


def load(path: str | os.PathLike[str], target: Target, **stateful: Stateful) -> Target:
    """Load a checkpoint into a freshly built model or the `Plasticity` of one, resized to the saved shapes.

    All that can refuse its state comes before the model, and gets its own back if another refuses. On another kind of
    device than the saved one the gates draw other masks.

    Of several processes each gets the random state of the one that saved; a loop with dropout then wants
    `torch.manual_seed(npn.distributed.own_seed(...))` on all but the first. The Lightning callback does so itself;
    Hugging Face's Trainer keeps a random state for each process.

    Args:
        path: of the file.
        target: its `Plasticity`, with as many optimizers tracked as saved; or a model of the same class at any width,
            in which units that were closed stay absent: the weights that read them are zero.
        stateful: the objects that `save` was given.

    Returns:
        The target.

    Raises:
        CheckpointError: the file is damaged, foreign or of another model, or an optimizer or one of `stateful` does
            not take its state; target, optimizers and `stateful` are as they were.
    """
    return unpack(_read(path), path, target, stateful)


def unpack(content: Mapping[str, Any], path: Any, target: Target, stateful: Mapping[str, Stateful]) -> Target:
    """Take over what `pack` returned; `path` is where it came from, for errors."""
    model = target.model if isinstance(target, Plasticity) else target
    chosen = _chosen(path, model, content)
    gone = _gone(path, model, content)
    tensors = _matching(
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
    states = [(name, thing, content["stateful"][name]) for name, thing in stateful.items()]
    if isinstance(target, Plasticity):
        rest = _without(path, target, gone)
        structure = _structure(path, target, content, rest, gone)
        lost = [group.gate.logits for group in target.groups if group.name not in {part.name for part in rest.parts}]
        target.follow_device()
        edits = removal_edits(model, gone, target.optimizers) + forget_edits(target.optimizers, lost)
        pairs = zip(target.optimizers, content["optimizers"], strict=True)
        states = [(kind, optimizer, state) for optimizer, (kind, state) in pairs] + states
    else:
        edits = removal_edits(model, gone, ())
    check_fixed(path, target, tensors)
    with torch.no_grad():
        with ExitStack() as undo:
            for edit in edits:
                undo.callback(edit())
            for name, thing, state in states:
                undo.callback(_memory(thing))
                _take_over(path, name, thing, state)
            undo.pop_all()  # from here on nothing is refused
        _put(model, tensors, content["attributes"])
        if isinstance(target, Plasticity):
            target.adopt(structure, {name: len(g["logits"]) for name, g in content["plastic"]["gates"].items()})
            for layer, index in choices(structure).items():
                set_select(model.get_submodule(layer), index)
            target.load_state_dict(content["plastic"])
            restore_randomness(content["rng"])
        else:
            mute(model, content)
            bake(model, chosen)
    return target


def read_extra(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save` was given as `extra`.

    Raises:
        CheckpointError: the file is damaged or foreign.
    """
    return dict(_read(path)["extra"])


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    if not Path(path).is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); it is damaged, incomplete or was not "
            "written by npn.save. Nothing was loaded; go back to an older file"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by npn.save; nothing was loaded")
    if content.get("version", VERSION) != VERSION:
        raise CheckpointError(
            f"{path} has format version {content['version']}, this npn reads version {VERSION}; "
            "use the npn that wrote it"
        )
    needed = {"version", "model", "attributes", "extra", "stateful"}
    needed |= {"groups", "optimizers", "rng"} if "plastic" in content else set()
    if needed - content.keys():
        raise CheckpointError(
            f"{path} is damaged or incomplete: it has no {', '.join(sorted(needed - content.keys()))}. Nothing was "
            "loaded; go back to an older file"
        )
    return content


def _gone(path: Any, model: nn.Module, content: Mapping[str, Any]) -> list[str]:
    """Branches that the checkpoint has no more, and the model has."""
    gone = [branch for branch in content.get("absent", ()) if branch not in absent_paths(model)]
    for branch in gone:
        if branch not in dict(model.named_modules()):
            raise CheckpointError(
                f"{path} is of a model without its branch {branch!r}, this model has nothing there; nothing was loaded"
            )
    return gone


def _matching(
    path: Any, model: nn.Module, saved: Mapping[str, Any], buffers: Mapping[str, Tensor], gone: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs of present and saved tensors; ranks and names must agree, but for branches that are to go."""
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


def _memory(thing: Stateful) -> Callable[[], Any]:
    """Puts back what `load_state_dict` changes. PyTorch's optimizers replace their attributes, so nothing is copied."""
    if isinstance(thing, Optimizer):
        return partial(vars(thing).update, dict(vars(thing)))
    return partial(thing.load_state_dict, copy.deepcopy(thing.state_dict()))


def _take_over(path: Any, name: str, thing: Stateful, state: Any) -> None:
    try:
        thing.load_state_dict(state)
    except Exception as error:
        raise CheckpointError(
            f"{path} holds a state of {name!r} that the given {type(thing).__name__} refuses: {error}; build it as the "
            "saved one was. Nothing was loaded"
        ) from error


def _put(model: nn.Module, tensors: Mapping[str, tuple[Tensor, Tensor]], attributes: Mapping[str, Any]) -> None:
    for tensor, value in tensors.values():
        if tensor.shape == value.shape and 0 not in tensor.stride():  # an expanded one has no place for each entry
            tensor.data.copy_(value)
        else:
            tensor.grad = None
            set_data(tensor, value.to(tensor.device))
    for path, values in attributes.items():
        module = model.get_submodule(path)
        for name, value in values.items():
            if type(vars(module).get(name)) is int:
                object.__setattr__(module, name, value)


def _integers(model: nn.Module) -> dict[str, dict[str, int]]:
    """Integer attributes of every module: out_features, groups, num_heads, ..."""
    found = {path: {k: v for k, v in vars(m).items() if type(v) is int} for path, m in model.named_modules()}
    return {path: values for path, values in found.items() if values}


def _is_baked(module: nn.Module) -> bool:
    return isinstance(module, fx.GraphModule) and "columns" in module._buffers


def _chosen(path: Any, model: nn.Module, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Layers of a plain model that are to select their inputs, as those of the checkpoint do."""
    chosen = {layer: content["model"][f"{layer}.columns"] for layer in content.get("selects", ())}
    for entry in content.get("columns", ()):
        if len(entry["kept"]) < entry["full"]:
            chosen[entry["tensor"].rpartition(".")[0]] = entry["kept"]
    modules = dict(model.named_modules())
    chosen = {layer: index for layer, index in chosen.items() if not _is_baked(modules.get(layer, model))}
    for layer in chosen:
        if layer not in modules or input_dim(modules[layer]) is None:
            raise CheckpointError(
                f"{path} has a linear or convolution layer {layer!r} that selects its inputs, the model has none "
                "there; nothing was loaded"
            )
    return chosen


def _without(path: Any, plastic: Plasticity, gone: Sequence[str]) -> Structure:
    """The present structure without branches that are to go."""
    branches = plastic.structure.branches
    if not gone:
        return plastic.structure
    if branches is None or not set(gone) <= set(branches.paths):
        raise CheckpointError(
            f"{path} has lost the branches {', '.join(gone)}, on which this model has no gates; build and attach it as "
            "then. Nothing was loaded"
        )
    return without_branches(plastic.structure, {branches.name: [branches.paths.index(branch) for branch in gone]})


def _structure(
    path: Any, plastic: Plasticity, content: Mapping[str, Any], rest: Structure, gone: Sequence[str]
) -> Structure:
    """What is left of the present structure, at the saved sizes."""
    if "plastic" not in content:
        raise CheckpointError(f"{path} holds a plain model without gates; load it into the model before npn.attach")
    kinds = [type(o).__name__ for o in plastic.optimizers]
    saved_kinds = [kind for kind, _ in content["optimizers"]]
    if kinds != saved_kinds:
        raise CheckpointError(f"{path} holds optimizers {saved_kinds}, plastic.track was given {kinds}; track the same")
    function = content["plastic"]["function"]
    if function != repr(plastic.function):
        raise CheckpointError(
            f"{path} has gates of {function}, these are {plastic.function!r}; attach with the same function"
        )
    names = [part.name for part in rest.parts]
    kinds_of_parts = (content["groups"], content.get("branches", ()), content.get("columns", ()))
    saved_names = [part["name"] for parts in kinds_of_parts for part in parts]
    if names != saved_names:
        raise CheckpointError(
            f"{path} has groups {saved_names}, the model has {names}; "
            "attach it with the same options. Nothing was loaded"
        )
    lost = {id(p) for name, p in plastic.model.named_parameters() if inside(name, gone)}
    lost |= {id(group.gate.logits) for group in plastic.groups if group.name not in names}
    for optimizer, (kind, state) in zip(plastic.optimizers, content["optimizers"], strict=True):
        ours = [sum(id(p) not in lost for p in group["params"]) for group in optimizer.param_groups]
        theirs = [len(group["params"]) for group in state["param_groups"]]
        if ours != theirs:
            raise CheckpointError(
                f"{path} holds {kind} with {theirs} parameters in its groups, the tracked one has {ours}; build it the "
                "same way. Nothing was loaded"
            )
    copy.deepcopy(plastic.penalty).load_state_dict(content["plastic"]["penalty"])  # raises if it is another kind
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


__all__ = ["load", "read_extra", "save"]
