"""Look once more before units go: whether the model computes the same at just the sizes that it would have then."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from npn.errors import ResizeError
from npn.structure import Structure, difference, other_ops, other_outputs, without_units
from npn.tracing.capture.environment import quiet
from npn.tracing.capture.lines import raising_line
from npn.tracing.grouping.fingerprint import computed
from npn.tracing.rehearsal.retrace import OtherUnits, captured_at, shrunk

CHANGED = "it has other units now than when it was attached, so that its code or one of its modules has changed"


def why_not(
    model: nn.Module, example_inputs: object, structure: Structure, removed: Mapping[str, Sequence[int]]
) -> str | None:
    """Why a model computes something else without some units than with their gates closed; None if it does not.

    The rehearsal has tried a few sizes; code such as ``h / min(h.shape[1], 24)`` or ``h.squeeze()`` may hold at these,
    and not at others; and the code may have changed since the model was attached. Where the model cannot be traced as
    it is now, nothing is known, and nothing is said.

    Args:
        model: as before afterwards.
        example_inputs: of its forward pass.
        structure: of the model.
        removed: group name -> numbers of the units.
    """
    first = model.training if structure.training is None else structure.training
    modes = (first, not first) if structure.modes_differ or structure.training is None else (first,)
    with quiet():
        for mode in modes:
            known, reason = _compared(model, example_inputs, replace(structure, training=mode), removed)
            if reason is not None or (known and not structure.modes_differ):
                return reason
    return None


def _compared(
    model: nn.Module, example_inputs: object, structure: Structure, removed: Mapping[str, Sequence[int]]
) -> tuple[bool, str | None]:
    """Whether one mode could be traced; and why the computation is another one there, or None."""
    sets = {group.name: (group.size, group.multiple) for group in structure.groups if group.multiple > 1}
    tried = dict(removed)
    for name, (size, multiple) in sets.items():  # a trace follows no single set, as it follows no single unit
        if name in tried and size - len(tried[name]) == multiple:
            tried[name] = tried[name][multiple:]
    expected = without_units(structure, tried)
    fewer = {name: len(numbers) for name, numbers in tried.items()}
    in_sets = any(fewer.get(name) for name in sets)
    found, reason = None, None
    try:
        found = shrunk(model, example_inputs, structure, fewer)
        reason = difference(expected, found, placement=not in_sets)
    except ResizeError as error:
        reason = str(error)
    if reason is not None or structure.modes_differ:  # from what was attached: in another mode, or before other changes
        try:
            now = shrunk(model, example_inputs, structure, {})
        except ResizeError as error:  # modes that differ may have other units than each other
            changed = isinstance(error, OtherUnits) and not structure.modes_differ
            return (True, CHANGED) if changed else (False, None)
        if found is not None:
            expected = replace(expected, fingerprint=now.fingerprint, outputs=now.outputs, norms=now.norms)
            reason = difference(expected, found, placement=not in_sets)
    if reason is None:
        left = {g.name: g.size - len(removed.get(g.name, ())) for g in structure.groups}
        single = {g.name: g.multiple for g in structure.groups if left[g.name] == g.multiple < g.size}
        reason = _differs_alone(model, example_inputs, structure, removed, single) if single else None
    return True, reason


def _differs_alone(
    model: nn.Module,
    example_inputs: object,
    structure: Structure,
    removed: Mapping[str, Sequence[int]],
    single: Mapping[str, int],
) -> str | None:
    """Why the code fails, or computes something else, with a single unit in some groups; None if it does not.

    Labels that do not vary cannot be followed, so the ops are compared with those at one unit more.

    Args:
        model, example_inputs, structure, removed: see `why_not`.
        single: groups that keep one unit or set -> units of it.
    """
    change = {name: -len(numbers) for name, numbers in removed.items()}
    try:
        more = captured_at(
            model, example_inputs, structure, {n: count + single.get(n, 0) for n, count in change.items()}
        )
    except Exception:  # it cannot run on fake tensors
        return None
    try:
        alone = captured_at(model, example_inputs, structure, change)
    except Exception as error:
        return (
            f"the code fails with a single unit at {raising_line(error)}: {str(error).strip() or type(error).__name__}"
        )
    return other_outputs(more.outputs, alone.outputs) or other_ops(computed(more.graph), computed(alone.graph))
