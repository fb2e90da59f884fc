"""Trace a model at other sizes: integer attributes change temporarily, and no memory is allocated."""

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from torch import nn

from npn._utils.models import in_mode
from npn.errors import ResizeError, TraceError
from npn.modules import described_sizes, holding, increased
from npn.structure import Key, Structure, difference, match_groups, resized_shapes, without_units
from npn.tracing.capture.graph import Capture, capture, output_shapes
from npn.tracing.one_trace import single_trace


class OtherUnits(ResizeError):
    """At some sizes a model can be traced, and has other units than it had."""


def attributes_changed(
    model: nn.Module, structure: Structure, change: Mapping[str, int]
) -> AbstractContextManager[None]:
    """Change the integer attributes that follow a group's size, and those that describe parameters, inside the context.

    Args:
        model: the model.
        structure: its structure.
        change: group name -> units added (negative: removed).
    """
    edits: list[tuple[nn.Module, str, int]] = []
    follow: set[tuple[str, str]] = set()
    lengths: dict[Key, int] = {}
    for group in structure.groups:
        count = change.get(group.name, 0)
        for path, name, each in group.attributes:
            follow.add((path, name))
            edits.append((model.get_submodule(path), name, each * count))
        for slot in group.slots if count else ():
            lengths[slot.key] = lengths.get(slot.key, 0) + count * slot.index.shape[1]
    edits += described_sizes(model, lengths, follow, structure.bare)
    return holding(increased(edits))


@contextlib.contextmanager
def _resized(model: nn.Module, structure: Structure, change: Mapping[str, int]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Inside, all but the tensors is as at other sizes, in the mode that was traced; gives the tensors' shapes."""
    with attributes_changed(model, structure, change), in_mode(model, structure.training):
        yield resized_shapes(structure, change)


def outputs_at(
    model: nn.Module, example_inputs: object, structure: Structure, change: Mapping[str, int], meta: bool = False
) -> tuple[tuple[int, ...], ...]:
    """Shapes of the outputs at other sizes: the code runs, and no graph is recorded.

    Args:
        model, example_inputs, structure, change: see `retrace`.
        meta: see `npn.tracing.capture.graph.output_shapes`.
    """
    with _resized(model, structure, change) as shapes:
        return output_shapes(model, example_inputs, shapes, meta)


def captured_at(model: nn.Module, example_inputs: object, structure: Structure, change: Mapping[str, int]) -> Capture:
    """The graph at other sizes.

    Args:
        model, example_inputs, structure, change: see `retrace`.
    """
    with _resized(model, structure, change) as shapes:
        return capture(model, example_inputs, shapes)


def retrace(model: nn.Module, example_inputs: object, structure: Structure, change: Mapping[str, int]) -> Structure:
    """Trace the model at other sizes; no memory is allocated, and the model is unchanged afterwards.

    Args:
        model: the model.
        example_inputs: see `npn.tracing.trace`.
        structure: its structure.
        change: group name -> units added (negative: removed).

    Returns:
        The structure at the new sizes, with names from this trace.

    Raises:
        TraceError: tracing cannot follow the forward pass at these sizes.
    """
    with _resized(model, structure, change) as shapes:
        found = single_trace(model, example_inputs, shapes, structure.streams, couplings=structure.couplings)
    return replace(found, training=structure.training, modes_differ=structure.modes_differ)


def grown(model: nn.Module, example_inputs: object, structure: Structure, more: Mapping[str, int]) -> Structure:
    """Compute the structure after groups gain units; a re-trace gives the positions of the new units.

    In every group the old units come first, then the new ones. A group with a single unit is traced with two, since
    labels that do not vary cannot be followed; the spare unit is removed from the result.

    Args:
        model: the model.
        example_inputs: see `npn.tracing.trace`.
        structure: its structure.
        more: group name -> units to add.

    Returns:
        The structure at the larger sizes.

    Raises:
        ResizeError: the re-trace does not contain the old structure.
    """
    spare = {g.name: 1 for g in structure.groups if g.size + more.get(g.name, 0) < 2}
    change = {g.name: more.get(g.name, 0) + spare.get(g.name, 0) for g in structure.groups}
    try:
        named = _retraced(model, example_inputs, structure, change)
    except ResizeError as error:
        if structure.training is not None:
            raise ResizeError(f"cannot grow {dict(more)}: {error}") from error
        try:  # the model was attached in the other mode, in which it may take another path
            other = _retraced(model, example_inputs, replace(structure, training=not model.training), change)
        except ResizeError:
            raise ResizeError(f"cannot grow {dict(more)}: {error}") from error
        named = replace(other, training=None)
    larger = without_units(named, {g.name: [g.size - 1] for g in named.groups if g.name in spare})
    back = without_units(larger, {g.name: range(g.size - more.get(g.name, 0), g.size) for g in larger.groups})
    same = replace(structure, fingerprint=back.fingerprint)
    in_sets = any(g.multiple > 1 and more.get(g.name) for g in structure.groups)
    problem = difference(same, replace(back, outputs=structure.outputs), placement=not in_sets)
    if problem:
        raise ResizeError(f"cannot grow {dict(more)}: {problem}")
    return larger


def shrunk(model: nn.Module, example_inputs: object, structure: Structure, fewer: Mapping[str, int]) -> Structure:
    """The structure after groups lost units, with positions from a re-trace.

    Args:
        model: traced, not changed.
        example_inputs: as for `trace`.
        structure: at the present sizes.
        fewer: group name -> number of units that go.

    Raises:
        OtherUnits: at these sizes the model has other units.
        ResizeError: at these sizes it cannot be traced.
    """
    change = {g.name: -fewer.get(g.name, 0) for g in structure.groups}
    spare = {g.name for g in structure.groups if g.size + change[g.name] < 2}  # see `grown`
    try:
        named = _retraced(model, example_inputs, structure, {n: c + (n in spare) for n, c in change.items()})
    except ResizeError as error:
        raise type(error)(f"cannot shrink by {dict(fewer)}: {error}") from error
    return without_units(named, {g.name: [g.size - 1] for g in named.groups if g.name in spare})


def _retraced(model: nn.Module, inputs: object, structure: Structure, change: Mapping[str, int]) -> Structure:
    """Trace the model at other sizes and match its groups to the present ones."""
    try:
        named = match_groups(structure, retrace(model, inputs, structure, change))
    except TraceError as error:
        raise ResizeError(str(error)) from error
    if named is None or any(
        g.size != s.size + change[s.name] for g, s in zip(named.groups, structure.groups, strict=True)
    ):
        raise OtherUnits("at the new sizes the model has other units than before")
    return named
