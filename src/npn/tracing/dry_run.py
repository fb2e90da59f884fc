"""Rehearse every resize on fake tensors, and freeze the sizes that the code hard-codes."""

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from npn.errors import TraceError
from npn.structure import Frozen, Group, Structure, difference, match, resized_shapes, without
from npn.tracing.attributes import candidates, known, pattern, transfer
from npn.tracing.capture import raising_line
from npn.tracing.retrace import Attribute, retrace

_TRIALS = 32  # attribute combinations tried before a group is frozen


def freeze_fixed_sizes(model: nn.Module, example_inputs: Any, structure: Structure) -> Structure:
    """Rehearse the resize of every group, and freeze the groups that fail.

    All groups are shrunk and grown together on fake tensors. If that fails, each kind of repeated layer is tried by
    itself, and only the groups of a failing kind singly. If a group passes once an integer attribute of a module
    follows its size (`num_heads`, `groups`, `hidden_size`), the attribute becomes part of the group; otherwise the
    group is frozen.

    Args:
        model: the model; unchanged afterwards.
        example_inputs: see `npn.tracing.trace`.
        structure: groups traced at the present sizes.

    Returns:
        The structure with attributes and frozen groups.
    """
    with _quiet():
        return _separate(_mended(model, example_inputs, structure))


def _mended(model: nn.Module, inputs: Any, structure: Structure) -> Structure:
    """Find the attributes that let groups pass, and freeze the groups that still fail."""
    names = [g.name for g in structure.groups]
    if _rehearse(model, inputs, structure, names) is None:
        return structure
    guesses = {g.name: known(model, structure, g) for g in structure.groups}
    if any(guesses.values()):
        for name, attributes in guesses.items():
            structure = _with(structure, name, attributes)
        if _rehearse(model, inputs, structure, names) is None:
            return structure
    kinds: dict[tuple[str, ...], list[Group]] = {}
    for group in structure.groups:
        kinds.setdefault(pattern(group), []).append(group)
    for kind in kinds.values():
        if _rehearse(model, inputs, structure, [g.name for g in kind]) is not None:
            structure = _mend(model, inputs, structure, kind)
    while failing := _isolate(model, inputs, structure, [g.name for g in structure.groups]):
        structure = _freeze(structure, *failing)
    return structure


