"""The entry to tracing: all that can have gates, each resize rehearsed."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from npn._utils.patterns import as_patterns, matches, require_matches
from npn.structure import LEFT_OUT, Frozen, Structure
from npn.tracing.branches import with_branches
from npn.tracing.columns import with_columns
from npn.tracing.dry_run import freeze_fixed_sizes
from npn.tracing.modes import trace_modes

Patterns = str | Iterable[str] | None


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    only: Patterns = None,
    skip: Patterns = None,
    columns: Patterns = None,
    branches: Patterns = None,
) -> Structure:
    """Find the units of a model that can be resized, and the branches and input columns that can have gates.

    The forward pass is traced on fake tensors, then every group of units is shrunk and grown in a rehearsal; what the
    code hard-codes is frozen, with the line that does. The model is as before.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of `forward`.
        only, skip: patterns of names of groups that are kept, or left out.
        columns: patterns of names of layers whose single input columns have gates.
        branches: patterns of names of submodules that have a gate as a whole.

    Raises:
        TraceError: the forward pass cannot be followed, or the model does not work without a branch.
        ConfigurationError: a pattern matches nothing.
    """
    structure = trace_units(model, example_inputs)
    structure = select_groups(structure, only, skip)
    structure = with_branches(model, example_inputs, structure, as_patterns(branches) or ())
    return with_columns(model, example_inputs, structure, as_patterns(columns) or ())


def trace_units(model: nn.Module, example_inputs: Any) -> Structure:
    """Groups of units and frozen dimensions of the whole model, each group rehearsed."""
    return freeze_fixed_sizes(model, example_inputs, trace_modes(model, example_inputs))


def select_groups(structure: Structure, only: Patterns, skip: Patterns) -> Structure:
    """Leave out the groups that the patterns exclude; they count as frozen.

    Raises:
        ConfigurationError: a pattern matches no group.
    """
    chosen, left = as_patterns(only), as_patterns(skip)
    names = [group.name for group in structure.groups]
    require_matches((*(chosen or ()), *(left or ())), names)
    kept, frozen = [], list(structure.frozen)
    for group in structure.groups:
        if (chosen is None or matches(group.name, chosen)) and not matches(group.name, left or ()):
            kept.append(group)
        else:
            keys = tuple(slot.key for slot in group.slots)
            frozen.append(Frozen(group.name, LEFT_OUT, keys, group.size))
    return replace(structure, groups=tuple(kept), frozen=tuple(frozen))
