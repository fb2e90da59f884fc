"""One forward and backward pass under a drawn mask: one for the whole batch, or one per example."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from npn.passes import evaluated, run_by_example
from npn.plasticity import Plasticity


class Draw(Protocol):
    """Draws a mask, differentiable in what decides; None if every unit takes part."""

    def __call__(self, batch: int | None = None) -> Tensor | None: ...


def by_batch(plastic: Plasticity, draw: Draw, closure: Callable[[], Tensor], scale: float | Tensor) -> Tensor:
    """Run the closure under one mask, on the weights, and backward through loss and mask.

    Args:
        plastic: the handle of the model, inside a step.
        draw: gives the mask (gates,).
        closure: returns the scalar loss.
        scale: factor on the loss.

    Returns:
        The detached loss, (), without the factor.
    """
    weights = plastic.masked_weights
    with torch.enable_grad():
        mask = draw()
    if mask is None:
        with weights.unmasked():
            return evaluated(weights, closure, scale, last_checkpoint=plastic.last_checkpoint)
    collect = mask.requires_grad
    with weights.applied(mask.detach(), collect=collect) as under:
        loss = evaluated(weights, closure, scale, last_checkpoint=plastic.last_checkpoint)
    if collect:
        mask.backward(under.mask_gradient())
    return loss


def by_example(plastic: Plasticity, draw: Draw, closure: Callable[[], Tensor], scale: float | Tensor) -> Tensor:
    """Run the closure under one mask per example, on the inputs of layers, and backward; see `by_batch`.

    Args:
        plastic: the handle of the model, inside a step.
        draw: gives the masks (batch, gates).
        closure: returns the loss, scalar or per example.
        scale: factor on the loss.

    Returns:
        The detached mean loss, (), without the factor.
    """
    weights, gates = plastic.masked_weights, plastic.gates

    def mask_of_each(batch: int) -> Tensor:
        mask = draw(batch)
        return (
            torch.ones(batch, len(gates), dtype=torch.float32, device=gates.device)
            if mask is None
            else mask.expand(batch, -1)
        )

    losses = run_by_example(weights, mask_of_each, closure, scale, scalar=True, last_checkpoint=plastic.last_checkpoint)
    return losses.mean()
