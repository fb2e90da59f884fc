"""One training step: draw masks, run the closure once or twice, and set every gradient."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from npn import functional
from npn._utils.collectives import average_
from npn._utils.rng import RandomState, devices_of
from npn._utils.validation import finite, instance, is_number, shown
from npn.errors import ConfigurationError
from npn.functional.table import ESTIMATORS, Draw
from npn.gates import Costs, Gates, Pricing
from npn.masking import MaskedWeights
from npn.passes import Closure, evaluated, run_by_example, times
from npn.penalty import CostTerm, Priced

Evaluate = Callable[[float | Tensor, bool], Tensor]  # (factor, gradient) -> loss, see `Step.step_with`
Estimate = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # pi -> (loss, log-odds gradient)


@dataclass(frozen=True)
class Step:
    """The inputs of one training step.

    Attributes:
        gates: the gates that are drawn.
        weights: the masked weights.
        model: the model, whose buffers a second pass leaves unchanged.
        estimator: a name in `npn.functional.table.ESTIMATORS`.
        penalty: the price of size.
        pricing: the cost of the model under its gates.
        per_example: whether to draw one mask per example.
        last_checkpoint: path of the last checkpoint, for the error about a loss that is not finite.
    """

    gates: Gates
    weights: MaskedWeights
    model: nn.Module
    estimator: str
    penalty: CostTerm
    pricing: Pricing
    per_example: bool = False
    last_checkpoint: str | None = None

    def backward(self, closure: Closure, scale: float | Any = 1.0) -> Tensor:
        """Set the gradients of E_z[loss] + penalty for weights and gates; see `npn.Plasticity.backward`.

        Args:
            closure: returns the loss; called once for each pass of the estimator.
            scale: factor on loss and penalty, or a `torch.amp.GradScaler`.

        Returns:
            The detached loss, (), without scale and penalty.
        """
        check_closure(closure)
        self.gates.to(self.weights.device)
        scale = loss_factor(scale, self.gates.device)

        def evaluate(factor: float | Tensor, gradient: bool) -> Tensor:
            return evaluated(self.weights, closure, factor, gradient, self.per_example, self.last_checkpoint)

        return self._run(evaluate, scale, partial(self._by_example, closure, scale) if self.per_example else None)

    def step_with(self, evaluate: Evaluate, scale: float | Tensor = 1.0) -> Tensor:
        """Do the same with a forward and backward pass that a training framework runs.

        Args:
            evaluate: (factor, gradient) -> loss. Called under one mask; computes the loss and, if `gradient`, runs
                backward on factor times the loss. Returns the detached loss without the factor.
            scale: factor on loss and penalty; `evaluate` gets this factor, or a share of it.

        Returns:
            The detached loss, (), without scale and penalty.
        """
        self.gates.to(self.weights.device)
        return self._run(evaluate, scale, None)

    def _run(self, evaluate: Evaluate, scale: float | Tensor, estimate: Estimate | None) -> Tensor:
        """Run the passes at the present k and set the gradients of the gates."""
        gates, weights = self.gates, self.weights
        if gates.k == math.inf:
            closed = gates.deterministic_mask()
            with weights.step(), weights.unmasked() if closed is None else weights.applied(closed):
                return evaluate(scale, True)
        with torch.enable_grad():
            phi = gates.logits().detach().requires_grad_()
            probability = gates.keep_probability(phi)
        with torch.no_grad():
            held = gates.held()
            pi = probability.detach() if held is None else probability.masked_fill(held, 1)
            with weights.step():
                loss, gradient = self._by_batch(evaluate, pi, scale) if estimate is None else estimate(pi)
            if gradient is not None:
                gradient = gradient * functional.chain_factor(phi, gates.k, gates.function)
                gradient = gradient if held is None else gradient.masked_fill(held, 0)
        if gates.k > 0:
            penalise(self.penalty, Costs(self.pricing, probability), scale)
            found = [each for each in (gradient, phi.grad) if each is not None]
            if found:
                gates.add_gradient(sum(found[1:], start=found[0]))
            logits = [gate.logits.grad for gate in gates.each]
            average_([*(grad for grad in logits if grad is not None), *self.penalty.shared_tensors()])
        gates.age()
        return loss

    def _by_batch(self, evaluate: Evaluate, pi: Tensor, scale: float | Tensor) -> tuple[Tensor, Tensor | None]:
        """Evaluate one mask per pass for the whole batch; return the weighted mean loss and the log-odds gradient.

        At k = 0 no gate learns: only the first pass runs, with full weight, and there is no gradient.
        """
        plastic, estimator = self.gates.k > 0, ESTIMATORS[self.estimator]
        draw = estimator.draw(pi, self.gates.draw)
        before = RandomState.now(devices_of(self.model)) if plastic and len(estimator.passes) > 1 else None
        mean: Tensor | float = 0.0
        losses, gradients = list[Tensor](), list[Tensor]()
        for number, (mask, planned) in enumerate(zip(draw.masks, estimator.passes, strict=True)):
            share = planned.weights if plastic else 1.0
            factor = scale if share == 1.0 else share * scale if share else 1.0
            again = before.repeated(self.model) if before is not None and number else contextlib.nullcontext()
            with again, self.weights.applied(mask, collect=plastic and planned.gates) as under:
                value = evaluate(factor, share > 0)
            if not plastic:
                return value, None
            losses.append(times(value, scale))
            mean = value if share == 1.0 else mean + share * value if share else mean
            if planned.gates:
                gradients.append(times(under.mask_gradient(), 1 / share))
            del under  # and with it the gradients that it has collected
        assert isinstance(mean, Tensor)
        return mean, estimator.combine(pi, draw, losses, gradients)

    def _by_example(self, closure: Closure, scale: float | Tensor, pi: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same with one mask per example; the gradient is the mean of the examples' own."""
        plastic, estimator = self.gates.k > 0, ESTIMATORS[self.estimator]
        drawn = list[Draw]()

        def first_mask(batch: int) -> Tensor:
            drawn.append(estimator.draw(pi, partial(self.gates.draw, batch)))
            return drawn[0].masks[0].requires_grad_(plastic and estimator.passes[0].gates)

        run = partial(run_by_example, self.weights, closure=closure, last_checkpoint=self.last_checkpoint)
        before = RandomState.now(devices_of(self.model))
        losses = run(first_mask, scale=scale)
        if not plastic:
            return losses.mean(), None
        (draw,) = drawn
        seen = [losses * scale]
        slope = draw.masks[0].grad
        gradients = [] if slope is None else [slope * len(slope)]  # of each example's own loss, not of the mean
        if len(estimator.passes) > 1:
            with before.repeated(self.model):
                seen.append(run(lambda _: draw.masks[1], gradient=False) * scale)
        return losses.mean(), estimator.combine(pi, draw, seen, gradients).mean(0)


