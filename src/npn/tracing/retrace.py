"""Trace a model at other sizes: integer attributes follow for a while, nothing is allocated."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn

from npn.errors import ResizeError, TraceError
from npn.structure import Structure, difference, match, resized_shapes, without
from npn.tracing.single import in_mode, single_trace

Attribute = tuple[str, str, int]


@contextlib.contextmanager
def attributes_changed(model: nn.Module, structure: Structure, change: Mapping[str, int]) -> Iterator[None]:
    """Integer attributes that follow a group's size, changed for a while."""
    before = []
    for group in structure.groups:
        for path, name, each in group.attributes:
            module = model.get_submodule(path)
            before.append((module, name, getattr(module, name)))
            object.__setattr__(module, name, getattr(module, name) + each * change.get(group.name, 0))
    try:
        yield
    finally:
        for module, name, value in reversed(before):
            object.__setattr__(module, name, value)


def retrace(model: nn.Module, example_inputs: object, structure: Structure, change: Mapping[str, int]) -> Structure:
    """Trace the model as it would be after a change of sizes; nothing is allocated, the model is as before."""
    with attributes_changed(model, structure, change), in_mode(model, structure.training):
        found = single_trace(model, example_inputs, resized_shapes(structure, change))
    return replace(found, training=structure.training)


def grown(model: nn.Module, example_inputs: object, structure: Structure, more: Mapping[str, int]) -> Structure:
    """The structure after groups gained units, with positions from a re-trace.

    In every group the old units come first, then the new ones. Groups with a single unit are traced at two, since a
    single unit leaves no variation to see; the spare one is deleted from the answer.

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
        try:  # attached in the other mode, in which the model may take another path
            other = _retraced(model, example_inputs, replace(structure, training=not model.training), change)
        except ResizeError:
            raise ResizeError(f"cannot grow {dict(more)}: {error}") from error
        named = replace(other, training=None)
    larger = without(named, {g.name: [g.size - 1] for g in named.groups if g.name in spare})
    back = without(larger, {g.name: range(g.size - more.get(g.name, 0), g.size) for g in larger.groups})
    problem = difference(replace(structure, fingerprint=back.fingerprint), replace(back, outputs=structure.outputs))
    if problem:
        raise ResizeError(f"cannot grow {dict(more)}: {problem}")
    return larger


def _retraced(model: nn.Module, inputs: object, structure: Structure, change: Mapping[str, int]) -> Structure:
    try:
        named = match(structure, retrace(model, inputs, structure, change))
    except TraceError as error:
        raise ResizeError(str(error)) from error
    if named is None or any(
        g.size != s.size + change[s.name] for g, s in zip(named.groups, structure.groups, strict=True)
    ):
        raise ResizeError("at the new sizes the model has other units than before")
    return named
