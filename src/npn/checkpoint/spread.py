"""The large tensors of a checkpoint, those of model and optimizers: gathered, split, or written by every process."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from npn._utils.collectives import rank
from npn._utils.shards import empty_like, full, is_shard, like
from npn.checkpoint.order import in_saved_order
from npn.errors import CheckpointError
from npn.plasticity import Plasticity

Places = Iterator[tuple[str, dict[str, Any], str, Tensor]]  # key, dict that holds the tensor, its name there, tensor


def copied(content: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the dicts of a checkpoint that hold large tensors, but not the tensors.

    Args:
        content: the result of `npn.checkpoint.pack`.
    """
    new = {**content, "model": dict(content["model"])}
    if "optimizers" in content:
        new["optimizers"] = [
            (kind, {**state, "state": {index: dict(entries) for index, entries in state["state"].items()}})
            for kind, state in content["optimizers"]
        ]
    return new


def large_tensors(content: Mapping[str, Any]) -> Places:
    """The tensors of the model and of optimizers' state, in the same order on all processes.

    Args:
        content: the result of `npn.checkpoint.pack`.
    """
    holders = {"model": content["model"]}
    for number, (_, state) in enumerate(content.get("optimizers", ())):
        holders |= {f"optimizers.{number}.{index}": entries for index, entries in state["state"].items()}
    for path, holder in holders.items():
        for name, value in list(holder.items()):
            if isinstance(value, Tensor) and value.dim() and value.layout == torch.strided:
                yield f"{path}.{name}", holder, name, value


def gathered(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """A checkpoint with whole tensors, one after the other; the first process keeps them in its memory, no other does.

    Args:
        content: the result of `npn.checkpoint.pack`; returned as it is where nothing is split.
    """
    if not any(is_shard(value) for *_, value in large_tensors(content)):
        return content
    new = copied(content)
    for _, holder, name, value in large_tensors(new):
        whole = full(value.detach())
        holder[name] = whole.cpu() if rank() == 0 else None
    return new


def split(content: Mapping[str, Any], target: nn.Module | Plasticity) -> dict[str, Any]:
    """A checkpoint with tensors split as those of the target are.

    Args:
        content: of a file, with whole tensors.
        target: to be loaded into.
    """
    models = target_tensors(content, target)
    if not any(is_shard(model) for model in models.values()):
        return dict(content)
    new = copied(content)
    for key, holder, name, value in large_tensors(new):
        holder[name] = like(value, models.get(key))
    return new


def write_parts(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write the large tensors by `torch.distributed.checkpoint`, every process its own part.

    Args:
        folder: to write to.
        content: the result of `npn.checkpoint.pack`.

    Returns:
        The rest: the content, with tensors without data in their places.
    """
    from torch.distributed.checkpoint.state_dict_saver import save

    rest = copied(content)
    parts = {key: value.detach() for key, *_, value in large_tensors(rest)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a single process
        save(parts, checkpoint_id=folder)
    for _, holder, name, value in large_tensors(rest):
        holder[name] = torch.empty(value.shape, dtype=value.dtype, device="meta")
    return rest


def read_parts(folder: Path, rest: Mapping[str, Any], target: nn.Module | Plasticity | None) -> dict[str, Any]:
    """Read the large tensors that `write_parts` has written, each process those that it needs.

    Args:
        folder: which was written to.
        rest: the result of `write_parts`.
        target: as whose tensors they are split; None for whole ones.

    Returns:
        The content.

    Raises:
        CheckpointError: a part is missing or damaged.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    models = {} if target is None else target_tensors(rest, target)
    content = copied(rest)
    for key, holder, name, value in large_tensors(content):
        holder[name] = empty_like(value.shape, value.dtype, models.get(key))
    parts = {key: value for key, *_, value in large_tensors(content)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a single process
        try:
            load(parts, checkpoint_id=folder)
        except (CheckpointException, OSError) as error:
            raise CheckpointError(
                f"{folder} cannot be read as a checkpoint: {error}; it is damaged or incomplete. Nothing was loaded; "
                "go back to an older one"
            ) from error
    return content


def target_tensors(content: Mapping[str, Any], target: nn.Module | Plasticity) -> dict[str, Tensor]:
    """The tensor of the target as which each large tensor of a checkpoint is split; some have none.

    Args:
        content: of a checkpoint, with or without data.
        target: to be loaded into.
    """
    model = target.model if isinstance(target, Plasticity) else target
    present = model.state_dict(keep_vars=True)
    found = {f"model.{name}": value for name, value in present.items() if isinstance(value, Tensor)}
    saved_shapes = {name: value.shape for name, value in content["model"].items() if isinstance(value, Tensor)}
    shapes = {id(value): saved_shapes[name] for name, value in present.items() if name in saved_shapes}
    if not isinstance(target, Plasticity):
        return found
    for number, (_, (_, state)) in enumerate(zip(target.optimizers, content.get("optimizers", ()), strict=False)):
        saved = [index for group in state["param_groups"] for index in group["params"]]
        for index, parameter in zip(saved, in_saved_order(target, content, number), strict=False):
            for name, value in state["state"].get(index, {}).items():
                if parameter is not None and isinstance(value, Tensor) and value.shape == shapes.get(id(parameter)):
                    found[f"optimizers.{number}.{index}.{name}"] = parameter
    return found
