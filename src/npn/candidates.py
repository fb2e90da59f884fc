"""Many new units with zero fan-out, of which the loss of one batch keeps the best."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from npn import surgery
from npn._utils import cpu
from npn._utils.collectives import assert_same, average_
from npn._utils.inputs import output_tensors
from npn._utils.losses import check_differentiable, check_finite, check_scalar
from npn._utils.models import model_tensors
from npn._utils.rng import RandomState, devices_of
from npn._utils.validation import whole_number
from npn.errors import ConfigurationError
from npn.masking import MaskedWeights
from npn.structure import Group
from npn.surgery import ResizeReport, fan_out

CANDIDATES = 16  # for each unit that is kept
PASSES = 64  # backward passes that measure effects, at most
SAME = 1e-3  # a unit of which less than this part is new is like those that exist

Values = dict[str, Tensor]


def check_start(grace: int, init: str, warmup: int, loss: object) -> int:
    """Check how new units start, and return how many are added for each that is wanted.

    Args:
        grace, init, warmup, loss: see `npn.Plasticity.grow`.

    Raises:
        ConfigurationError: a number or name is not allowed, or there is no loss to choose by.
    """
    whole_number("grace", grace, 0, "calls of backward")
    whole_number("warmup", warmup, 0, "optimizer steps")
    if surgery.checked_init(init) == "select" and not callable(loss):
        raise ConfigurationError(
            f'init="select" chooses units by the loss of a batch: give loss=, a function that calls the model and '
            f"returns the loss, as for plastic.backward; got {loss!r}"
        )
    return CANDIDATES if init == "select" else 1


def keep_best(
    report: ResizeReport,
    weights: MaskedWeights,
    loss: Callable[[], Tensor],
    remove: Callable[[Mapping[str, Sequence[int]]], ResizeReport],
) -> ResizeReport:
    """Remove the candidates that are not chosen; all of them if the loss fails.

    Args:
        report: of the growth that added the candidates.
        weights: of the model.
        loss: calls the model and returns the loss.
        remove: removes units.

    Returns:
        The report of both resizes together.

    Raises:
        ConfigurationError, NonFiniteLossError: the loss cannot be used; nothing has changed.
        DistributedError: the processes would keep different units.
    """
    added = {group.name: report.added[group.name] for group in weights.structure.groups if group.name in report.added}
    try:
        chosen = choose(weights, added, loss)
        assert_same("what grow keeps", chosen)
    except BaseException:
        remove(added)
        raise
    unwanted = {name: sorted(set(units) - set(chosen[name])) for name, units in added.items()}
    return surgery.combined(report, remove({name: units for name, units in unwanted.items() if units}))


def choose(
    weights: MaskedWeights, added: Mapping[str, Sequence[int]], loss: Callable[[], Tensor]
) -> dict[str, list[int]]:
    """Choose one of `CANDIDATES` candidates in each group, see `greedy`; all where units come in sets.

    Args:
        weights: of the model with the candidates.
        added: group name -> numbers of the candidates.
        loss: calls the model and returns the loss.

    Returns:
        Group name -> numbers of the chosen units.
    """
    groups = [group for group in weights.structure.groups if group.name in added and group.multiple == 1]
    wanted = {group.name: len(added[group.name]) // CANDIDATES for group in groups}
    chosen = {name: list(units) for name, units in added.items()}
    if not groups:
        return chosen
    gradients, effects = _derivatives(weights, groups, wanted, loss)
    average_([*gradients, *effects])
    for group, gradient, effect in zip(groups, gradients, effects, strict=True):
        new = cpu.tensor(added[group.name])
        old = [unit for unit in range(group.size) if unit not in set(added[group.name])]
        best = greedy(gradient[new], effect[new], effect[old], wanted[group.name])
        chosen[group.name] = new[best].tolist()
    return chosen


def greedy(gradients: Tensor, effects: Tensor, existing: Tensor, count: int) -> list[int]:
    r"""Choose units one by one: large gradient for the size of their effect, and an effect of their own.

    With the gradient g_j of the loss in the fan-out of unit j, and its effect a_j, the score is

    .. math:: \frac{\|g_j\|}{\|a_j\|} \cdot \frac{\|a_j - P a_j\|}{\|a_j\|}

    where P projects onto the span of the effects of the existing units and of those chosen before.

    Args:
        gradients: (candidates, entries).
        effects: (candidates, measurements).
        existing: (existing units, measurements).
        count: how many to choose.

    Returns:
        Numbers of the chosen candidates, the best first.

    Example:
        >>> effects = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
        >>> gradients = torch.tensor([[9.0], [3.0], [6.0], [2.0]])
        >>> greedy(gradients, effects, existing=torch.tensor([[1.0, 0.0, 0.0]]), count=2)  # 0 exists, 2 is like 1
        [1, 3]
    """
    size = effects.norm(dim=1)
    alive = size > 0
    size = torch.where(alive, size, 1.0)
    gain = torch.where(alive, gradients.norm(dim=1) / size, 0.0)
    rest = effects / size[:, None]
    _, strength, basis = torch.linalg.svd(existing, full_matrices=False)
    basis = basis[strength > SAME * strength.max()] if len(strength) else basis
    rest = rest - (rest @ basis.T) @ basis
    chosen: list[int] = []
    free = torch.ones(len(effects), dtype=torch.bool, device=effects.device)
    for _ in range(count):
        own = rest.norm(dim=1)
        score = torch.where(own > SAME, gain * own, 0.0)
        best = torch.where(free, score, -1.0).argmax()
        direction = rest[best] / own[best].clamp(min=SAME)
        rest = rest - (rest @ direction)[:, None] * direction
        free[best] = False
        chosen.append(int(best))
    return chosen


def _derivatives(
    weights: MaskedWeights, groups: Sequence[Group], wanted: Mapping[str, int], loss: Callable[[], Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """For each group the gradient of the loss in the fan-outs, and the effect of each unit on the outputs.

    The effect of unit j is measured by derivatives of random sums of the model's outputs, <r, y> with r ~ N(0, 1), in
    its fan-out: in expectation, products of these vectors are those of dy / d(fan-out of j). For a last linear layer
    that is the activation of the unit over the batch; behind other layers, what reaches the outputs of it.
    """
    model, structure = weights.model, weights.structure
    tensors = model_tensors(model)
    names = sorted({slot.tensor for group in groups for slot in group.slots if slot.reads})
    readers = [tensors[name] for name in names]
    lent = [tensor for tensor in readers if not tensor.requires_grad]
    outputs: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        outputs.extend(t for t in output_tensors(output) if t.requires_grad)

    def gradient(of: Sequence[Tensor], given: Sequence[Tensor] | None) -> Values:
        found = torch.autograd.grad(of, readers, given, retain_graph=True, allow_unused=True)
        return {n: torch.zeros_like(t) if g is None else g for n, t, g in zip(names, readers, found, strict=True)}

    hook = model.register_forward_hook(keep)
    try:
        for tensor in lent:
            tensor.requires_grad_(True)
        with RandomState.now(devices_of(model)).repeated(model), torch.enable_grad():
            value = loss()
            check_scalar(value, "loss must return a scalar")
            check_finite(value)
            check_differentiable(value)
            if not outputs:
                raise ConfigurationError("loss must call the model, whose outputs say what a unit does; it did not")
            first = gradient([value], None)
            gradients = [_wide(fan_out(first, structure, group)) for group in groups]
            passes = max(
                math.ceil(2 * (group.size - (CANDIDATES - 1) * wanted[group.name]) / max(each.shape[1], 1))
                for group, each in zip(groups, gradients, strict=True)
            )
            drawn = [
                gradient(outputs, [torch.randn_like(output) for output in outputs])
                for _ in range(min(max(passes, 1), PASSES))
            ]
    finally:
        hook.remove()
        for tensor in lent:
            tensor.requires_grad_(False)
    return gradients, [_wide(torch.cat([fan_out(each, structure, group) for each in drawn], 1)) for group in groups]


def _wide(values: Tensor) -> Tensor:
    """The same values, in float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
