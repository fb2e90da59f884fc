"""Checkpoints: weights, structure, gates, optimizers and randomness in one file, written whole or not at all."""

import copy
import os
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn

from npn.errors import CheckpointError
from npn.plasticity import Plasticity
from npn.surgery import bake, choices, input_dim, set_data, set_select
from npn.tracing import Structure
from npn.tracing.capture import model_tensors

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
        "attributes": _integers(model),
        "selects": [path for path, module in model.named_modules() if _is_baked(module)],
        "extra": dict(extra or {}),
        "stateful": {name: thing.state_dict() for name, thing in (stateful or {}).items()},
    }
    if isinstance(target, Plasticity):
        content["plastic"] = target.state_dict()
        content["groups"], content["columns"] = _pack(target), _pack_columns(target)
        content["optimizers"] = [(type(o).__name__, o.state_dict()) for o in target.optimizers]
        content["rng"] = _rng_state()
    return content


def load(path: str | os.PathLike[str], target: Target, **stateful: Stateful) -> Target:
    """Load a checkpoint into a freshly built model or the `Plasticity` of one, resized to the saved shapes.

    Everything is checked before anything is changed. Of several processes each gets the random state of the one that
    saved; a loop with dropout then wants `torch.manual_seed(npn.distributed.own_seed(...))`, as a Trainer does itself.

    Args:
        path: of the file.
        target: its `Plasticity`, with as many optimizers tracked as saved; or a model of the same class at any width,
            in which units that were closed stay absent: the weights that read them are zero.
        stateful: the objects that `save` was given.

    Returns:
        The target.

    Raises:
        CheckpointError: the file is damaged, foreign or of another model; the target is as it was.
    """
    return unpack(_read(path), path, target, stateful)


