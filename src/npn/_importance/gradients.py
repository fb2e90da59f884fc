"""dL/dz over batches: what a loss loses to first order when a unit closes, exact for any coupling."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from npn._utils.collectives import mean
from npn._utils.losses import check_scalar
from npn._utils.rng import RandomState, devices_of
from npn.errors import ConfigurationError, NonFiniteLossError
from npn.plasticity import Plasticity
from npn.tracing.capture.environment import preserved

EMPTY = (
    "batches is empty; give at least one batch "
    "(an iterator is used up by its first reader: give a list or a DataLoader)"
)
BatchLoss = Callable[[nn.Module, Any], Tensor]  # (model, batch) -> scalar


def present_mask(plastic: Plasticity) -> Tensor:
    """The deterministic mask 1[pi > 1/2] of all gates, (gates,), on the device of the weights."""
    with torch.inference_mode(False), torch.no_grad():
        plastic.gates.to(plastic.masked_weights.device)
        mask = plastic.gates.deterministic_mask()
        return (
            torch.ones(len(plastic.gates), dtype=torch.float32, device=plastic.gates.device)
            if mask is None
            else mask.clone()
        )


def mean_of_gradients(
    plastic: Plasticity, batches: Iterable[Any], loss: BatchLoss, of: Callable[[Tensor], Tensor]
) -> Tensor:
    """Mean over batches of a function of dL/dz, at the present deterministic mask.

    z multiplies the weights that read a unit, so `dL/dz = sum over its readers of weight times gradient`, whatever
    lies between the unit and its readers. Gradients, buffers, modes and generators are as before afterwards.

    Args:
        plastic: the handle of the model.
        batches: what `loss` takes, one by one; on several processes each has its own.
        loss: (model, batch) -> scalar.
        of: of the dL/dz (gates,) of one batch.

    Returns:
        (gates,), the same on all processes.

    Raises:
        ConfigurationError: no batches, or the loss is no scalar that depends on the model.
        NonFiniteLossError: naming the batch.
    """
    model, weights, mask = plastic.model, plastic.masked_weights, present_mask(plastic)
    total, number = mask.new_zeros(len(mask)), 0
    before = RandomState.now(devices_of(model))
    with preserved(model), before.repeated(model), weights.step(), torch.inference_mode(False), torch.enable_grad():
        for number, batch in enumerate(batches, start=1):
            with weights.applied(mask, collect=True) as under:
                with weights.not_collecting():
                    value = loss(model, batch)
                _check(value)
                # not backward: it would add to .grad of all that the loss touches, and call hooks that wait for that
                found = torch.autograd.grad(value, weights.table.parameters, allow_unused=True)
            if all(gradient is None for gradient in found):
                raise _independent()
            gradient = under.mask_gradient()
            if not bool(torch.isfinite(gradient).all()):
                raise NonFiniteLossError(
                    f"the loss of batch {number} is {value.item()}, and its gradient is not finite; check that batch"
                )
            total = total + of(gradient)
    if not number:
        raise ConfigurationError(EMPTY)
    return mean(total / number)


def _check(value: Any) -> None:
    check_scalar(value, "loss(model, batch) must return a scalar tensor")
    if not value.requires_grad:
        raise _independent()


def _independent() -> ConfigurationError:
    return ConfigurationError(
        "the loss does not depend on the model's weights; compute it from the model that loss(model, batch) is given, "
        "with gradients enabled"
    )
