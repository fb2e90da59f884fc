"""One training step: draw masks, run the closure once or twice, leave every gradient in place."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npn import distributed, example, functional
from npn.errors import ConfigurationError
from npn.randomness import Randomness

if TYPE_CHECKING:
    from npn.plasticity import Plasticity

Closure = Callable[[], Tensor]
Evaluate = Callable[[float | Tensor, bool], Tensor]  # (factor, gradient) -> loss, see `around`
ESTIMATORS = ("arm", "disarm", "rloo", "double_cv", "straight_through", "reinmax")


@dataclass(frozen=True)
class Pass:
    """One evaluation of the closure.

    Attributes:
        loss: detached.
        gradient: dL/dz, where it was asked for.
    """

    loss: Tensor
    gradient: Tensor | None = None


def backward(plastic: "Plasticity", closure: Closure, scale: float | Tensor = 1.0) -> Tensor:
    """Gradients of E[loss] + penalty for weights and gates, see `Plasticity.backward`."""
    evaluate = partial(_evaluate, plastic, closure)
    if plastic.masks == "example":
        return around(plastic, evaluate, scale, lambda pi: example.estimate(plastic, closure, pi, scale))
    return around(plastic, evaluate, scale)


def around(
    plastic: "Plasticity",
    evaluate: Evaluate,
    scale: float | Tensor = 1.0,
    estimate: Callable[[Tensor], tuple[Tensor, Tensor | None]] | None = None,
) -> Tensor:
    """The same around a forward and backward pass that belongs to someone else, such as a training framework.

    Args:
        plastic: whose gates.
        evaluate: called with (factor, gradient) under one mask: computes the loss and, where `gradient`, runs backward
            on factor times it; returns the loss detached, without the factor.
        scale: factor on loss and penalty; what `evaluate` gets is this, or a share of it.
        estimate: from keep probabilities to the loss and its gradient; by the estimator's name if not given.
    """
    if plastic.k == math.inf:
        closed = plastic.closed_masks()
        context = plastic.readers.unmasked() if closed is None else plastic.readers.applied(closed)
        with plastic.calling(), context:
            return evaluate(scale, True)
    logits, probability = plastic.flat_logits(), plastic.flat_probability()
    with torch.no_grad():
        held = plastic.held()
        pi = torch.where(held, torch.ones_like(probability), probability)
        with plastic.calling():
            if estimate is None:
                loss, gradient = _ESTIMATE[plastic.estimator](plastic, evaluate, pi, scale)
            else:
                loss, gradient = estimate(pi)
        if gradient is not None and plastic.k > 0:
            factor = functional.chain_factor(logits, plastic.k, plastic.function)
            _add_gradient(plastic, torch.where(held, torch.zeros_like(gradient), gradient * factor))
    if plastic.k > 0:
        plastic.shared_probability = probability
        try:
            _penalise(plastic, scale)
        finally:
            plastic.shared_probability = None
        distributed.synchronise(plastic)
    _age(plastic)
    return loss


def _add_gradient(plastic: "Plasticity", gradient: Tensor) -> None:
    """Add to the logits' gradients, group by group; frozen gates have none."""
    for group, part in zip(plastic.groups, gradient.split([g.size for g in plastic.groups]), strict=True):
        logits = group.gate.logits
        if logits.requires_grad:
            part = part.to(logits.dtype)  # of a float64 model it comes as float64
            logits.grad = part.clone() if logits.grad is None else logits.grad.add_(part)


def _age(plastic: "Plasticity") -> None:
    """One step of every grace period."""
    if plastic.grace_left > 0:
        plastic.grace_left -= 1
        for group in plastic.groups:
            group.gate.grace.sub_(1).clamp_(min=0)


def _penalise(plastic: "Plasticity", scale: float | Tensor) -> None:
    with torch.enable_grad():
        cost = plastic.penalty.loss(plastic)
        cost = cost if isinstance(scale, float) and scale == 1.0 else cost * scale
        if cost.requires_grad:
            cost.backward()
    plastic.penalty.update(plastic)


