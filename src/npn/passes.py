"""One forward and backward pass of a closure: on the weights as they are, or under one mask per example."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from npn._utils.losses import came_as, check_differentiable, check_finite, check_scalar, way_out
from npn.errors import ConfigurationError
from npn.masking import MaskedWeights
from npn.masking.examples import ExampleMasks
from npn.masking.messages import CHECKPOINTS

Closure = Callable[[], Tensor]


def evaluated(
    weights: MaskedWeights,
    closure: Closure,
    factor: float | Tensor = 1.0,
    gradient: bool = True,
    per_example: bool = False,
    last_checkpoint: str | None = None,
) -> Tensor:
    """Run the closure, and backward on its loss if `gradient`.

    Args:
        weights: the masked weights; gradients computed inside the closure are excluded from dL/dz.
        closure: returns the loss.
        factor: of the loss.
        gradient: whether to run backward on factor times the loss.
        per_example: whether one loss per example is allowed, of which the mean is taken.
        last_checkpoint: path of the last checkpoint, for the error about a loss that is not finite.

    Returns:
        The detached loss, (), without the factor.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite.
        ConfigurationError: the closure does not return a scalar, or its loss has no gradient.
    """
    with torch.enable_grad() if gradient else torch.no_grad():
        with weights.only_computing(last=not gradient):
            loss = closure()
        if per_example and isinstance(loss, Tensor) and loss.dim() == 1:
            loss = loss.mean()  # at k = inf all examples have the same mask
        advice = 'reduce it with .mean(), or attach with masks="example" for one mask and one loss per example'
        check_scalar(loss, "the closure must return a scalar loss", advice)
        check_finite(loss, last_checkpoint)
        if gradient:
            check_differentiable(loss)
            times(loss, factor).backward()
    return loss.detach()


def run_by_example(
    weights: MaskedWeights,
    draw: Callable[[int], Tensor],
    closure: Closure,
    scale: float | Tensor = 1.0,
    gradient: bool = True,
    scalar: bool = False,
    last_checkpoint: str | None = None,
) -> Tensor:
    """Run the closure under one mask per example, on the inputs of layers, and backward on the mean loss if `gradient`.

    Args:
        weights: the masked weights.
        draw: batch size -> masks (batch, gates); called once, and backward leads through them.
        closure: returns one loss per example, (batch,).
        scale: factor on the mean loss.
        gradient: whether to run backward.
        scalar: whether a scalar loss of the whole batch is allowed too.
        last_checkpoint: path of the last checkpoint, for the error about a loss that is not finite.

    Returns:
        The detached losses, (batch,) or (), without the factor.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite.
        ConfigurationError: a gated weight is read by a layer that cannot be masked so, or inside an activation
            checkpoint; the closure does not return one loss per example, or its losses have no gradient.
    """
    mode = ExampleMasks(weights.table, draw)
    with torch.enable_grad() if gradient else torch.no_grad(), weights.unmasked():
        with weights.only_computing(last=not gradient), mode:
            losses = closure()
        dimensions = (0, 1) if scalar else (1,)
        if not isinstance(losses, Tensor) or losses.dim() not in dimensions:
            advice = way_out(losses, 'use reduction="none"')
            raise ConfigurationError(
                'with masks="example" the closure must return one loss per example, shape (batch,), got '
                f"{came_as(losses)}; {advice}"
            )
        mode.check()
        assert mode.mask is not None
        if losses.dim() and len(losses) != len(mode.mask):
            raise ConfigurationError(
                f"the closure returned {len(losses)} losses for a batch of {len(mode.mask)} examples"
            )
        check_finite(losses, last_checkpoint)
        if gradient:
            mode.check_checkpoints(losses)
            check_differentiable(losses)
            try:
                times(losses.mean(), scale).backward()
            except CheckpointError as error:
                raise ConfigurationError(CHECKPOINTS) from error
    return losses.detach()


def times(value: Tensor, factor: float | Tensor) -> Tensor:
    """A product, without an operator where the factor is the number 1.

    Args:
        value: any tensor.
        factor: a number or scalar.
    """
    return value if isinstance(factor, float) and factor == 1.0 else value * factor
