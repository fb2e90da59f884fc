"""Checks of arguments."""

from npn.errors import ConfigurationError


def whole_number(name: str, value: object, least: int) -> int:
    """Return `value` if it is an integer of at least `least`; True and False do not count as integers.

    Args:
        name: of the argument, for the message.
        value: the argument.
        least: the smallest value that is allowed.

    Raises:
        ConfigurationError: `value` is something else, or smaller.

    Example:
        >>> whole_number("epochs", 3, least=1)
        3
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name} must be a whole number >= {least}, got {value!r}")
    return value
