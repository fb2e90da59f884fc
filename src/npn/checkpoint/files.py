"""Checkpoint files: written completely or not at all, and read without unpickling objects."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from npn._utils.collectives import barrier, rank
from npn._utils.files import why_not_writable, write_atomically
from npn._utils.validation import HANDLE, instance
from npn.checkpoint.matching import densified
from npn.checkpoint.packing import FORMAT, VERSION, pack
from npn.checkpoint.spread import gathered, read_parts, split, write_parts
from npn.checkpoint.states import Stateful
from npn.checkpoint.unpacking import Target, unpack
from npn.errors import CheckpointError
from npn.plasticity import Plasticity

REST = "npn.pt"  # what a folder holds besides the parts that torch.distributed.checkpoint has written


def save(
    path: str | os.PathLike[str],
    target: nn.Module | Plasticity,
    *,
    extra: Mapping[str, Any] | None = None,
    **stateful: Stateful,
) -> None:
    """Write a checkpoint that `torch.load(weights_only=True)` can read.

    The content is written to a temporary file, which then replaces the file at `path`, so that no partial file appears.
    If the weights are split over processes, all of these call this: one tensor at a time is gathered, and the first
    process writes the file. `save_folder` gathers nothing.

    Args:
        path: path of the file.
        target: a model; or a `Plasticity`, with its gates, tracked optimizers and the states of all random generators.
        extra: plain values and tensors to keep, see `read_extra`.
        stateful: objects whose `state_dict` is saved, under names that `load` is given again.

    Raises:
        CheckpointError: a value could not be loaded again, see `npn.checkpoint.pack`, or there can be no file
            at the path; nothing was written.

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
    _check(path, target)
    _check_writable(path, f", such as {Path(path) / 'model.npn'}, or call npn.save_folder")
    content = pack(target, extra, stateful)
    whole = gathered(content)
    if whole is content or rank() == 0:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: torch.save(whole, file))
    if whole is not content:
        barrier()  # whoever goes on may read it
    if isinstance(target, Plasticity):
        target.last_checkpoint = str(path)


def save_folder(
    path: str | os.PathLike[str],
    target: nn.Module | Plasticity,
    *,
    extra: Mapping[str, Any] | None = None,
    **stateful: Stateful,
) -> None:
    """Write a checkpoint as a folder, by `torch.distributed.checkpoint`: every process writes its part of the weights.

    Nothing is gathered, and any number of processes can `load` the folder: each reads what it needs. All processes call
    this. A folder without the file `npn.pt`, which is written last, is incomplete.

    Args:
        path: path of the folder, one that all processes see.
        target, extra, stateful: as for `save`.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> save_folder(folder.name + "/run", nn.Linear(4, 3))
        >>> load(folder.name + "/run", nn.Linear(4, 8))
        Linear(in_features=4, out_features=3, bias=True)
        >>> folder.cleanup()
    """
    _check(path, target)
    _check_writable(Path(path) / REST)
    content = pack(target, extra, stateful)
    file = Path(path) / REST
    if rank() == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
    barrier()
    rest = write_parts(Path(path), content)
    if rank() == 0:
        write_atomically(file, lambda stream: torch.save(rest, stream))
    barrier()
    if isinstance(target, Plasticity):
        target.last_checkpoint = str(path)


def load(path: str | os.PathLike[str], target: Target, **stateful: Stateful) -> Target:
    """Load a checkpoint into a freshly built model or its `Plasticity`, resized to the saved shapes.

    Everything that can refuse its state is loaded before the model, and restored if another one refuses. On another
    kind of device than the saved one, the gates draw different masks.

    Each of several processes gets the random state of the process that saved. A training loop with dropout should then
    call `torch.manual_seed(npn.distributed.own_seed(...))` on all processes but the first. The Lightning callback does
    so; Hugging Face's Trainer keeps a random state per process.

    Args:
        path: path of the file, or of the folder.
        target: a `Plasticity` that tracks as many optimizers as when it was saved; or a model of the same class at any
            width, in which closed units stay absent: the weights that read them are set to zero (refused under norms).
        stateful: the objects that `save` was given.

    Returns:
        The target.

    Raises:
        CheckpointError: the file is damaged, was not written by npn, or belongs to another model; or an optimizer or
            one of `stateful` refuses its state. Target, optimizers and `stateful` are unchanged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/model.npn", nn.Linear(4, 3))
        ...     load(f"{folder}/model.npn", nn.Linear(4, 8))
        Linear(in_features=4, out_features=3, bias=True)
    """
    _check(path, target)
    content = _read(path)
    content = read_parts(Path(path), content, target) if Path(path).is_dir() else split(content, target)
    return unpack(content, path, target, stateful)


def read_extra(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the values that `save` was given as `extra`.

    Args:
        path: path of the file.

    Returns:
        name -> value.

    Raises:
        CheckpointError: the file is damaged or was not written by npn.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/model.npn", nn.Linear(4, 3), extra={"epoch": 7})
        ...     read_extra(f"{folder}/model.npn")
        {'epoch': 7}
    """
    return dict(_read(path)["extra"])


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the parameters and buffers of the model in a file, without a model to load them into.

    Args:
        path: path of the file.

    Returns:
        name -> tensor, on the CPU.

    Raises:
        CheckpointError: the file is damaged or was not written by npn.
    """
    content = _read(path)
    content, _ = densified(read_parts(Path(path), content, None) if Path(path).is_dir() else content)
    return {name: value for name, value in content["model"].items() if isinstance(value, Tensor)}


def _check(path: object, target: object) -> None:
    """Raise unless these are a path and something that has a checkpoint; torch.save has them the other way round."""
    instance("path", path, (str, os.PathLike), "the path of a file, which comes first, as in npn.save(path, model)")
    instance("target", target, (nn.Module, Plasticity), f"a torch.nn.Module, or {HANDLE}")


def _check_writable(path: str | os.PathLike[str], instead_of_folder: str = "") -> None:
    """Raise if no file can be written at a path; of several processes, the first one writes."""
    reason = why_not_writable(path) if rank() == 0 else None
    if reason is not None:
        raise CheckpointError(reason + (instead_of_folder if Path(path).is_dir() else ""))


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check the content of a file."""
    file = Path(path) / REST if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()  # which torch.load leaves out
        if damaged is not None and torch.serialization.get_crc32_options():
            raise zipfile.BadZipFile(damaged)
        content = torch.load(file, map_location="cpu", weights_only=True)
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