def _mend(model: nn.Module, inputs: Any, structure: Structure, kind: Sequence[Group]) -> Structure:
    """Find the attributes that a failing kind of groups needs, or freeze the kind if three samples fail alike."""
    for group in kind:
        structure = _with(structure, group.name, ())
    found = _search(model, inputs, structure, kind[0])
    if found:
        for group in kind:
            structure = _with(structure, group.name, transfer(kind[0], group, found))
    elif len(kind) > 3:  # a stack of repeated layers: test three of them for all
        samples = (kind[0], kind[len(kind) // 2], kind[-1])
        reasons = [_rehearse(model, inputs, structure, [g.name]) for g in samples]
        if len({re.sub("[0-9]+", "#", reason or "") for reason in reasons}) == 1 and reasons[0] is not None:
            for group in kind:
                structure = _freeze(structure, group.name, reasons[0])
    return structure


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's log, which would report every failure that a rehearsal expects."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _rehearse(model: nn.Module, inputs: Any, structure: Structure, names: Sequence[str]) -> str | None:
    """Shrink, then grow the named groups by different amounts; return the reason for a failure, or None.

    All groups grow by different amounts, so that no test passes because two sizes changed alike. Groups that share an
    axis with others grow a second time, in the opposite order and by large amounts, because `x[:, ::2]` and `x[:, : c
    // 3]` hold for some sizes only.
    """
    sizes = {g.name: g.size for g in structure.groups}
    more = {n: 2 + i for i, n in enumerate(names)}
    crowded = _crowded(structure, names)
    # remove an odd number from an even size where possible, to find code that depends on parity
    fewer = {n: 1 if sizes[n] == 3 or more[n] % 2 == 0 else 2 for n in names if sizes[n] > 2}
    try:
        return (
            _shrinks(model, inputs, structure, fewer)
            or _grows(model, inputs, structure, more)
            or (
                crowded
                and _grows(model, inputs, structure, {n: len(names) + 3 - more[n] + crowded.get(n, 0) for n in names})
            )
            or None
        )
    except TraceError as error:
        cause = error.__cause__
        if cause is None:
            return f"the code fixes this size: {error}"
        return f"the code fixes this size at {raising_line(cause)}: {str(cause).strip() or type(cause).__name__}"


def _shrinks(model: nn.Module, inputs: Any, structure: Structure, fewer: Mapping[str, int]) -> str | None:
    """Why the model fails when groups lose units, or None."""
    smaller = match(structure, retrace(model, inputs, structure, {n: -c for n, c in fewer.items()}))
    if smaller is None:
        return "the units are other ones when the size changes"
    sizes = {g.name: g.size for g in structure.groups}
    for choice in (_first, _middle, _last):  # equivalent units: the result must not depend on which are removed
        removed = {n: choice(sizes[n], c) for n, c in fewer.items()}
        problem = difference(without(structure, removed), smaller)
        if problem:
            return problem
    return None


def _grows(model: nn.Module, inputs: Any, structure: Structure, more: Mapping[str, int]) -> str | None:
    """Why the model fails when groups gain units, or None."""
    larger = match(structure, retrace(model, inputs, structure, more))
    if larger is None or dict(larger.shapes) != resized_shapes(structure, more):
        return "the units are other ones when the size changes"
    sizes = {g.name: g.size for g in structure.groups}
    if any(g.size != sizes[g.name] + more.get(g.name, 0) for g in larger.groups):
        return "the number of units does not follow the size"
    return difference(structure, without(larger, {n: range(sizes[n], sizes[n] + c) for n, c in more.items()}))


def _crowded(structure: Structure, names: Sequence[str]) -> dict[str, int]:
    """Groups that share an axis with others, and how many of their units would fill it."""
    found: dict[str, int] = {}
    for group in structure.groups:
        for slot in group.slots:
            length = structure.shapes[slot.tensor][slot.axis]
            if group.name in names and slot.index.numel() < length:
                found[group.name] = max(found.get(group.name, 0), length // slot.index.shape[1])
    return found


def _first(size: int, count: int) -> list[int]:
    return list(range(count))


def _middle(size: int, count: int) -> list[int]:
    return [size // 2 + i for i in range(count)]


def _last(size: int, count: int) -> list[int]:
    return list(range(size - count, size))


def _isolate(model: nn.Module, inputs: Any, structure: Structure, names: Sequence[str]) -> tuple[str, str] | None:
    """Find the first group that cannot be resized, by bisection; return its name and the reason, or None."""
    if not names:
        return None
    reason = _rehearse(model, inputs, structure, names)
    if reason is None:
        return None
    if len(names) == 1:
        return names[0], reason
    half = len(names) // 2
    for part in (names[:half], names[half:]):
        found = _isolate(model, inputs, structure, part)
        if found is not None:
            return found
    return names[-1], f"it can only change together with others: {reason}"


def _search(model: nn.Module, inputs: Any, structure: Structure, group: Group) -> tuple[Attribute, ...] | None:
    """Find the smallest set of integer attributes with which the group can be resized."""
    options = candidates(model, structure, group)
    trials: list[tuple[Attribute, ...]] = [tuple(options)] if options else []
    trials += [(one,) for one in options]
    trials += [(a, b) for i, a in enumerate(options) for b in options[i + 1 :]]

    def works(trial: tuple[Attribute, ...]) -> bool:
        return _rehearse(model, inputs, _with(structure, group.name, trial), [group.name]) is None

    for trial in trials[:_TRIALS]:
        if works(trial):
            for one in trial:
                smaller = tuple(a for a in trial if a != one)
                if smaller and works(smaller):
                    trial = smaller
            return trial
    return None


def _with(structure: Structure, name: str, attributes: Sequence[Attribute]) -> Structure:
    """Set the attributes of one group."""
    groups = [replace(g, attributes=tuple(attributes)) if g.name == name else g for g in structure.groups]
    return replace(structure, groups=tuple(groups))


def _freeze(structure: Structure, name: str, reason: str) -> Structure:
    """Turn a group into a frozen dimension."""
    group = next(g for g in structure.groups if g.name == name)
    keys = tuple(slot.key for slot in group.slots)
    entry = Frozen(f"{keys[0][0]}[{keys[0][1]}]", reason, keys, group.size)
    rest = tuple(g for g in structure.groups if g.name != name)
    return replace(structure, groups=rest, frozen=(*structure.frozen, entry))


def _separate(structure: Structure) -> Structure:
    """Freeze groups that share an attribute, since they could only change together."""
    owners: dict[tuple[str, str], list[str]] = {}
    for group in structure.groups:
        for path, name, _ in group.attributes:
            owners.setdefault((path, name), []).append(group.name)
    for (path, name), groups in owners.items():
        for group_name in groups if len(groups) > 1 else ():
            if any(g.name == group_name for g in structure.groups):
                reason = (
                    f"it shares the attribute {name} of {path or 'the model'} with {len(groups) - 1} other group(s)"
                )
                structure = _freeze(structure, group_name, reason)
    return structure
