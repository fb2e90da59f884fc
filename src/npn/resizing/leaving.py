"""The small plain copy that leaves an attached model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from npn import surgery
from npn._utils.copies import model_copy
from npn._utils.fsdp import unsharded
from npn._utils.inputs import model_dtype, moved_with
from npn._utils.shards import full
from npn.errors import ResizeError
from npn.gates import Gates
from npn.masking import MaskedCall
from npn.masking.calls import detached_leftovers
from npn.masking.table import MaskTable
from npn.modules import materialize_selects
from npn.resizing.choice import decide
from npn.resizing.planning import Subject, removable, removal
from npn.structure import Group, Structure


def plain_copy(call: MaskedCall, structure: Structure, example_inputs: Any) -> nn.Module:
    """A copy of a model without its closed units and without any dependence on npn.

    Args:
        call: the hooks of the attached model, or of a copy that follows it; they know gates and weights.
        structure: of the model.
        example_inputs: for re-traces.

    Raises:
        ConfigurationError: an attribute of the model cannot be copied.
        ResizeError: a logit or a method's score is NaN, or the model has other parameters than when it was attached.
    """
    call.recover()
    gates, weights, model = call.gates, call.weights, call.weights.model
    decide(gates)
    surgery.check_shapes(model, structure)
    without: dict[int, Any] = {id(each): None for each in (gates, weights, gates.decision)}
    with unsharded(model, lambda parameter: full(parameter.detach()).to("cpu", copy=True)):
        clone = model_copy(model, without | detached_leftovers(model))
    if weights.sharded:
        clone.to("cpu")
        example_inputs = moved_with(clone, example_inputs, model_dtype(clone))
    call.unregister(clone)
    closed = gates.closed()
    whole = {group.name: group.in_sets(closed[group.name]) for group in gates.groups}
    some = {name: units for name, units in whole.items() if units}
    subject = Subject(clone, structure, example_inputs, weights)
    fitting = removable(subject, some)
    removed = {name: list(fitting.get(name, ())) for name in whole}
    _check_norms(gates, closed, removed)
    mask = call.mask()  # closed units of incomplete sets stay, unread; a method's has values other than 0 and 1
    if mask is not None and (removed != closed or gates.weights or gates.decision is not None):
        table = MaskTable(clone, structure)
        with torch.no_grad():
            for parameter, factors in zip(table.parameters, table.expand(mask.to(table.device)), strict=True):
                for factor in factors:
                    parameter.mul_(factor)
    plan = removal(subject, removed)
    surgery.apply_plan(clone, plan)
    materialize_selects(clone)
    if gates.decision is not None:
        gates.decision.finish(clone, plan)
    return clone


def _check_norms(gates: Gates, closed: Mapping[str, Sequence[int]], removed: Mapping[str, Sequence[int]]) -> None:
    """Raise where closed units stay under a norm: without masks it counts them, although no weight reads them."""
    for group in gates.groups:
        left = sorted({*closed[group.name]} - {*removed[group.name]})
        if left and isinstance(group.traced, Group) and group.traced.normed:
            raise ResizeError(
                f"closed units {left} of {group.name!r} have to stay, and a norm would count them in the export; "
                f"open them with plastic.open({group.name!r}, {left}), or close more: sets of {group.multiple} can go"
            )
