"""Train and eval mode: see whether a model computes the same in both, and trace it in each where it does not."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from npn._utils.models import in_mode, model_tensors
from npn._utils.warning import warn
from npn.errors import TraceError
from npn.structure import NOT_PRODUCED, Couplings, Structure
from npn.tracing.capture.warming import WarmUp, warm_up
from npn.tracing.one_trace import single_trace

WORD = {True: "train()", False: "eval()"}


@dataclass(frozen=True)
class Modes:
    """What was traced, before the rehearsal.

    Attributes:
        structure: in the mode in which more of the parameters and buffers take part.
        other: in the other mode; None where the model computes the same there, or cannot be traced.
        mode: whether `structure` is of train mode.
    """

    structure: Structure
    other: Structure | None
    mode: bool


def seen_in_both(model: nn.Module, example_inputs: Any) -> dict[bool, WarmUp]:
    """Run the model for real in each mode, as before a trace: once, and again where the modes seem to differ.

    Args:
        model: as before afterwards.
        example_inputs: see `npn.tracing.trace`.

    Returns:
        Mode (whether it is train mode), the present one first -> what the forward pass did.
    """
    found = {model.training: warm_up(model, example_inputs)}
    with in_mode(model, not model.training):
        found[model.training] = warm_up(model, example_inputs)
    first, other = found.values()
    if first.ran and other.ran and first.calls != other.calls:  # the first run may have filled a cache for the second
        found[model.training] = replace(first, calls=warm_up(model, example_inputs).calls)
    return found


def trace_unchanged(
    model: nn.Module, example_inputs: Any, streams: bool = False, couplings: Couplings | None = None
) -> tuple[Modes, dict[str, str]]:
    """Trace a model, before the rehearsal, in the modes in which it changes no parameter by itself.

    Args:
        model: any module; traced in the mode it is in, if it can be.
        example_inputs, streams: see `npn.tracing.trace`.
        couplings: see `single_trace`.

    Returns:
        The structures; and the name of each parameter that the model changes by itself -> the reason why it keeps its
        sizes.

    Raises:
        TraceError: see `trace_modes`, or the model changes parameters in both modes, which the trace cannot follow.
    """
    seen = seen_in_both(model, example_inputs)
    reasons: dict[str, str] = {}
    for mode, each in seen.items():
        for name in each.changed:
            reasons.setdefault(name, f"the forward pass in {WORD[mode]} changes {name} by itself")
    present, other = seen
    if seen[present].changed and not seen[other].changed:
        with in_mode(model, other):
            modes = trace_modes(model, example_inputs, streams, False, couplings)
        modes = replace(modes, structure=replace(modes.structure, training=modes.mode))
        return modes, reasons if modes.other else _of_all(model, reasons)
    try:
        modes = trace_modes(model, example_inputs, streams, _alike(*seen.values()), couplings)
        unseen = bool(seen[other].changed) and modes.other is None
        return modes, _of_all(model, reasons) if unseen and not seen[present].changed else reasons
    except TraceError as error:
        if not seen[present].changed:
            raise
        raise TraceError(
            f"{reasons[seen[present].changed[0]]}, which cannot be traced ({error}); change weights outside of the "
            "forward pass, or trace only a part of the model without them: npn.attach(model.backbone, ...)"
        ) from error


def _alike(present: WarmUp, other: WarmUp) -> bool:
    """Whether the other mode need not be traced: it computes the same, or cannot run."""
    return not other.ran or (present.calls == other.calls and present.calls is not None)


def _of_all(model: nn.Module, reasons: Mapping[str, str]) -> dict[str, str]:
    """What a mode that no trace sees writes into parameters may be made of any others: none is resized."""
    why = f"{next(iter(reasons.values()))}, where the trace cannot see what goes into it"
    return {name: f"{why}; change weights outside of the forward pass" for name in model_tensors(model)} | dict(reasons)


def trace_modes(
    model: nn.Module,
    example_inputs: Any,
    streams: bool = False,
    alike: bool = True,
    couplings: Couplings | None = None,
) -> Modes:
    """Trace a model, before the rehearsal, in the mode in which more of its parameters and buffers take part.

    Args:
        model: any module; traced in the mode it is in.
        example_inputs, streams: see `npn.tracing.trace`.
        alike: whether the modes compute the same; the other one is then traced only if some parameters take no part in
            the present one, such as a head used in training only.
        couplings: see `single_trace`.

    Raises:
        TraceError: tracing cannot follow the forward pass, or each mode uses parameters that the other does not.
    """
    present = single_trace(model, example_inputs, streams=streams, couplings=couplings)
    mode = model.training if present.training is None else present.training
    if alike and not present.unreached:
        return Modes(present, None, mode)
    other, why = None, ""
    with in_mode(model, not mode):
        try:
            other = single_trace(model, example_inputs, streams=streams, either=False, couplings=couplings)
        except TraceError as error:
            why = str(error)
    if other is None:
        if not alike:
            warn(
                f"in {WORD[not mode]} the forward pass computes something else than in {WORD[mode]}, and it cannot be "
                f"traced there ({why}): what was found holds for {WORD[mode]}"
            )
        return Modes(_explained(present, f"in {WORD[mode]}, and in {WORD[not mode]} it cannot be traced"), None, mode)
    ours, theirs = set(present.unreached), set(other.unreached)
    if not (ours <= theirs or theirs <= ours):
        raise TraceError(
            f"{_some(theirs - ours)} take part in the forward pass in {WORD[mode]} only, {_some(ours - theirs)} in "
            f"{WORD[not mode]} only, so that no trace sees both; let one of the modes use all of them, or attach the "
            "parts that they share separately"
        )
    if theirs < ours or (ours == theirs and other.resizable > present.resizable):
        return Modes(replace(_explained(other, "in train() or in eval()"), training=not mode), present, not mode)
    where = "in train() or in eval()" if ours == theirs else f"in {WORD[mode]}"
    return Modes(_explained(present, where), other, mode)


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
