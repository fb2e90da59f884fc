"""Checks of arguments, with the error that names the argument, the expectation and the value."""

from npn.errors import ConfigurationError


def whole_number(name: str, value: object, least: int, unit: str = "") -> int:
    """The value, if it is a whole number of at least `least`.

    Args:
        name: of the argument, for the error.
        value: of the argument; True and False are no numbers here.
        least: smallest value allowed.
        unit: what is counted, for the error.

    Raises:
        ConfigurationError: it is something else.

    Example:
        >>> whole_number("patience", 3, least=1)
        3
        >>> whole_number("grace", 0.5, least=0, unit="calls of backward")
        Traceback (most recent call last):
        npn.errors.ConfigurationError: grace must be a whole number >= 0 of calls of backward, got 0.5
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        of = f" of {unit}" if unit else ""
        raise ConfigurationError(f"{name} must be a whole number >= {least}{of}, got {value!r}")
    return value
