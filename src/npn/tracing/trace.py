"""The entry to tracing: find everything that can have gates, and rehearse every resize."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from time import process_time
from typing import Any

from torch import nn
from torch.utils._pytree import tree_leaves

from npn._utils.models import sharing_memory
from npn._utils.patterns import as_patterns, matches, require_matches
from npn._utils.validation import shown
from npn._utils.warning import warn
from npn.errors import TraceError
from npn.structure import MIXES, Couplings, Frozen, Structure, freeze, freeze_tensors, leave_out
from npn.tracing.both_modes import agreeing
from npn.tracing.branches import with_branches
from npn.tracing.columns import with_columns
from npn.tracing.modes import WORD, trace_unchanged
from npn.tracing.refusals import check_model
from npn.tracing.rehearsal.couplings import find_couplings
from npn.tracing.rehearsal.repair import freeze_fixed_sizes

AGAIN = 30.0  # seconds of CPU time: a rehearsal that took longer is not done again with couplings
Patterns = str | Iterable[str] | None
SHARED = (
    "{name} and {other} are two tensors in one memory, as .data makes them, which a resize would part; make them one "
    "parameter: layer.weight = other.weight"
)
_NORMS = (
    "native_layer_norm", "_fused_rms_norm", "rms_norm", "mean", "var", "std", "var_mean", "linalg_vector_norm", "sum",
)  # fmt: skip
_FOLLOWED = tuple(f"{name} {MIXES}" for name in _NORMS)  # reasons of what streams=True follows


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    only: Patterns = None,
    skip: Patterns = None,
    columns: Patterns = None,
    branches: Patterns = None,
    streams: bool = False,
) -> Structure:
    """Find the units of a model that can be resized, and the branches and input columns that can have gates.

    The forward pass is traced on fake tensors. A rehearsal then shrinks and grows every group; a group whose size the
    code hard-codes is frozen, with the source line as the reason. The model is unchanged afterwards.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of `forward`.
        only, skip: patterns of the names of groups to keep, or to leave out.
        columns: patterns of the names of layers whose single input columns get gates.
        branches: patterns of the names of submodules that get one gate each.
        streams: whether units that a norm normalises over can be resized.

    Returns:
        The structure.

    Raises:
        TraceError: the model is wrapped, sharded or quantized, tracing cannot follow its forward pass, or it does not
            work without a branch.
        ConfigurationError: a pattern matches nothing.
    """
    check_model(model)
    only, skip = as_patterns(only, "only"), as_patterns(skip, "skip")
    branches, columns = as_patterns(branches, "branches") or (), as_patterns(columns, "columns") or ()
    structure = trace_units(model, example_inputs, streams)
    _tell_of_values(structure)
    _tell_of_choices(structure, example_inputs)
    structure = select_groups(structure, only, skip)
    structure = with_branches(model, example_inputs, structure, branches)
    if structure.branches is not None:
        sets = [group.name for group in structure.groups if group.multiple > 1]
        structure = freeze(structure, sets, "its units come and go in sets, which is not possible beside branches=")
    structure = with_columns(model, example_inputs, structure, columns)
    return replace(structure, frozen=_listed(structure.frozen, streams))


def _listed(frozen: Sequence[Frozen], streams: bool) -> tuple[Frozen, ...]:
    """Each dimension once for each reason; a reason that streams=True may take away says so."""
    found: dict[tuple[str, str], Frozen] = {}
    for entry in frozen:
        under_norm = not streams and entry.reason.startswith(_FOLLOWED)
        told = replace(entry, reason=f"{entry.reason} (streams=True may let them go)") if under_norm else entry
        before = found.setdefault((told.name, told.reason), told)
        slots = tuple(dict.fromkeys((*before.slots, *told.slots)))
        found[told.name, told.reason] = replace(before, slots=slots)
    return tuple(found.values())


def _tell_of_values(structure: Structure) -> None:
    """Warn of what the structure takes from the values of the example inputs; refuse norms whose calls they decide."""
    found = structure.decisions
    if structure.norms:
        for values, lines in (("inputs", found.by_inputs), ("buffers", found.by_buffers)):
            if lines:
                raise TraceError(
                    f"streams=True follows norms in the order of their calls, which values of the {values} may change "
                    f"at {lines[0]}; attach without streams=True"
                )
    if found.by_others:
        warn(
            f"the forward pass picks rows by values that it computes itself at {', '.join(found.by_others[:5])}: "
            "multiply-adds count half of the rows there"
        )
    if found.by_inputs:
        warn(
            f"the forward pass decides by values of its inputs at {', '.join(found.by_inputs[:5])}: what was found "
            "holds for inputs that decide as example_inputs do; others have to use the weights in the same way"
        )
    if found.by_buffers:
        warn(
            f"the forward pass decides by values of its buffers at {', '.join(found.by_buffers[:5])}: what was found "
            "holds while they decide as they do now; other values have to use the weights in the same way, and what a "
            "first call sets up has to be set up before npn.attach"
        )
    if found.held:
        warn(
            f"the forward pass decides by values that it computes itself at {', '.join(found.held[:5])}, and half "
            "of them were assumed to hold: what was found holds for passes in which some do; others have to use the "
            "weights in the same way"
        )
    if found.leaving:
        warn(
            f"values that the model computes leave its forward pass at {', '.join(found.leaving[:5])}, as for a "
            "log or a check: several made-up ones were tried, and changed nothing in what is computed. What was found "
            "holds as long as no other value does"
        )
    lines = found.by_inputs + found.by_buffers + found.by_others + found.held
    if structure.unreached and lines:
        line = lines[0]
        warn(
            f"{', '.join(structure.unreached[:5])} take no part in the forward pass on example_inputs, which decides "
            f"by values at {line}: if other inputs use them, neither gates nor resizes reach what they read; give "
            "example_inputs for which every part of the model has work"
        )


def _tell_of_choices(structure: Structure, example_inputs: Any) -> None:
    """Warn of weights without part where an argument may choose them, as the name of a task chooses its head."""
    chosen = [
        each for each in tree_leaves(example_inputs) if isinstance(each, (str, int)) and not isinstance(each, bool)
    ]
    if structure.unreached and chosen:
        warn(
            f"{', '.join(structure.unreached[:5])} take no part in the forward pass on example_inputs, which hold "
            f"{shown(chosen[0])}: if other values use them, neither gates nor resizes reach what they read; attach a "
            "small module whose forward calls the model with each value, and train the model as before"
        )


def trace_units(model: nn.Module, example_inputs: Any, streams: bool = False) -> Structure:
    """Find the groups of units and the frozen dimensions of a model, and rehearse the resize of each group.

    Args:
        model: any module.
        example_inputs, streams: see `trace`.

    Returns:
        The structure, without branches and columns.
    """
    start = process_time()
    traced, rehearsed = _rehearsed(model, example_inputs, streams)
    if process_time() - start > AGAIN:
        return rehearsed
    found = find_couplings(model, example_inputs, traced, rehearsed)
    if found:
        _, coupled = _rehearsed(model, example_inputs, streams, found)
        if coupled.resizable > rehearsed.resizable:
            return coupled
    return rehearsed


def _rehearsed(
    model: nn.Module, example_inputs: Any, streams: bool, coupled: Couplings | None = None
) -> tuple[Structure, Structure]:
    """The structure before and after the rehearsal."""
    modes, changed = trace_unchanged(model, example_inputs, streams, coupled)
    changed |= {name: SHARED.format(name=name, other=other) for name, other in sharing_memory(model).items()}
    structure, other = modes.structure, modes.other
    structure, other = freeze_tensors(structure, changed), other and freeze_tensors(other, changed)
    if other is None:
        return structure, freeze_fixed_sizes(model, example_inputs, structure)
    training, mode = structure.training, modes.mode
    found = freeze_fixed_sizes(model, example_inputs, replace(structure, training=mode))
    found = agreeing(model, example_inputs, found, replace(other, training=not mode), WORD[not mode])
    return structure, replace(found, training=training, modes_differ=True)


def select_groups(structure: Structure, only: Sequence[str] | None, skip: Sequence[str] | None) -> Structure:
    """Leave out the groups that the patterns exclude; they become frozen.

    Args:
        structure: the structure of the whole model.
        only: patterns of the names of groups to keep; None keeps all.
        skip: patterns of the names of groups to leave out.

    Returns:
        The structure with the remaining groups.

    Raises:
        ConfigurationError: a pattern matches no group.
    """
    names = [group.name for group in structure.groups]
    require_matches((*(only or ()), *(skip or ())), names)
    kept = [name for name in names if (only is None or matches(name, only)) and not matches(name, skip or ())]
    return leave_out(structure, kept)
