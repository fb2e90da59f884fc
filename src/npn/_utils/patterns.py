"""Match names against shell-style patterns: `*`, `?`, `[...]`."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

from npn._utils.validation import shown
from npn.errors import ConfigurationError

Value = TypeVar("Value")
MOST = 10  # names that a message lists


def as_patterns(given: str | Iterable[str] | None, option: str) -> list[str] | None:
    """Turn one pattern, several patterns or None into a list of patterns or None.

    Args:
        given: one pattern, an iterable of patterns, or None.
        option: name of the option that it came from, for the error message.

    Returns:
        A list of patterns; None for None.

    Raises:
        ConfigurationError: it is neither text nor several texts.

    Example:
        >>> as_patterns("fc*", "only"), as_patterns(None, "only")
        (['fc*'], None)
    """
    if given is None:
        return None
    if isinstance(given, str):
        return [given]
    patterns = list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigurationError(f'{option} must be a name pattern such as "fc*", or several, got {shown(given)}')
    return patterns


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether any of the patterns matches the name.

    Args:
        name: the name to match.
        patterns: shell-style patterns; a pattern equal to the name always matches.

    Example:
        >>> matches("blocks.3.fc", ["stem", "blocks.*"])
        True
    """
    return any(pattern == name or fnmatchcase(name, pattern) for pattern in patterns)


def require_matches(patterns: Iterable[str], names: Sequence[str]) -> None:
    """Raise unless every pattern matches a group.

    Args:
        patterns: shell-style patterns.
        names: names of the groups.

    Raises:
        ConfigurationError: a pattern matches no group; the message names the first one.
    """
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            raise ConfigurationError(f"pattern {pattern!r} matches no group; {nearest(pattern, names)}")


def nearest(pattern: str, names: Collection[str]) -> str:
    """Say which names there are; of many, those that are most like a pattern.

    Args:
        pattern: that matches none of them.
        names: of the groups.

    Example:
        >>> nearest("sten", ["stem", "head"])
        'the model has: stem, head'
        >>> nearest("block.7.fc", [f"blocks.{i}.fc" for i in range(12)])
        'the nearest of its 12 are: blocks.7.fc, blocks.9.fc, blocks.8.fc'
    """
    if len(names) <= MOST:
        return f"the model has: {', '.join(names)}"
    lower = {name.lower(): name for name in names}
    near = get_close_matches(pattern.lower(), lower, n=3, cutoff=0.0)
    return f"the nearest of its {len(names)} are: {', '.join(lower[name] for name in near)}"


def match_patterns(values: Mapping[str, Value], names: Collection[str], option: str) -> dict[str, Value]:
    """Give each name the value of the first pattern that matches it; leave out names that no pattern matches.

    Args:
        values: pattern or plain name -> value; earlier entries win.
        names: names of the unit groups.
        option: name of the option that `values` came from, for the error message.

    Returns:
        name -> value.

    Raises:
        ConfigurationError: a pattern matches no name, so a misspelt pattern cannot go unnoticed.

    Example:
        >>> match_patterns({"head": 2.0, "*": 1.0}, ["fc1", "head"], "weight")
        {'fc1': 1.0, 'head': 2.0}
    """
    hits = {name: [pattern for pattern in values if matches(name, [pattern])] for name in names}
    idle = sorted(set(values).difference(*hits.values()))
    if idle:
        there = f"there are {list(names)}" if len(names) <= MOST else nearest(idle[0], names)
        raise ConfigurationError(f"{option}: {', '.join(map(repr, idle))} matches no unit group; {there}")
    return {name: values[patterns[0]] for name, patterns in hits.items() if patterns}
