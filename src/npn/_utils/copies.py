"""Copy a model, or say which of its attributes cannot be copied; copy an object but for some of its attributes."""

import contextlib
import copy
import dis
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

from torch import nn

from npn._utils.warning import warn
from npn.errors import ConfigurationError


def model_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy` of a model; what functions among its hooks and attributes know of the model is the copy's, too.

    Args:
        model: the model.
        memo: what the copy gets instead of some objects, by `id`; see `copy.deepcopy`.

    Raises:
        ConfigurationError: naming the attribute that cannot be copied.

    Example:
        >>> model_copy(nn.Linear(2, 3), {})
        Linear(in_features=2, out_features=3, bias=True)
    """
    try:
        return _copied(model, dict(memo))
    except Exception as error:
        for path, module in model.named_modules():
            for name, value in vars(module).items():
                try:
                    None if name == "_modules" else copy.deepcopy(value, {**memo, id(model): model})
                except Exception as cause:
                    what = f"{path}.{name}".lstrip(".")
                    raise ConfigurationError(
                        f"the model cannot be copied because of its attribute {what}, a {type(value).__name__}: "
                        f"{cause}. Take it off the model before the copy, or give its class a __deepcopy__"
                    ) from error
        raise


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy` takes functions as they are: a hook that closes over the model would go on with the original."""
    own = _parts(model)
    _warn_of_globals(own)
    functions = list[FunctionType]()
    for value in own.values():
        _find_closures(value, own, functions)
    closures = [(each, _with_own_cells(each)) for each in functions]
    memo |= {id(old): new for old, new in closures}
    made = copy.deepcopy(model, memo)

    def copied(value: Any) -> Any:
        return copy.deepcopy(value, memo) if _reads(value, own, ()) else value

    for old, new in closures:
        new.__defaults__ = tuple(map(copied, old.__defaults__)) if old.__defaults__ else None
        new.__kwdefaults__ = {name: copied(value) for name, value in (old.__kwdefaults__ or {}).items()} or None
        for ours, theirs in zip(old.__closure__ or (), new.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # an empty cell
                theirs.cell_contents = copied(ours.cell_contents)
    return made


def _parts(model: nn.Module) -> dict[int, Any]:
    """The modules of a model and what they hold, by `id`."""
    found, left = dict[int, Any](), list[Any](model.modules())
    while left:
        value = left.pop()
        if id(value) in found:
            continue
        found[id(value)] = value
        if isinstance(value, nn.Module):
            left.append(vars(value))
        elif isinstance(value, dict):
            left += value.values()
        elif isinstance(value, (list, tuple, set)):
            left += value
        elif isinstance(value, functools.partial):
            left.append(value.func)
    return found


def closed_over(function: Any) -> list[Any]:
    """What a function has in its closure; nothing of what has none.

    Args:
        function: any callable.
    """
    found = list[Any]()
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # an empty cell
            found.append(cell.cell_contents)
    return found


def _taken(function: FunctionType) -> list[Any]:
    """What a function has in its closure and as defaults."""
    return [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *closed_over(function)]


def _reads(value: Any, own: Mapping[int, Any], outer: tuple[int, ...]) -> bool:
    """Whether a value is a part of the model that can change, or holds one, or is a function that has taken one."""
    value = value.__self__ if isinstance(value, MethodType) else value
    if id(value) in outer or isinstance(value, (type, ModuleType)):
        return False
    inside: Iterable[Any] = ()
    if isinstance(value, FunctionType):
        inside = _taken(value)
    elif id(value) in own and (hasattr(value, "__dict__") or isinstance(value, (dict, list, set))):
        return True
    elif isinstance(value, (dict, list, tuple, set)):
        inside = value.values() if isinstance(value, dict) else value
    return any(_reads(each, own, (*outer, id(value))) for each in inside)


def _warn_of_globals(own: Mapping[int, Any]) -> None:
    """Warn of functions that read a part of the model from a global variable: a copy of them would do so, too."""
    for function in (value for value in own.values() if isinstance(value, FunctionType)):
        for each in dis.get_instructions(function):
            if each.opname == "LOAD_GLOBAL" and _reads(function.__globals__.get(each.argval), own, ()):
                code = function.__code__
                warn(
                    f"{function.__qualname__} at {Path(code.co_filename).name}:{code.co_firstlineno} reads the global "
                    f"variable {each.argval}, a part of this model, and in the copy goes on with the original's, so "
                    "that the copy may compute something else; register it inside of a function that is given the "
                    "model, or take it off before the copy is made"
                )


def _find_closures(value: Any, own: Mapping[int, Any], found: list[FunctionType]) -> None:
    """Collect a function that has taken a part of the model, and the functions in it that have."""
    if isinstance(value, FunctionType) and _reads(value, own, ()) and all(value is not each for each in found):
        found.append(value)
        for inner in _taken(value):
            _find_closures(inner, own, found)


def _with_own_cells(function: FunctionType) -> FunctionType:
    """The same function with empty cells of its own."""
    cells = None if function.__closure__ is None else tuple(CellType() for _ in function.__closure__)
    made = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
    for name in functools.WRAPPER_ASSIGNMENTS:
        setattr(made, name, getattr(function, name))
    made.__dict__.update(function.__dict__)
    return made


Held = TypeVar("Held")


def deep_copy(held: Held, memo: dict[int, Any], fresh: Mapping[str, Any]) -> Held:
    """Copy an object with all its attributes, as `copy.deepcopy` does, but for those that the copy gets anew.

    Args:
        held: the object.
        memo: see `copy.deepcopy`.
        fresh: name of an attribute -> its value in the copy.

    Returns:
        The copy.
    """
    new = object.__new__(type(held))
    memo[id(held)] = new
    for name, value in vars(held).items():
        copied = _copied if isinstance(value, nn.Module) else copy.deepcopy
        setattr(new, name, fresh[name] if name in fresh else copied(value, memo))
    return new
