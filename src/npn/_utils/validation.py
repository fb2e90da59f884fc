"""Check arguments; the error message gives the argument's name, the expected values and the value that came."""

from npn.errors import ConfigurationError


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
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        of = f" of {unit}" if unit else ""
        raise ConfigurationError(f"{name} must be a whole number >= {least}{of}, got {value!r}")
    return value
