"""From gates to resizes: the units that a model loses and gains, and the small copy that leaves it."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from npn import optimizers as checks
from npn import surgery
from npn._utils.copies import model_copy
from npn._utils.validation import whole_number
from npn.counting import count_params
from npn.errors import ConfigurationError, ResizeError
from npn.gates import Gates
from npn.masking import MaskedCall, MaskedWeights
from npn.masking.calls import detached_leftovers
from npn.masking.table import MaskTable
from npn.modules import full_length, materialize_selects
from npn.structure import NEW, Structure
from npn.surgery import Plan, ResizeReport
from npn.tracing import grown, shrunk


def units_to_remove(gates: Gates, below: float) -> dict[str, list[int]]:
    """Group name -> closed units that are less likely than `below` or closed by hand, in whole sets.

    Args:
        gates: of the model.
        below: keep probability.
    """
    gates.decide()
    for group in gates.groups:
        group.gate.clear_reopened()
    gone = {group: group.gate.gone(below).nonzero().reshape(-1).tolist() for group in gates.groups}
    removed = {group.name: group.in_sets(units) for group, units in gone.items()}
    return {name: units for name, units in removed.items() if units}


def units_to_add(gates: Gates, more: Mapping[str, int]) -> dict[str, int]:
    """Group name -> units to add, in whole sets; groups that gain none are left out.

    Args:
        gates: of the model.
        more: group name -> units asked for.

    Raises:
        ConfigurationError: a group is unknown or cannot grow, or a number is not a whole number >= 0.
    """
    wanted = {}
    for name, number in more.items():
        group = gates.group(name)
        whole_number(f"the growth of {group.name!r}", number, 0, "units")
        if not group.grows:
            raise ConfigurationError(f"{group.name!r} {group.fixed}")
        if number:
            wanted[group.name] = -(-number // group.multiple) * group.multiple
    return wanted


def removal(
    model: nn.Module,
    structure: Structure,
    removed: Mapping[str, Sequence[int]],
    weights: MaskedWeights,
    example_inputs: Any,
) -> Plan:
    """Plan to remove units; groups that change in sets are re-traced.

    Args:
        model: the attached model, or a copy of it.
        structure: of the model.
        removed: group name -> numbers of the units.
        weights: which stand aside during the re-trace.
        example_inputs: for the re-trace.

    Raises:
        ResizeError: see `npn.surgery.plan_removal`.
    """

    def retraced(rest: Structure, fewer: Mapping[str, int]) -> Structure:
        with weights.step(), full_length(model):
            return shrunk(model, example_inputs, rest, fewer)

    return surgery.plan_removal(structure, removed, retraced)


def growth(
    model: nn.Module, structure: Structure, more: Mapping[str, int], weights: MaskedWeights, example_inputs: Any
) -> Plan:
    """Plan to add units; a re-trace says where.

    Args:
        model: the attached model.
        structure: of the model.
        more: group name -> number of units.
        weights: which stand aside during the re-trace.
        example_inputs: for the re-trace.

    Raises:
        ResizeError: see `npn.tracing.grown`.
    """
    if not more:
        return surgery.plan_removal(structure, {})
    with weights.step(), full_length(model):
        larger = grown(model, example_inputs, structure, more)
    return surgery.plan_growth(structure, larger)


def resize(model: nn.Module, plan: Plan, optimizers: Sequence[Optimizer], gates: Gates) -> ResizeReport:
    """Carry out a plan on the model, its gates' tensors and the tracked optimizers.

    Args:
        model: the attached model.
        plan: of the resize.
        optimizers: whose state follows.
        gates: of the model.

    Raises:
        ResizeError, OptimizerError: nothing has changed.
    """
    before = count_params(model)
    if not plan.units:
        return surgery.report(plan, before, before)
    if torch.is_inference_mode_enabled():
        raise ResizeError(
            "a resize inside torch.inference_mode() would make parameters that cannot be trained; call it outside"
        )
    names = checks.parameter_names(model, gates)
    checks.check_optimizers(optimizers, names, gates)
    checks.check_untracked(optimizers, names)
    surgery.apply_plan(model, plan, optimizers, gates.extras())
    _warn_of_frozen(model, plan)
    return surgery.report(plan, before, count_params(model))


def _warn_of_frozen(model: nn.Module, plan: Plan) -> None:
    """Warn if new units have weights that do not learn."""
    new = {name for name, sources in plan.sources.items() if any(bool((s == NEW).any()) for s in sources.values())}
    frozen = [name for name, parameter in model.named_parameters() if name in new and not parameter.requires_grad]
    if frozen:
        more = f" and {len(frozen) - 3} more" if len(frozen) > 3 else ""
        warnings.warn(
            f"new units have entries in frozen parameters, which will not learn: {', '.join(frozen[:3])}{more}. Call "
            "requires_grad_(True) on them and give them to an optimizer, or do not grow these groups",
            stacklevel=5,
        )


def plain_copy(call: MaskedCall, structure: Structure, example_inputs: Any) -> nn.Module:
    """A copy of a model without its closed units and without any dependence on npn.

    Args:
        call: the hooks of the attached model, or of a copy that follows it; they know gates and weights.
        structure: of the model.
        example_inputs: for re-traces.

    Raises:
        ConfigurationError: an attribute of the model cannot be copied.
    """
    call.recover()
    gates, weights, model = call.gates, call.weights, call.weights.model
    without: dict[int, Any] = {id(each): None for each in (gates, weights, gates.decision)}
    clone = model_copy(model, without | detached_leftovers(model))
    call.unregister(clone)
    closed = gates.closed()
    removed = {group.name: group.in_sets(closed[group.name]) for group in gates.groups}
    mask = call.mask()
    # closed units of incomplete sets stay, and nothing reads them; a method's mask has values other than 0 and 1
    if mask is not None and (removed != closed or gates.decision is not None):
        table = MaskTable(clone, structure)
        with torch.no_grad():
            for parameter, factors in zip(table.parameters, table.expand(mask), strict=True):
                for factor in factors:
                    parameter.mul_(factor)
    plan = removal(clone, structure, removed, weights, example_inputs)
    surgery.apply_plan(clone, plan)
    materialize_selects(clone)
    if gates.decision is not None:
        gates.decision.finish(clone, plan)
    return clone