def unpack(content: Mapping[str, Any], path: Any, target: Target, stateful: Mapping[str, Stateful]) -> Target:
    """Take over what `pack` returned; `path` is where it came from, for errors."""
    model = target.model if isinstance(target, Plasticity) else target
    chosen = _chosen(path, model, content)
    tensors = _matching(
        path, model, {k: v for k, v in content["model"].items() if k.removesuffix(".columns") not in chosen}
    )
    kept = set(content["stateful"])
    if set(stateful) - kept or (isinstance(target, Plasticity) and set(stateful) != kept):
        raise CheckpointError(
            f"{path} keeps the state of {sorted(content['stateful'])}, load was given {sorted(stateful)}; "
            "pass the same names to npn.save and npn.load"
        )
    if isinstance(target, Plasticity):
        structure = _structure(path, target, content)
        with torch.no_grad():
            _put(model, tensors, content["attributes"])
            target.adopt(structure, {name: len(g["logits"]) for name, g in content["plastic"]["gates"].items()})
            for layer, index in choices(structure).items():
                set_select(model.get_submodule(layer), index)
        target.load_state_dict(content["plastic"])
        for optimizer, (_, state) in zip(target.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        _set_rng_state(content["rng"])
    else:
        with torch.no_grad():
            _put(model, tensors, content["attributes"])
            _mute(model, content)
            bake(model, chosen)
    for name, thing in stateful.items():
        thing.load_state_dict(content["stateful"][name])
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
    if content["version"] != VERSION:
        raise CheckpointError(
            f"{path} has format version {content['version']}, this npn reads version {VERSION}; "
            "use the npn that wrote it"
        )
    return content


def _matching(path: Any, model: nn.Module, saved: Mapping[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs of present and saved tensors; ranks and names must agree."""
    present = dict(model.state_dict(keep_vars=True))
    if set(present) != set(saved):
        odd = sorted(set(present) ^ set(saved))[:5]
        raise CheckpointError(
            f"{path} is of another model: {', '.join(odd)} are in one of them only; nothing was loaded"
        )
    pairs = {}
    for name, tensor in present.items():
        value = saved[name]
        if not isinstance(value, Tensor) or not isinstance(tensor, Tensor):
            continue
        if value.dim() != tensor.dim() or value.dtype != tensor.dtype:
            raise CheckpointError(
                f"{path} has {name} as {tuple(value.shape)} {value.dtype}, the model as {tuple(tensor.shape)} "
                f"{tensor.dtype}; nothing was loaded"
            )
        pairs[name] = (tensor, value)
    return pairs


def _put(model: nn.Module, tensors: Mapping[str, tuple[Tensor, Tensor]], attributes: Mapping[str, Any]) -> None:
    for tensor, value in tensors.values():
        if tensor.shape == value.shape:
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


def _pack_columns(plastic: Plasticity) -> list[dict[str, Any]]:
    structure = plastic.structure
    return [
        {
            "name": columns.name,
            "closed": (~plastic.group(columns.name).gate.mask).nonzero().reshape(-1).cpu(),
            "tensor": columns.tensor,
            "axis": columns.axis,
            "kept": columns.kept,
            "full": structure.shapes[columns.tensor][columns.axis],
        }
        for columns in structure.columns
    ]


def _pack(plastic: Plasticity) -> list[dict[str, Any]]:
    return [
        {
            "name": group.name,
            "closed": (~group.gate.mask).nonzero().reshape(-1).cpu(),
            "slots": [{"tensor": s.tensor, "axis": s.axis, "index": s.index, "reads": s.reads} for s in group.slots],
        }
        for group in plastic.groups
        if group.grows
    ]


def _mute(model: nn.Module, content: Mapping[str, Any]) -> None:
    """Without gates, a closed unit is one that no weight reads."""
    tensors = model_tensors(model)
    columns = {(entry["tensor"], entry["axis"]): entry for entry in content.get("columns", ())}
    muted = [(key, entry["closed"]) for key, entry in columns.items()]
    for group in content.get("groups", ()):
        for slot in group["slots"]:
            if slot["reads"]:
                key, positions = (slot["tensor"], slot["axis"]), slot["index"][group["closed"]].reshape(-1)
                if key in columns:  # positions on the full axis; of these, some are there
                    positions = torch.isin(columns[key]["kept"], positions).nonzero().reshape(-1)
                muted.append((key, positions))
    for (name, axis), positions in muted:
        tensors[name].index_fill_(axis, positions.to(tensors[name].device), 0)


def _structure(path: Any, plastic: Plasticity, content: Mapping[str, Any]) -> Structure:
    """The present structure at the saved sizes."""
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
    names = [part.name for part in plastic.structure.parts]
    saved_names = [part["name"] for part in (*content["groups"], *content.get("columns", ()))]
    if names != saved_names:
        raise CheckpointError(
            f"{path} has groups {saved_names}, the model has {names}; "
            "attach it with the same options. Nothing was loaded"
        )
    for optimizer, (kind, state) in zip(plastic.optimizers, content["optimizers"], strict=True):
        ours, theirs = (
            [len(g["params"]) for g in groups] for groups in (optimizer.param_groups, state["param_groups"])
        )
        if ours != theirs:
            raise CheckpointError(
                f"{path} holds {kind} with {theirs} parameters in its groups, the tracked one has {ours}; build it the "
                "same way. Nothing was loaded"
            )
    copy.deepcopy(plastic.penalty).load_state_dict(content["plastic"]["penalty"])  # raises if it is another kind
    groups = []
    for group, saved in zip(plastic.structure.groups, content["groups"], strict=True):
        if [(s["tensor"], s["axis"]) for s in saved["slots"]] != [slot.key for slot in group.slots]:
            raise CheckpointError(
                f"{path}: the units of {group.name!r} live elsewhere in this model; nothing was loaded"
            )
        slots = tuple(replace(a, index=b["index"]) for a, b in zip(group.slots, saved["slots"], strict=True))
        groups.append(replace(group, size=len(slots[0].index), slots=slots))
    saved_shapes = {name: tuple(t.shape) for name, t in content["model"].items() if isinstance(t, Tensor)}
    shapes = {name: saved_shapes.get(name, shape) for name, shape in plastic.structure.shapes.items()}
    columns = []
    for part, saved in zip(plastic.structure.columns, content.get("columns", ()), strict=True):
        columns.append(replace(part, kept=saved["kept"]))
        shape = shapes[part.tensor]
        shapes[part.tensor] = (*shape[: part.axis], saved["full"], *shape[part.axis + 1 :])
    return replace(plastic.structure, groups=tuple(groups), shapes=shapes, columns=tuple(columns))


def _rng_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": (
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ),
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_rng_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


__all__ = ["load", "read_extra", "save"]