def penalise(penalty: CostTerm, priced: Priced, scale: float | Tensor) -> None:
    """Add the gradient of the price of size, and let the penalty adapt to the present cost.

    Args:
        penalty: the price of size.
        priced: costs at the present keep probabilities.
        scale: factor on the price.

    Raises:
        ConfigurationError: a penalty of the user's own returns no scalar.
    """
    with torch.enable_grad():
        price = penalty.loss(priced)
        if not isinstance(price, Tensor) or price.dim():
            raise ConfigurationError(
                f"{type(penalty).__name__}.loss must return a scalar tensor, made from plastic.expected_cost(...) "
                f"without .item() or float(), got {shown(price)}"
            )
        cost = times(price, scale)
        if cost.requires_grad:
            cost.backward()
    penalty.update(priced)


def check_closure(closure: object) -> None:
    """Raise unless this is a function; a loss that has been computed already knows no mask.

    Args:
        closure: the argument of `backward`.

    Raises:
        ConfigurationError: it is not.
    """
    what = "a function that computes the loss, as in backward(lambda: criterion(model(x), y)), called under drawn masks"
    instance("closure", closure, Callable, what)


def loss_factor(scale: object, device: torch.device) -> float | Tensor:
    """The factor on the loss that an argument asks for.

    Args:
        scale: a number, a scalar tensor, or a `torch.amp.GradScaler`, whose factor it is.
        device: of the factor.

    Raises:
        ConfigurationError: it is none of these.
    """
    if hasattr(scale, "scale"):
        factor: Tensor = scale.scale(torch.ones((), device=device))
        return factor
    if is_number(scale):
        return finite("scale", scale)
    if isinstance(scale, Tensor) and scale.dim() == 0:
        return scale
    raise ConfigurationError(f"scale must be a number, a scalar tensor or a torch.amp.GradScaler, got {shown(scale)}")
