"""Choose between train and eval mode: trace the mode that reaches all parameters."""

from dataclasses import replace
from typing import Any

from torch import nn

from npn.errors import TraceError
from npn.structure import NOT_PRODUCED, NOT_READ, Frozen, Group, Structure
from npn.tracing.single import in_mode, single_trace
from npn.tracing.warming import warm_up

_WORD = {True: "train()", False: "eval()"}


def changed_by_itself(model: nn.Module, example_inputs: Any) -> dict[bool, list[str]]:
    """Run the model once for real in each mode, as before a trace, and find the parameters that it changes by itself.

    Args:
        model: as before afterwards.
        example_inputs: see `npn.tracing.trace`.

    Returns:
        Mode (whether it is train mode), the present one first -> names of the parameters.
    """
    found = {model.training: warm_up(model, example_inputs)}
    with in_mode(model, not model.training):
        found[model.training] = warm_up(model, example_inputs)
    return found


def trace_unchanged(model: nn.Module, example_inputs: Any, streams: bool = False) -> tuple[Structure, dict[str, str]]:
    """Trace a model, before the dry run, in a mode in which it changes no parameter by itself, if there is one.

    Args:
        model: any module; traced in the mode it is in, if it can be.
        example_inputs, streams: see `npn.tracing.trace`.

    Returns:
        The structure; and the name of each parameter that the model changes by itself -> the reason why it keeps its
        sizes.

    Raises:
        TraceError: see `trace_modes`, or the model changes parameters in both modes, which the trace cannot follow.
    """
    changed = changed_by_itself(model, example_inputs)
    reasons: dict[str, str] = {}
    for mode, names in changed.items():
        for name in names:
            reasons.setdefault(name, f"the forward pass in {_WORD[mode]} changes {name} by itself")
    present, other = changed
    if changed[present] and not changed[other]:
        with in_mode(model, other):
            structure = trace_modes(model, example_inputs, streams)
        return replace(structure, training=other if structure.training is None else structure.training), reasons
    try:
        return trace_modes(model, example_inputs, streams), reasons
    except TraceError as error:
        if not changed[present]:
            raise
        raise TraceError(
            f"{reasons[changed[present][0]]}, which cannot be traced ({error}); change weights outside of the forward "
            "pass, or trace only a part of the model without them: npn.attach(model.backbone, ...)"
        ) from error


def trace_modes(model: nn.Module, example_inputs: Any, streams: bool = False) -> Structure:
    """Trace a model, before the dry run, in the mode in which more of its parameters take part.

    The other mode is traced only if some parameters take no part in the present one, such as a head used in training
    only or a block skipped at random. A unit that cannot be resized in one of the modes is frozen.

    Args:
        model: any module; traced in the mode it is in.
        example_inputs, streams: see `npn.tracing.trace`.

    Returns:
        The structure.

    Raises:
        TraceError: tracing cannot follow the forward pass, or each mode uses parameters that the other does not.
    """
    present = single_trace(model, example_inputs, streams=streams)
    if not present.unreached:
        return present
    mode = model.training if present.training is None else present.training
    other = None
    if mode == model.training:  # otherwise the trace in train mode has failed already
        with in_mode(model, not mode):
            try:
                found = single_trace(model, example_inputs, streams=streams)
                other = found if found.training is None else None
            except TraceError:
                pass
    if other is None:
        return _explained(present, f"in {_WORD[mode]}, and in {_WORD[not mode]} it cannot be traced")
    ours, theirs = set(present.unreached), set(other.unreached)
    if ours <= theirs:
        return _explained(present, "in train() or in eval()" if ours == theirs else f"in {_WORD[mode]}")
    if not theirs < ours:
        raise TraceError(
            f"{_some(theirs - ours)} take part in the forward pass in {_WORD[mode]} only, {_some(ours - theirs)} in "
            f"{_WORD[not mode]} only, so that no trace sees both; let one of the modes use all of them, or attach the "
            "parts that they share separately"
        )
    return _explained(_common(replace(other, training=not mode), present, _WORD[mode]), "in train() or in eval()")


def _some(names: set[str]) -> str:
    """Up to three of the names, for error messages."""
    return ", ".join(sorted(names)[:3])


def _explained(structure: Structure, where: str) -> Structure:
    """Give the parameters that take no part in the forward pass that fact as their reason."""
    unreached = set(structure.unreached)
    frozen = tuple(
        replace(entry, reason=f"it takes no part in the forward pass {where}")
        if entry.reason == NOT_PRODUCED and all(tensor in unreached for tensor, _ in entry.slots)
        else entry
        for entry in structure.frozen
    )
    return replace(structure, frozen=frozen)


def _common(structure: Structure, other: Structure, mode: str) -> Structure:
    """Freeze the groups that the other mode, in which fewer parameters take part, cannot resize."""
    groups: list[Group] = []
    frozen = list(structure.frozen)
    for group in structure.groups:
        reason = _obstacle(group, other)
        if reason is None:
            groups.append(group)
        else:
            keys = tuple(slot.key for slot in group.slots)
            frozen.append(Frozen(f"{keys[0][0]}[{keys[0][1]}]", f"in {mode} {reason}", keys, group.size))
    return replace(structure, groups=tuple(groups), frozen=tuple(frozen))


def _obstacle(group: Group, other: Structure) -> str | None:
    """Why a group cannot be resized in another mode, or None."""
    for key in (slot.key for slot in group.slots):
        sizes = [g.size for g in other.groups if any(slot.key == key for slot in g.slots)]
        reasons = [f.reason for f in other.frozen if key in f.slots and f.reason not in (NOT_PRODUCED, NOT_READ)]
        if sizes and group.size not in sizes:
            return "its units are other ones"
        if not sizes and reasons:
            return reasons[0]
    return None
