"""Checkpoint files: written whole or not at all, read without unpickling anything."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from npn._utils.files import write_atomically
from npn.checkpoint.content import FORMAT, VERSION, Stateful, Target, pack, unpack
from npn.errors import CheckpointError
from npn.plasticity import Plasticity


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
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(content, file))
    if isinstance(target, Plasticity):
        target.last_checkpoint = str(path)


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
