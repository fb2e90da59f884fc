"""Traces made once for each kind of model: by the first of its kind, in this process or in one that tests start."""

import atexit
import contextlib
import hashlib
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from npn.structure import Structure
from npn.tracing.rehearsal.removal_check import why_not
from npn.tracing.trace import trace_units

_TRACED: dict[object, Structure] = {}
_CHECKED: dict[object, str | None] = {}
_FOLDER: Path | None = None  # of traces that processes share


def folder() -> Path:
    """Where processes find each other's traces; gone with the process that has made it."""
    global _FOLDER
    if _FOLDER is None:
        _FOLDER = Path(tempfile.mkdtemp(prefix="traces"))
        atexit.register(shutil.rmtree, _FOLDER, True)
    return _FOLDER


def _said(value: object) -> object:
    """An attribute as it is compared: by what it says, or, where that is only where it lies, by name or by itself."""
    text = repr(value)
    if " at 0x" not in text:
        return text
    if isinstance(value, FunctionType) and "<" not in value.__qualname__:  # neither a lambda nor made by a call
        return value.__module__, value.__qualname__
    return value if isinstance(value, Hashable) else object()


def _kind(model: nn.Module, inputs: Any) -> object:
    """What a trace depends on: classes, attributes, hooks, shapes and modes; in the tests' models no tensor's value."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    modules = []
    for name, module in model.named_modules():
        own = tuple((key, _said(value)) for key, value in vars(module).items() if not key.startswith("_"))
        every = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        hooks = tuple(hook for hook in every if not getattr(hook, "__module__", "").startswith("npn."))
        modules.append((name, type(module), own, hooks))
    return (
        tuple(modules),
        tuple((name, t.shape, t.dtype, t.requires_grad) for name, t in tensors),
        repr(tree_map(lambda x: (x.shape, x.dtype) if isinstance(x, Tensor) else x, inputs)),
    )


def _shared(kind: object, trace: Callable[[], Structure]) -> Structure:
    """The trace that another process has left in the folder, or a new one, left there."""
    text = repr(kind)
    if _FOLDER is None or " at 0x" in text or "<locals>" in text:  # says nothing to another process
        return trace()
    path = _FOLDER / hashlib.sha256(text.encode()).hexdigest()
    if path.exists():
        return pickle.loads(path.read_bytes())
    found = trace()
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_bytes(pickle.dumps(found))
    part.replace(path)
    return found


@contextlib.contextmanager
def traced_once(place: Path | None = None) -> Iterator[None]:
    """`attach` traces each kind of model for the first one alone, of all processes that are given the same folder.

    Of removals, each number of units that goes from each group of a kind of model is checked once in each process.
    """
    global _FOLDER
    _FOLDER = place or _FOLDER

    def cached(model: nn.Module, inputs: Any, streams: bool = False) -> Structure:
        kind = (_kind(model, inputs), streams)
        if kind not in _TRACED:
            _TRACED[kind] = _shared(kind, lambda: trace_units(model, inputs, streams))
        return _TRACED[kind]

    def checked(
        model: nn.Module, inputs: Any, structure: Structure, removed: Mapping[str, Sequence[int]]
    ) -> str | None:
        parts = tuple((part.name, part.size) for part in structure.parts)
        fewer = tuple((name, len(units)) for name, units in removed.items())
        kind = (_kind(model, inputs), parts, structure.streams, fewer)
        if kind not in _CHECKED:
            _CHECKED[kind] = why_not(model, inputs, structure, removed)
        return _CHECKED[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["npn.resizing.planning"], "why_not", checked)
        patch.setattr(sys.modules["npn.tracing.trace"], "trace_units", cached)
        yield
