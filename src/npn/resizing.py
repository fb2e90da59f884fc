"""Resize an attached model: check, carry out, report."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from npn.count import count_params
from npn.errors import ResizeError
from npn.gate import OPEN
from npn.surgery import Extra, Plan, apply_plan
from npn.tracking import check_optimizers, check_strangers

if TYPE_CHECKING:
    from npn.plasticity import Plasticity


@dataclass(frozen=True)
class ResizeReport:
    """What a resize did.

    Attributes:
        changes: group name -> (units before, units after), for the groups that changed.
        params: (parameters before, after).
        removed: group name -> numbers that the removed units had.
        added: group name -> numbers of the new units.
    """

    changes: Mapping[str, tuple[int, int]]
    params: tuple[int, int]
    removed: Mapping[str, tuple[int, ...]]
    added: Mapping[str, tuple[int, ...]]

    def __bool__(self) -> bool:
        return bool(self.changes)


def report(plan: Plan, before: int, after: int) -> ResizeReport:
    """What a plan changed, given the number of parameters before and after."""
    sizes = {group.name: group.size for group in plan.before.parts}
    removed: dict[str, tuple[int, ...]] = {}
    added: dict[str, tuple[int, ...]] = {}
    for name, source in plan.units.items():
        gone = sorted(set(range(sizes[name])) - set(source.tolist()))
        new = (source < 0).nonzero().reshape(-1).tolist()
        removed |= {name: tuple(gone)} if gone else {}
        added |= {name: tuple(new)} if new else {}
    changes = {name: (sizes[name], len(source)) for name, source in plan.units.items()}
    return ResizeReport(changes, (before, after), removed, added)


def resize(plastic: "Plasticity", plan: Plan) -> ResizeReport:
    """Carry out a plan on the model, its gates and its tracked optimizers.

    Raises:
        ResizeError, OptimizerError: nothing has changed.
    """
    before = count_params(plastic.model)
    if not plan.units:
        return report(plan, before, before)
    if torch.is_inference_mode_enabled():
        raise ResizeError(
            "a resize inside torch.inference_mode() would make parameters that cannot be trained; call it outside"
        )
    check_optimizers(plastic.optimizers, plastic)
    check_strangers(plastic)
    extras = []
    for group in plastic.groups:
        logits, *others = group.gate.tensors
        extras.append(Extra(logits, group.name, plastic.sharpness.logit(OPEN)))
        extras += [Extra(tensor, group.name, 0) for tensor in others]
    apply_plan(plastic.model, plan, plastic.optimizers, extras)
    plastic.restructured(plan.after)
    return report(plan, before, count_params(plastic.model))
