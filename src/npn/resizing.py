"""From gates to resizes: the units that a model loses and gains, and the small copy that leaves it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from npn import optimizers as checks
from npn import surgery
from npn._utils.collectives import assert_same, broadcast
from npn._utils.copies import model_copy
from npn._utils.fsdp import unsharded
from npn._utils.inputs import model_dtype, moved_with
from npn._utils.models import model_tensors
from npn._utils.shards import full
from npn._utils.validation import instance, share, whole_number
from npn._utils.warning import warn
from npn.counting import count_params
from npn.errors import ConfigurationError, ResizeError
from npn.gates import Gates
from npn.masking import MaskedCall, MaskedWeights
from npn.masking.calls import detached_leftovers
from npn.masking.messages import DETACHED
from npn.masking.table import MaskTable
from npn.modules import full_length, materialize_selects
from npn.structure import NEW, Group, Structure, with_dead_units
from npn.surgery import Finish, Plan, ResizeReport
from npn.tracing import grown, shrunk, why_not


def decide(gates: Gates, least: float = -math.inf) -> None:
    """Let a method decide, and raise if a logit, or a method's score, is NaN: its unit would go for good.

    Args:
        gates: of the model.
        least: units of a lower score go, too.

    Raises:
        ResizeError: naming the first group of such a logit or score.
        ConfigurationError: no method gives scores.
    """
    each, decision = gates.each, gates.decision
    if decision is None and least > -math.inf:
        raise ConfigurationError("score= is for methods, which give units a score; gates have a probability, below=")
    gates.decide(least)
    values = gates.logits() if decision is None else decision.chosen()[1]
    names = [*(group.name for group in gates.groups), *(gate.name for gate in gates.weights)]
    for name, piece in zip(names, values.split([gate.logits.numel() for gate in each]), strict=True):
        if count := int(piece.isnan().sum()):
            what, of = ("logits", "the gates'") if decision is None else ("scores", f"{type(decision).__name__}'s")
            raise ResizeError(
                f"{count} of {len(piece)} {what} of {name!r} are NaN, so which of its units stay is not known. Look at "
                f"{of} gradients and learning rate, and go back to a checkpoint"
            )


def units_to_remove(gates: Gates, structure: Structure, below: float, least: float = -math.inf) -> dict[str, list[int]]:
    """Group name -> closed units that are less likely than `below` or closed by hand, in whole sets.

    Units whose every reader is a single weight that is to be removed go too, but for the likeliest unit of a group.

    Args:
        gates: of the model.
        structure: of the model.
        below: keep probability.
        least: score of a method; units with less go, too.
    """
    decide(gates, least)
    for gate in gates.each:
        gate.clear_reopened()
    gone = {group.name: group.gate.gone(below).nonzero().reshape(-1).tolist() for group in gates.groups}
    if gates.weights:
        held = {group.name: group.gate.grace.nonzero().reshape(-1).tolist() for group in gates.groups}
        gone = with_dead_units(structure, gone, {gate.name: gate.gone(below) for gate in gates.weights}, held)
    removed = {}
    for group in gates.groups:
        units = gone.get(group.name, [])
        if len(units) == group.size:
            units = [unit for unit in units if unit != int(group.gate.logits.argmax())]
        removed[group.name] = group.in_sets(units)
    return {name: units for name, units in removed.items() if units}


def remove_weights(
    gates: Gates, weights: MaskedWeights, below: float, optimizers: Sequence[Optimizer]
) -> dict[str, int]:
    """Set closed weights to zero for good: without momentum or gradient, no optimizer moves them from there.

    Args:
        gates: of the model.
        weights: of the model.
        below: weights less likely than this go, and those closed by hand.
        optimizers: that may hold the weights or their logits.

    Returns:
        Name of the parameter -> number of weights removed now.
    """
    if not gates.weights:
        return {}
    gates.to(weights.device)
    tensors = weights.table.named
    removed = {}
    with torch.no_grad():
        for gate in gates.weights:
            new = gate.gone(below) & ~gate.removed
            removed[gate.name] = int(new.sum())
            gate.removed |= new
            tensors[gate.name].masked_fill_(gate.removed, 0)
            surgery.forget_momentum(optimizers, tensors[gate.name], gate.removed)
            surgery.forget_momentum(optimizers, gate.logits, gate.removed)
    return {name: number for name, number in removed.items() if number}


def units_to_add(gates: Gates, more: Mapping[str, int]) -> dict[str, int]:
    """Group name -> units to add, in whole sets; groups that gain none are left out.

    Args:
        gates: of the model.
        more: group name -> units asked for.

    Raises:
        ConfigurationError: a group is unknown or cannot grow, or a number is not a whole number >= 0.
    """
    instance("more", more, Mapping, "a dict from group name to number of units")
    wanted = {}
    for name, number in more.items():
        group = gates.group(name)
        whole_number(f"the growth of {group.name!r}", number, 0, "units")
        if not group.grows:
            raise ConfigurationError(f"{group.name!r} {group.fixed}")
        if number:
            wanted[group.name] = -(-number // group.multiple) * group.multiple
    return wanted


def compaction(
    call: MaskedCall, structure: Structure, below: float, example_inputs: Any, least: float = -math.inf
) -> Plan:
    """Plan to remove what has stayed closed, see `units_to_remove`.

    Args:
        call: the hooks of the attached model, which know gates and weights.
        structure: of the model.
        below: keep probability.
        example_inputs: for re-traces.
        least: score of a method; units with less go, too.

    Raises:
        ResizeError: see `npn.surgery.plan_removal` and `npn.surgery.check_shapes`.
        DistributedError: the processes would remove different units.
    """
    call.recover()
    surgery.check_shapes(call.weights.model, structure)
    removed = units_to_remove(call.gates, structure, share("below", below), least)
    assert_same("what compact removes", removed)
    model, weights = call.weights.model, call.weights
    fitting = removable(model, structure, removed, weights, example_inputs)
    return removal(model, structure, fitting, weights, example_inputs)


def removable(
    model: nn.Module,
    structure: Structure,
    removed: Mapping[str, Sequence[int]],
    weights: MaskedWeights,
    example_inputs: Any,
) -> dict[str, Sequence[int]]:
    """Leave out the units without which the model would compute something else; a warning says why.

    Where code fails with a single unit, as a `squeeze` does, the group keeps a second one.

    Args:
        model, structure, weights, example_inputs: see `removal`.
        removed: group name -> numbers of the units.
    """
    sizes = {group.name: group.size for group in structure.groups}

    def reason(fewer: Mapping[str, Sequence[int]]) -> str | None:
        fewer = {name: units for name, units in fewer.items() if name in sizes}
        with weights.step(), unsharded(model), full_length(model):
            return why_not(model, example_inputs, structure, fewer) if fewer else None

    if weights.in_step or weights.swapped:  # then a resize is refused, and an export is not looked at
        return dict(removed)
    why = reason(removed)
    if why is None:
        return dict(removed)
    passing: dict[str, Sequence[int]] = {}
    for name, units in removed.items():
        tries = [units, units[:-1]] if sizes.get(name) == len(units) + 1 else [units]
        fitting = next((each for each in tries if each and reason(passing | {name: each}) is None), None)
        passing |= {} if fitting is None else {name: fitting}
    stay = [name for name, units in removed.items() if len(passing.get(name, ())) < len(units)]
    warn(
        f"closed units of {', '.join(stay)} stay in the model, masked: without them it would compute something else "
        f"({why}). Leave the groups out with skip= when attaching, or write the code so that it holds at every size"
    )
    return passing


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
        with weights.step(), unsharded(model), full_length(model):
            return shrunk(model, example_inputs, rest, fewer)

    return surgery.plan_removal(structure, removed, retraced)


def growth(
    call: MaskedCall, structure: Structure, more: Mapping[str, int], example_inputs: Any, times: int = 1
) -> Plan:
    """Plan to add units; a re-trace says where.

    Args:
        call: the hooks of the attached model, which know gates and weights.
        structure: of the model.
        more: group name -> number of units, rounded up to whole sets.
        example_inputs: for the re-trace.
        times: factor of the number of units, for groups whose units do not come in sets.

    Raises:
        ResizeError: see `npn.tracing.grown` and `npn.surgery.check_shapes`.
        ConfigurationError: see `units_to_add`.
        DistributedError: the processes would add different units.
    """
    call.recover()
    wanted, model = units_to_add(call.gates, more), call.weights.model
    surgery.check_shapes(model, structure)
    assert_same("what grow adds", wanted)
    wanted = {name: n * (times if call.gates.group(name).multiple == 1 else 1) for name, n in wanted.items()}
    if not wanted:
        return surgery.plan_removal(structure, {})
    with call.weights.step(), unsharded(model), full_length(model):
        larger = grown(model, example_inputs, structure, wanted)
    return surgery.plan_growth(structure, larger)


def start(call: MaskedCall, plan: Plan, init: str, warmup: int) -> surgery.Start:
    """How the new units of a plan start; see `npn.surgery.start`.

    Args:
        call: the hooks of the attached model, which know gates and weights.
        plan: of the growth.
        init: name of the initialisation.
        warmup: optimizer steps of their warm-up.

    Raises:
        ConfigurationError: the weights are split over processes, and `init` or `warmup` needs whole ones.
    """
    if init != "zero" or warmup:
        call.weights.need_whole(f"init={init!r}" if init != "zero" else "warmup")
    open_units = torch.cat([group.gate.mask for group in call.gates.groups if isinstance(group.traced, Group)])
    return surgery.start(init, model_tensors(call.weights.model), plan, open_units)


def resize(
    call: MaskedCall, plan: Plan, optimizers: Sequence[Optimizer], grace: int = 0, finish: Finish | None = None
) -> ResizeReport:
    """Carry out a plan on the model, its gates' tensors and the tracked optimizers.

    Args:
        call: the hooks of the attached model, which know gates and weights.
        plan: of the resize.
        optimizers: whose state follows.
        grace: calls of `backward` for which the gates of single weights of new units are held open.
        finish: see `npn.surgery.apply_plan`.

    Raises:
        ResizeError, OptimizerError: nothing has changed.
    """
    model, gates = call.weights.model, call.gates
    before = count_params(model)
    if call.weights.detached:
        raise ResizeError(DETACHED)
    if call.weights.in_step or call.weights.swapped:
        raise ResizeError(
            "a resize inside plastic.backward or npn.masked would change the weights under their masks; call it "
            "afterwards"
        )
    if torch.is_inference_mode_enabled():
        raise ResizeError(
            "a resize inside torch.inference_mode() would make parameters that cannot be trained; call it outside"
        )
    if not plan.units:
        return surgery.report(plan, before, before)
    names = checks.parameter_names(model, gates)
    checks.check_optimizers(optimizers, names, gates)
    checks.check_untracked(optimizers, names)
    surgery.apply_plan(model, plan, optimizers, gates.extras(grace) + call.weights.extras(), finish)
    return surgery.report(plan, before, count_params(model))


def agree(model: nn.Module, optimizers: Sequence[Optimizer], report: ResizeReport) -> None:
    """After growth, copy the first process's weights to all; each process has drawn different new rows.

    Args:
        model: after the resize.
        optimizers: tracked ones, of which some keep copies of the weights.
        report: of the resize.
    """
    broadcast([*model.parameters(), *surgery.weight_copies(optimizers)] if report.added else ())


def warn_of_frozen(model: nn.Module, plan: Plan) -> None:
    """Warn if new units have weights that do not learn; last, since a filter may turn a warning into an error.

    Args:
        model: after the resize.
        plan: of the resize.
    """
    new = {name for name, sources in plan.sources.items() if any(bool((s == NEW).any()) for s in sources.values())}
    frozen = [name for name, parameter in model.named_parameters() if name in new and not parameter.requires_grad]
    if frozen:
        more = f" and {len(frozen) - 3} more" if len(frozen) > 3 else ""
        warn(
            f"new units have entries in frozen parameters, which will not learn: {', '.join(frozen[:3])}{more}. Call "
            "requires_grad_(True) on them and give them to an optimizer, or do not grow these groups"
        )


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
    fitting = removable(clone, structure, some, weights, example_inputs)
    removed = {name: list(fitting.get(name, ())) for name in whole}
    mask = call.mask()
    # closed units of incomplete sets stay, unread; a method's mask has values other than 0 and 1
    if mask is not None and (removed != closed or gates.weights or gates.decision is not None):
        table = MaskTable(clone, structure)
        with torch.no_grad():
            for parameter, factors in zip(table.parameters, table.expand(mask.to(table.device)), strict=True):
                for factor in factors:
                    parameter.mul_(factor)
    plan = removal(clone, structure, removed, weights, example_inputs)
    surgery.apply_plan(clone, plan)
    materialize_selects(clone)
    if gates.decision is not None:
        gates.decision.finish(clone, plan)
    return clone
