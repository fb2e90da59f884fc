"""Checks of a loss that a user's function has returned."""

import math

from torch import Tensor

from npn._utils.validation import is_number
from npn.errors import ConfigurationError, NonFiniteLossError


def came_as(loss: object) -> str:
    """What a loss is, for an error message: the shape of a tensor, or its type.

    Args:
        loss: what a user's function returned.
    """
    return f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__


def way_out(loss: object, reduced: str) -> str:
    """What to do about a loss that is none, for an error message.

    Args:
        loss: what a user's function returned.
        reduced: the advice for a tensor, which has the wrong shape.

    Example:
        >>> way_out(None, "reduce it with .mean()")
        'end it with `return loss`'
    """
    if isinstance(loss, Tensor):
        return reduced
    if loss is None:
        return "end it with `return loss`"
    if is_number(loss):
        return "return the tensor itself, without .item() or float()"
    return "return the loss alone, such as output[0] or output['loss'], and keep the rest in a variable outside"


def check_scalar(loss: object, needed: str, advice: str = "reduce it with .mean()") -> None:
    """Raise unless a loss is a scalar tensor.

    Args:
        loss: what a user's function returned.
        needed: beginning of the message, such as "the closure must return a scalar loss".
        advice: end of the message about a tensor.

    Raises:
        ConfigurationError: it is not.
    """
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        raise ConfigurationError(f"{needed}, got {came_as(loss)}; {way_out(loss, advice)}")


def check_finite(loss: Tensor, last_checkpoint: str | None = None) -> None:
    """Raise before a NaN or infinite loss reaches any gradient; checked on the CPU only, where it needs no sync.

    Args:
        loss: any shape.
        last_checkpoint: path of the last checkpoint, for the error message.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite.
        ConfigurationError: it is complex.
    """
    if loss.is_complex():
        raise ConfigurationError(f"the closure must return a real loss, got {loss.dtype}; take .abs() or .real of it")
    if loss.device.type == "cpu" and not math.isfinite(value := (loss.sum() if loss.dim() else loss).item()):
        raise NonFiniteLossError(
            f"the loss is {value}; no gradient of it was added, so that after a second pass the gradients are those of "
            "the first of two passes alone: zero them. Lower the learning rate, check the data, or go back to the last "
            f"checkpoint{f', {last_checkpoint}' if last_checkpoint else ''}"
        )


def check_differentiable(loss: Tensor) -> None:
    """Raise before a backward pass of a loss that leads to no parameter.

    Args:
        loss: any shape.

    Raises:
        ConfigurationError: the loss has no gradient.
    """
    if not loss.requires_grad:
        raise ConfigurationError(
            "the loss has no gradient: it was detached, computed under torch.no_grad(), or made anew from a number, or "
            "no parameter that requires gradients took part; return the loss that was computed from the model's output"
        )
