"""Integers that modules keep, by name: `num_heads`, `shape[0]`, `config.num_heads`, `config[num_heads]` of a dict."""

import contextlib
import copy
import dataclasses
import enum
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_MOST = 16  # entries of a tuple or list that may hold sizes; longer ones are tables, as of positions


def integers(module: nn.Module) -> dict[str, int]:
    """Integers in the attributes of a module, in its short tuples and lists, its dicts, and objects such as a config.

    Args:
        module: whose own attributes are looked at, not its children's.

    Returns:
        Name -> value.

    Example:
        >>> layer = nn.LayerNorm(8)
        >>> layer.config = {"heads": 4, "rate": 0.1}
        >>> integers(layer)["normalized_shape[0]"], integers(layer)["config[heads]"]
        (8, 4)
    """
    found = dict[str, int]()
    for attribute, value in vars(module).items():
        entries = {"": value} if type(value) is int else _entries(value)
        found |= {f"{attribute}{at}": entry for at, entry in entries.items() if type(entry) is int}
    return found


def increased(changes: Iterable[tuple[nn.Module, str, int]]) -> dict[tuple[nn.Module, str], Any]:
    """New values of attributes in which integers increase; what holds them is copied, and the values stay as they are.

    Args:
        changes: (module, name, what is added), of one integer as often as it changes; a tuple without brackets changes
            in entry 0.

    Returns:
        (module, attribute) -> value.

    Example:
        >>> layer = nn.LayerNorm(8)
        >>> list(increased([(layer, "normalized_shape", -3)]).values())
        [(5,)]
    """
    values: dict[tuple[nn.Module, str], Any] = {}
    for module, name, delta in changes:
        attribute, at = parsed(name)
        value = values.get((module, attribute), getattr(module, attribute))
        at = at or ("[0]" if isinstance(value, (tuple, list)) else "")
        values[module, attribute] = _replaced(value, at, _entry(value, at) + delta)
    return values


def assigned(module: nn.Module, numbers: Mapping[str, int]) -> dict[str, Any]:
    """New values of the attributes in which a module keeps other integers than these; names that it lacks are left out.

    Args:
        module: untouched.
        numbers: name -> integer, see `integers`.

    Returns:
        Attribute -> value.
    """
    present = integers(module)
    return replaced(module, {n: number for n, number in numbers.items() if n in present and present[n] != number})


def replaced(module: nn.Module, entries: Mapping[str, Any]) -> dict[str, Any]:
    """New values of the attributes in which a module keeps integers, with something else in their place.

    Args:
        module: untouched.
        entries: name of an integer that it has -> what is put in its place.

    Returns:
        Attribute -> value.
    """
    values = dict[str, Any]()
    for name, entry in entries.items():
        attribute, at = parsed(name)
        values[attribute] = _replaced(values.get(attribute, getattr(module, attribute)), at, entry)
    return values


@contextlib.contextmanager
def holding(values: Mapping[tuple[nn.Module, str], Any]) -> Iterator[None]:
    """Inside, modules have other values in some attributes.

    Args:
        values: (module, attribute) -> value.
    """
    before = {(module, attribute): getattr(module, attribute) for module, attribute in values}
    for (module, attribute), value in values.items():
        object.__setattr__(module, attribute, value)
    try:
        yield
    finally:
        for (module, attribute), value in before.items():
            object.__setattr__(module, attribute, value)


def parsed(name: str) -> tuple[str, str]:
    """The attribute of an integer, and how its entry in there is written.

    Args:
        name: see `integers`.

    Example:
        >>> parsed("shape[0]"), parsed("config.heads"), parsed("heads")
        (('shape', '[0]'), ('config', '.heads'), ('heads', ''))
    """
    end = min((name.index(mark) for mark in ".[" if mark in name), default=len(name))
    return name[:end], name[end:]


def shared_objects(model: nn.Module) -> set[int]:
    """Ids of the objects and dicts that several modules keep, such as the config that all layers read.

    Args:
        model: whose modules are looked at.
    """
    held = Counter(id(v) for m in model.modules() for v in vars(m).values() if isinstance(v, dict) or _is_object(v))
    return {key for key, count in held.items() if count > 1}


def _entries(value: Any) -> dict[str, Any]:
    """What a value holds, by how it is written behind the value's name."""
    if type(value) in (tuple, list, torch.Size) and len(value) <= _MOST:
        return {f"[{i}]": entry for i, entry in enumerate(value)}
    if isinstance(value, dict):
        return {f"[{key}]": entry for key, entry in value.items() if isinstance(key, str)}
    if _is_object(value):
        fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        named = {field.name: getattr(value, field.name, None) for field in fields}  # slots are not in `vars`
        return {f".{name}": entry for name, entry in {**named, **getattr(value, "__dict__", {})}.items()}
    return {}


def _is_object(value: Any) -> bool:
    """Whether a value is a plain holder of values: a config, a namespace, a dataclass."""
    if isinstance(value, (Tensor, nn.Module, enum.Enum, types.ModuleType)) or callable(value):
        return False
    return hasattr(value, "__dict__") or dataclasses.is_dataclass(value)


def _entry(value: Any, at: str) -> Any:
    return _entries(value)[at] if at else value


def _replaced(value: Any, at: str, entry: Any) -> Any:
    """A copy of a value with something else in one entry."""
    if not at:
        return entry
    if isinstance(value, (tuple, list)):
        i = int(at[1:-1])
        kind = tuple if isinstance(value, torch.Size) and type(entry) is not int else type(value)
        return kind((*value[:i], entry, *value[i + 1 :]))
    changed = copy.copy(value)
    if isinstance(value, dict):
        changed[at[1:-1]] = entry
    else:
        object.__setattr__(changed, at[1:], entry)  # also of a frozen dataclass
    return changed
