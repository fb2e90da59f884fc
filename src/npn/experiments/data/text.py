"""Bytes of text: the sources of Python's standard library, or the files of any folder."""

import hashlib
import os
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npn.errors import ConfigurationError
from npn.experiments.data.splits import Data, Split

BYTES = 256
# folders of the standard library that not every machine has, or that hold tables instead of text
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
SHARE = 20  # one file in so many is for validation, and as many for testing


def text(
    folder: str | os.PathLike[str] | None = None,
    *,
    context: int,
    drawn: int,
    held_out: int,
    device: torch.device | str = "cpu",
) -> tuple[Data, dict[str, Any]]:
    """Read text as bytes, split by file; each example is a window, and its classes are the same bytes one later.

    The files are sorted by a hash of their names: the first twentieth is for validation, the next for testing, the rest
    for training. Training windows begin anywhere in the training text; the others are spread evenly and do not overlap.

    Args:
        folder: its files are read, at any depth, but for hidden ones and those that hold a zero byte; None for the
            sources of Python's standard library.
        context: bytes of a window, T.
        drawn: training windows of an epoch.
        held_out: validation windows, and test windows, at most.
        device: of the data.

    Returns:
        Windows (n, T) and classes (n, T), int64; and what was read: `folder`, `files`, `bytes` (of the training,
        validation and test text) and `sha256`, of the three texts in this order.

    Raises:
        ConfigurationError: there is no such folder, or too little text in it.
    """
    root = Path(folder) if folder else Path(sysconfig.get_paths()["stdlib"])
    names = _standard(root) if folder is None else _readable(root)
    names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    share = max(1, len(names) // SHARE)
    parts = [_joined(root, part) for part in (names[2 * share :], names[:share], names[share : 2 * share])]
    sizes = [len(part) for part in parts]
    if min(sizes) <= context:
        raise ConfigurationError(
            f"expected more than {context} bytes of text for training, validation and testing each, found "
            f"{', '.join(map(str, sizes))} in {len(names)} files of {root}; name another folder with --text, or give a "
            "shorter --context"
        )
    train, validation, test = (torch.frombuffer(part, dtype=torch.uint8).to(device, torch.int64) for part in parts)
    validating, testing = (_spread(part, context, held_out) for part in (validation, test))
    about = {
        "folder": "Python's standard library" if folder is None else str(folder),
        "files": len(names),
        "bytes": sizes,
        "sha256": hashlib.sha256(b"".join(parts)).hexdigest(),
    }
    # views of the text: a window at every offset, without a copy
    everywhere = Split(train[:-1].unfold(0, context, 1), train[1:].unfold(0, context, 1))
    return Data(everywhere, validating, testing, classes=BYTES, drawn=drawn), about


def _standard(root: Path) -> list[str]:
    return [name for name in _names(root) if name.endswith(".py") and not SKIPPED & set(name.split("/"))]


def _readable(root: Path) -> list[str]:
    if not root.is_dir():
        raise ConfigurationError(f"expected a folder of text files, found none at {root}; name another with --text")
    visible = [name for name in _names(root) if not any(part.startswith(".") for part in name.split("/"))]
    return [name for name in visible if b"\0" not in (root / name).read_bytes()]


def _names(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]


def _joined(root: Path, names: list[str]) -> bytearray:
    """The files one after the other, a zero byte after each."""
    return bytearray(b"".join((root / name).read_bytes() + b"\0" for name in names))


def _spread(part: Tensor, context: int, count: int) -> Split:
    """Windows that do not overlap, spread evenly over the text."""
    fitting = (len(part) - 1) // context
    count = min(count, fitting)
    starts = context * (torch.arange(count, device=part.device) * fitting // count)
    index = starts.unsqueeze(1) + torch.arange(context, device=part.device)
    return Split(part[index], part[index + 1])
