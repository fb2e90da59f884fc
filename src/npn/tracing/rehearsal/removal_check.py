"""Look once more before units go: whether the model computes the same at just the sizes that it would have then."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from npn.errors import ResizeError
from npn.structure import Structure, difference, other_outputs, without_units
from npn.tracing.capture.environment import quiet
from npn.tracing.capture.lines import raising_line
from npn.tracing.rehearsal.retrace import OtherUnits, outputs_at, shrunk

CHANGED = "it has other units now than when it was attached, so that its code or one of its modules has changed"


def why_not(
    model: nn.Module, example_inputs: object, structure: Structure, removed: Mapping[str, Sequence[int]]
) -> str | None:
    """Why a model computes something else without some units than with their gates closed; None if it does not.

    The dry run has tried a few sizes; code such as ``h / min(h.shape[1], 24)`` or ``h.squeeze()`` may hold at these and
    not at others; and the code may have changed since the model was attached. Where the model cannot be traced as it is
    now, nothing is known, and nothing is said.

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
    gone = {name: len(numbers) for name, numbers in removed.items()}
    single = any(gone.get(group.name, 0) == group.size - group.multiple > 0 for group in structure.groups)
    return True, _fails(model, example_inputs, structure, gone) if reason is None and single else reason


def _fails(model: nn.Module, example_inputs: object, structure: Structure, fewer: Mapping[str, int]) -> str | None:
    """Why the code does not run with a single unit in some groups, which a trace cannot follow; None if it does."""
    try:
        present = outputs_at(model, example_inputs, structure, {})
    except Exception:
        return None
    try:
        found = outputs_at(model, example_inputs, structure, {name: -count for name, count in fewer.items()})
    except Exception as error:
        return (
            f"the code fails with a single unit at {raising_line(error)}: {str(error).strip() or type(error).__name__}"
        )
    return other_outputs(present, found)
