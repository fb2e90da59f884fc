"""What a user's code must leave alone while masked copies are in the place of the weights."""

import contextlib
from collections.abc import Iterator, Sequence

from torch import Tensor

from npn.errors import ConfigurationError
from npn.masking.messages import CHANGED, CLOSURE


@contextlib.contextmanager
def values_stay(names: Sequence[str], weights: Sequence[Tensor], where: str) -> Iterator[None]:
    """Raise at the end of the context if a masked copy was changed in place inside, since the change is lost.

    Args:
        names: of the weights.
        weights: the masked copies.
        where: what the context is, for the error message.

    Raises:
        ConfigurationError: one was changed.
    """
    before = [weight._version for weight in weights]
    yield
    for name, weight, version in zip(names, weights, before, strict=True):
        if weight._version != version:
            raise ConfigurationError(CHANGED.format(name=name, where=where))


@contextlib.contextmanager
def gradients_stay(weights: Sequence[Tensor], last: bool) -> Iterator[None]:
    """Raise at the end of the context if gradients were added or deleted inside.

    Args:
        weights: the masked copies.
        last: gradients of an earlier pass are there, which must not be deleted either.

    Raises:
        ConfigurationError: they were.
    """
    before = [(weight.grad, None if weight.grad is None else weight.grad._version) for weight in weights]
    yield
    for weight, (grad, version) in zip(weights, before, strict=True):
        now = weight.grad
        if (now is not None or last) and (now is not grad or (now is not None and now._version != version)):
            raise ConfigurationError(CLOSURE)
