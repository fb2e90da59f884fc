"""Put back what a forward pass writes into the attributes of modules: lists of outputs, counters, caches."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from operator import is_
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from npn._utils.copies import closed_over

_LOOKED_INTO = 1000  # entries of a container; of larger ones, such as a vocabulary, the entries alone are put back
_OWN = ("_parameters", "_buffers", "_modules")  # of `nn.Module`, whose tensors a trace does not write to


def restoring(model: nn.Module) -> Callable[[], None]:
    """Note what all modules hold, containers inside of others too.

    Args:
        model: its modules, and the closures of their hooks.

    Returns:
        A function that puts everything back.
    """
    undo, seen = list[Callable[[], None]](), set[int]()
    inside = list[tuple[Any, bool]]()  # values, and whether objects of any class among them are looked into
    for module in model.modules():
        attributes = vars(module)
        inside += [(value, True) for name, value in attributes.items() if name not in _OWN]
        for held in (attributes, *(attributes[name] for name in _OWN)):
            undo.append(partial(_refill, held, dict(held)))
    inside += [(value, True) for value in _in_closures(model)]
    while inside:
        value, objects = inside.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if type(value) is Tensor and value.layout is torch.strided and not value.is_meta:
            undo.append(partial(_rewrite, value, value.detach().clone()))  # code may count in a tensor of its own
            continue
        holder = _holder(value)
        if holder is None and objects:
            holder, objects = _attributes(value), False  # a trainer leads to everything there is
        if holder is not None:
            contents = type(holder)(holder) if type(holder) in (list, set, deque) else dict(holder)
            undo.append(partial(_refill, holder, contents))
            entries: Iterable[Any] = contents.values() if isinstance(contents, dict) else contents
            inside += [(entry, objects) for entry in entries] if len(contents) <= _LOOKED_INTO else ()

    def put_back() -> None:
        for each in undo:
            each()

    return put_back


def _holder(value: Any) -> Any:
    """The container that a value is or has, or None."""
    if type(value) in (list, set, deque) or isinstance(value, dict):
        return value
    named = isinstance(value, SimpleNamespace) or (dataclasses.is_dataclass(value) and not isinstance(value, type))
    return getattr(value, "__dict__", None) if named else None


def _attributes(value: Any) -> dict[str, Any] | None:
    """The attributes of an object that a module keeps as a helper, or None."""
    if isinstance(value, (Tensor, nn.Module, type, ModuleType, FunctionType)):
        return None
    return getattr(value, "__dict__", None)


def _refill(holder: Any, contents: Any) -> None:
    """Put the contents back where others are there now; a dict that refuses changes has its own still."""
    if _same(holder, contents):
        return
    holder.clear()
    (holder.extend if isinstance(holder, (list, deque)) else holder.update)(contents)


def _same(holder: Any, contents: Any) -> bool:
    """Whether a container has the very entries of another one, in the same order."""
    if len(holder) != len(contents):
        return False
    if isinstance(contents, set):
        return all(entry in holder for entry in contents)
    if isinstance(contents, dict):
        return all(map(is_, holder, contents)) and all(map(is_, holder.values(), contents.values()))
    return all(map(is_, holder, contents))


def _rewrite(tensor: Tensor, value: Tensor) -> None:
    if not torch.equal(tensor, value):
        tensor.detach().copy_(value)


def _in_closures(model: nn.Module) -> list[Any]:
    """Lists, sets and dicts that forward hooks can write to through their closure."""
    hooks = (h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
    return [value for hook in hooks for value in closed_over(hook) if isinstance(value, (list, set, dict))]
