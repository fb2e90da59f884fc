"""Check arguments; the error message gives the argument's name, the expected values and the value that came."""

import math
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Any, TypeGuard

from npn.errors import CheckpointError, ConfigurationError, PlasticityError

HANDLE = "the handle that npn.attach returned"  # what messages call it


def whole_number(name: str, value: object, least: int, unit: str = "") -> int:
    """Return a value if it is a whole number >= `least`, else raise.

    Args:
        name: name of the argument, for the error message.
        value: the argument; True and False do not count as numbers.
        least: smallest value allowed.
        unit: the things that the argument counts, for the error message.

    Returns:
        The value.

    Raises:
        ConfigurationError: the value is not a whole number, or is too small.

    Example:
        >>> whole_number("patience", 3, least=1)
        3
        >>> whole_number("grace", 0.5, least=0, unit="calls of backward")
        Traceback (most recent call last):
        npn.errors.ConfigurationError: grace must be a whole number >= 0 of calls of backward, got 0.5
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        of = f" of {unit}" if unit else ""
        raise ConfigurationError(f"{name} must be a whole number >= {least}{of}, got {value!r}")
    return int(value)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number; True, False and text are none.

    Args:
        value: the argument.

    Example:
        >>> is_number(0.5), is_number("0.5")
        (True, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def flag(name: str, value: object) -> bool:
    """Return True or False if the value is one of these, else raise.

    Args:
        name: of the argument, for the error message.
        value: the argument.

    Raises:
        ConfigurationError: it is neither.

    Example:
        >>> flag("streams", "no")
        Traceback (most recent call last):
        npn.errors.ConfigurationError: streams must be True or False, got 'no'
    """
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, got {shown(value)}")
    return value


def instance(name: str, value: object, kind: Any, what: str) -> None:
    """Raise unless a value is of a kind.

    Args:
        name: of the argument, for the error message.
        value: the argument.
        kind: a class or several, as for `isinstance`.
        what: is expected, in words.

    Raises:
        ConfigurationError: it is not.

    Example:
        >>> instance("more", ["fc1"], dict, "a dict from group name to units")
        Traceback (most recent call last):
        npn.errors.ConfigurationError: more must be a dict from group name to units, got ['fc1']
    """
    if not isinstance(value, kind):
        raise ConfigurationError(f"{name} must be {what}, got {shown(value)}")


def shown(value: object) -> str:
    """A value for an error message: as it prints if that is short, else its class.

    Args:
        value: any object.

    Example:
        >>> shown("fc1"), shown(list(range(100)))
        ("'fc1'", 'a list')
    """
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


def complete_state(
    state: object, keys: Collection[str], of: str, name: str, error: type[PlasticityError] = CheckpointError
) -> None:
    """Raise unless a state that is to be loaded is a dict with all keys.

    Args:
        state: what was given.
        keys: that it must have.
        of: what the state belongs to.
        name: of the object whose `state_dict()` gives such a state.
        error: class of the error.

    Raises:
        CheckpointError: it is not, or as `error` says.

    Example:
        >>> complete_state({"steps": 3}, ["best", "steps"], "a Growth", "growth")
        Traceback (most recent call last):
        npn.errors.CheckpointError: not the state of a Growth: it lacks best; give what growth.state_dict() returned
    """
    wrong = f"got {shown(state)}"
    if isinstance(state, Mapping):
        missing = sorted(set(keys) - set(state))
        if not missing:
            return
        wrong = f"it lacks {', '.join(missing)}"
    raise error(f"not the state of {of}: {wrong}; give what {name}.state_dict() returned")


def positive(name: str, value: float, *, below: float = math.inf) -> float:
    """Return a number if it lies in (0, below], else raise.

    Args:
        name: of the argument, for the error message.
        value: the argument.
        below: the largest value; infinity itself is not allowed.

    Returns:
        The value as a float.

    Raises:
        ConfigurationError: it does not.

    Example:
        >>> positive("rate", 0.1, below=1)
        0.1
        >>> positive("rate", 2, below=1)
        Traceback (most recent call last):
        npn.errors.ConfigurationError: rate must be a number in (0, 1], got 2
    """
    if not is_number(value) or not 0 < value <= below or value == math.inf:
        limits = "a finite number > 0" if below == math.inf else f"a number in (0, {below:g}]"
        raise ConfigurationError(f"{name} must be {limits}, got {value!r}")
    return float(value)


def finite(name: str, value: float) -> float:
    """Return a number if it is finite, else raise.

    Args:
        name: of the argument, for the error message.
        value: the argument.

    Returns:
        The value as a float.

    Raises:
        ConfigurationError: it is not.

    Example:
        >>> finite("a", -1)
        -1.0
    """
    if not is_number(value) or not math.isfinite(value):
        raise ConfigurationError(f"{name} must be a finite number, got {shown(value)}")
    return float(value)


def not_negative(name: str, value: float) -> None:
    """Raise unless a number lies in [0, inf).

    Args:
        name: of the argument, for the error message.
        value: the argument.

    Raises:
        ConfigurationError: it does not.

    Example:
        >>> not_negative("gain", -1)
        Traceback (most recent call last):
        npn.errors.ConfigurationError: gain must be a finite number >= 0, got -1
    """
    if not is_number(value) or not 0 <= value < math.inf:
        raise ConfigurationError(f"{name} must be a finite number >= 0, got {value!r}")


def target_size(value: float, cost: str) -> None:
    """Raise unless a target is a fraction, as a float up to 1, or a cost.

    Args:
        value: the target; below 1 it has to be a float, since its type tells a fraction from a cost.
        cost: what it bounds; only a "layerwise" cost may lie between 1 and 2, where others are meant as fractions.

    Raises:
        ConfigurationError: it is neither.

    Example:
        >>> target_size(0.5, "params"), target_size(40, "units")
        (None, None)
    """
    if not is_number(value) or not 0 < value < math.inf or (value < 1 and not isinstance(value, float)):
        raise ConfigurationError(
            f"target must be a fraction in (0, 1] as a float, or a cost above 1 (or an int), got {value!r}"
        )
    if 1 < value < 2 and cost != "layerwise":
        raise ConfigurationError(
            f"target={value!r} would be a cost of {value!r} {cost}, since a fraction of the size is at most 1.0; to "
            "bound a network that grows, give the cost itself, such as 1_500_000"
        )


def connection_count(name: str, value: object) -> None:
    """Raise unless a value says how many closed weights to reopen.

    Args:
        name: of the argument.
        value: a whole number >= 0, or a float fraction of the open weights.

    Raises:
        ConfigurationError: it is neither.
    """
    if not is_number(value) or not isinstance(value, (Integral, float)) or not 0 <= value < math.inf:
        needed = "an int >= 0 or a float fraction of the open weights"
        raise ConfigurationError(f"{name} must be {needed}, got {shown(value)}")


def share(name: str, value: float) -> float:
    """Return a number if it lies in [0, 1], else raise.

    Args:
        name: of the argument, for the error message.
        value: the argument.

    Returns:
        The value as a float.

    Raises:
        ConfigurationError: it does not.

    Example:
        >>> share("drop", 0.3)
        0.3
    """
    if not is_number(value) or not 0 <= value <= 1:
        raise ConfigurationError(f"{name} must be a share in [0, 1], got {value!r}")
    return float(value)