def _evaluate(plastic: "Plasticity", closure: Closure, factor: float | Tensor, gradient: bool) -> Tensor:
    """Run the closure, and differentiate it unless only its value is wanted."""
    with torch.enable_grad() if gradient else torch.no_grad():
        with plastic.readers.not_collecting():
            loss = closure()
        if plastic.masks == "example" and isinstance(loss, Tensor) and loss.dim() == 1:
            loss = loss.mean()  # at k = inf, where all have the same mask
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            came = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ConfigurationError(
                f"the closure must return a scalar loss, got {came}; reduce it with .mean(), or attach with "
                'masks="example" for one mask and one loss per example'
            )
        example.check_finite(loss, plastic.last_checkpoint, first=gradient)
        if gradient:
            (loss if isinstance(factor, float) and factor == 1.0 else loss * factor).backward()
    return loss.detach()


def _masked(plastic: "Plasticity", evaluate: Evaluate, mask: Tensor, factor: float | Tensor, collect: bool) -> Pass:
    with plastic.readers.applied(mask, collect=collect):
        loss = evaluate(factor, True)
    return Pass(loss, plastic.readers.mask_gradient() if collect else None)


def _second(plastic: "Plasticity", evaluate: Evaluate, mask: Tensor, before: Randomness) -> Tensor:
    """The loss under another mask, all else equal (in train mode, too: in eval mode the difference is noise)."""
    with before.repeated(plastic.model), plastic.readers.applied(mask):
        return evaluate(1.0, False)


Estimate = Callable[["Plasticity", Evaluate, Tensor, float | Tensor], tuple[Tensor, Tensor | None]]


def _one_pass(
    plastic: "Plasticity", evaluate: Evaluate, pi: Tensor, scale: float | Tensor
) -> tuple[Tensor, Tensor | None]:
    mask = (plastic.draw() < pi).to(pi.dtype)
    done = _masked(plastic, evaluate, mask, scale, collect=plastic.k > 0)
    if done.gradient is None:
        return done.loss, None
    if plastic.estimator == "reinmax":
        return done.loss, functional.reinmax(done.gradient, mask, pi)
    return done.loss, functional.straight_through(done.gradient, pi)


def _two_losses(
    plastic: "Plasticity", evaluate: Evaluate, pi: Tensor, scale: float | Tensor
) -> tuple[Tensor, Tensor | None]:
    u = plastic.draw()
    if plastic.estimator == "rloo":
        first, second = (u < pi).to(pi.dtype), (plastic.draw() < pi).to(pi.dtype)
    else:
        first, second = functional.antithetic_masks(pi, u)
    before = Randomness.now()
    loss = _masked(plastic, evaluate, first, scale, collect=False).loss
    if plastic.k == 0:
        return loss, None
    other = _second(plastic, evaluate, second, before)
    if plastic.estimator == "rloo":
        return loss, functional.rloo(loss, other, first, second) * scale
    if plastic.estimator == "arm":
        return loss, functional.arm(loss, other, u) * scale
    return loss, functional.disarm(loss, other, first, second, pi) * scale


def _two_passes(
    plastic: "Plasticity", evaluate: Evaluate, pi: Tensor, scale: float | Tensor
) -> tuple[Tensor, Tensor | None]:
    if plastic.k == 0:
        return _one_pass(plastic, evaluate, pi, scale)
    first, second = ((plastic.draw() < pi).to(pi.dtype) for _ in range(2))
    before = Randomness.now()
    a = _masked(plastic, evaluate, first, 0.5 * scale, collect=True)
    with before.repeated(plastic.model):
        b = _masked(plastic, evaluate, second, 0.5 * scale, collect=True)
    assert a.gradient is not None and b.gradient is not None
    # dL/dz came with half the scale, the losses come without any
    estimate = functional.double_cv(a.loss * scale, b.loss * scale, first, second, 2 * a.gradient, 2 * b.gradient, pi)
    return (a.loss + b.loss) / 2, estimate


_ESTIMATE: dict[str, Estimate] = {
    "straight_through": _one_pass,
    "reinmax": _one_pass,
    "arm": _two_losses,
    "disarm": _two_losses,
    "rloo": _two_losses,
    "double_cv": _two_passes,
}
