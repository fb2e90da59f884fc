"""Plans of resizes: what goes and comes, and where it lies, before anything changes."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from npn import surgery
from npn._utils.collectives import assert_same
from npn._utils.fsdp import unsharded
from npn._utils.models import model_tensors
from npn._utils.validation import share
from npn._utils.warning import warn
from npn.masking import MaskedCall, MaskedWeights
from npn.modules import full_length
from npn.resizing.choice import units_to_add, units_to_remove
from npn.structure import Group, Structure
from npn.surgery import Plan
from npn.tracing import grown, shrunk, why_not


@dataclass(frozen=True)
class Subject:
    """A model of which a resize is planned: the attached one, or a copy of it that is to leave.

    Attributes:
        model: the model.
        structure: of the model.
        example_inputs: for re-traces.
        weights: of the attached model.
    """

    model: nn.Module
    structure: Structure
    example_inputs: Any
    weights: MaskedWeights

    @contextlib.contextmanager
    def as_traced(self) -> Iterator[None]:
        """Inside, nothing of npn is at work in the model, which is whole on this process: as when it was attached."""
        with self.weights.step(), unsharded(self.model), full_length(self.model):
            yield


def compaction(call: MaskedCall, subject: Subject, below: float, least: float = -math.inf) -> Plan:
    """Plan to remove what has stayed closed, see `units_to_remove`.

    Args:
        call: the hooks of the attached model, which know gates and weights.
        subject: the attached model.
        below: keep probability.
        least: score of a method; units with less go, too.

    Raises:
        ResizeError: see `npn.surgery.plan_removal` and `npn.surgery.check_shapes`.
        DistributedError: the processes would remove different units.
    """
    call.recover()
    surgery.check_shapes(subject.model, subject.structure)
    removed = units_to_remove(call.gates, subject.structure, share("below", below), least)
    assert_same("what compact removes", removed)
    return removal(subject, removable(subject, removed))


def removable(subject: Subject, removed: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Leave out the units without which the model would compute something else; a warning says why.

    Where code fails with a single unit, as a `squeeze` does, the group keeps a second one.

    Args:
        subject: the model.
        removed: group name -> numbers of the units.
    """
    sizes = {group.name: group.size for group in subject.structure.groups}

    def reason(fewer: Mapping[str, Sequence[int]]) -> str | None:
        fewer = {name: units for name, units in fewer.items() if name in sizes}
        with subject.as_traced():
            return why_not(subject.model, subject.example_inputs, subject.structure, fewer) if fewer else None

    if subject.weights.in_step or subject.weights.swapped:  # then a resize is refused, and an export is not looked at
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


def removal(subject: Subject, removed: Mapping[str, Sequence[int]]) -> Plan:
    """Plan to remove units; groups that change in sets are re-traced.

    Args:
        subject: the model.
        removed: group name -> numbers of the units.

    Raises:
        ResizeError: see `npn.surgery.plan_removal`.
    """

    def retraced(rest: Structure, fewer: Mapping[str, int]) -> Structure:
        with subject.as_traced():
            return shrunk(subject.model, subject.example_inputs, rest, fewer)

    return surgery.plan_removal(subject.structure, removed, retraced)


def growth(call: MaskedCall, subject: Subject, more: Mapping[str, int], times: int = 1) -> Plan:
    """Plan to add units; a re-trace says where.

    Args:
        call: the hooks of the attached model, which know gates and weights.
        subject: the attached model.
        more: group name -> number of units, rounded up to whole sets.
        times: factor of the number of units, for groups whose units do not come in sets.

    Raises:
        ResizeError: see `npn.tracing.grown` and `npn.surgery.check_shapes`.
        ConfigurationError: see `units_to_add`.
        DistributedError: the processes would add different units.
    """
    call.recover()
    wanted = units_to_add(call.gates, more)
    surgery.check_shapes(subject.model, subject.structure)
    assert_same("what grow adds", wanted)
    wanted = {name: n * (times if call.gates.group(name).multiple == 1 else 1) for name, n in wanted.items()}
    if not wanted:
        return surgery.plan_removal(subject.structure, {})
    with subject.as_traced():
        larger = grown(subject.model, subject.example_inputs, subject.structure, wanted)
    return surgery.plan_growth(subject.structure, larger)


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
    return surgery.start(init, model_tensors(call.weights.model), plan, open_units, call.gates.closed())
