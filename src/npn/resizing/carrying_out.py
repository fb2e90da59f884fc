"""Carry out a plan on the model, its gates and its optimizers."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from npn import surgery
from npn._utils.collectives import broadcast
from npn._utils.models import model_tensors
from npn._utils.warning import warn
from npn.counting import count_params
from npn.errors import ResizeError
from npn.gates.stand_ins import keep_stand_ins, stand_ins
from npn.masking import MaskedCall
from npn.masking.messages import DETACHED
from npn.optimizer_steps import check_untracked
from npn.optimizers import check_optimizers, parameter_names
from npn.structure import NEW
from npn.surgery import ZERO, Plan, ResizeReport, Start


def resize(
    call: MaskedCall, plan: Plan, optimizers: Sequence[Optimizer], grace: int = 0, start: Start = ZERO
) -> ResizeReport:
    """Carry out a plan on the model, its gates' tensors and the tracked optimizers.

    Args:
        call: the hooks of the attached model, which know gates and weights.
        plan: of the resize.
        optimizers: whose state follows.
        grace: calls of `backward` for which the gates of single weights of new units are held open.
        start: how new units start.

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
    names = parameter_names(model, gates)
    check_optimizers(optimizers, names, gates)
    check_untracked(optimizers, names)
    stood = stand_ins(gates)
    surgery.apply_plan(model, plan, optimizers, gates.extras(grace) + call.weights.extras(), start.model)
    for extra in gates.carried:  # a method masks a unit that was split and its copy alike
        with torch.no_grad():
            for new, origin in start.split.get(extra.name, {}).items():
                extra.tensor[new] = extra.tensor[origin]
    keep_stand_ins(gates, stood, plan, model_tensors(model), optimizers)
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
