"""Activation checkpoints in a masked call: what they compute again in the backward pass is masked as it was then.

A checkpoint keeps no activations; in the backward pass it runs its layers again, when the call is long over and the
weights are their own.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch.utils.checkpoint as checkpoints
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from npn.errors import ConfigurationError
from npn.masking.messages import CHANGED_IN_PLACE

Again = Callable[[], AbstractContextManager[None]]  # puts the masks on once more
_OTHER = "_checkpoint_without_reentrant_generator"


class _Wrappers:
    """Wrappers around the functions by which PyTorch makes checkpoints, while any thread is in a masked call."""

    def __init__(self) -> None:
        self.here = threading.local()  # `again` of this thread's call
        self._lock, self._users = threading.Lock(), 0
        self._before: tuple[Any, Any] = (None, None)

    def install(self) -> None:
        """Put them in place for one more call."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before = vars(checkpoints.CheckpointFunction).get("apply"), getattr(checkpoints, _OTHER)
                apply = self._reentrant(checkpoints.CheckpointFunction.apply)
                checkpoints.CheckpointFunction.apply = apply  # type: ignore[method-assign]
                setattr(checkpoints, _OTHER, self._other(self._before[1]))

    def remove(self) -> None:
        """Take them away after the last call."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                own, generator = self._before
                if own is None:  # it is inherited
                    del checkpoints.CheckpointFunction.apply
                else:
                    checkpoints.CheckpointFunction.apply = own  # type: ignore[method-assign]
                setattr(checkpoints, _OTHER, generator)

    def _reentrant(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        def masked(function: Callable[..., Any], *args: Any) -> Any:
            again: Again | None = getattr(self.here, "again", None)
            calls = iter([False])  # the first is that of the forward pass

            def run(*inputs: Any) -> Any:
                if next(calls, True) and again is not None:
                    with again(), copies_kept():
                        return function(*inputs)
                return function(*inputs)

            return apply(run, *args)

        return masked

    def _other(self, generator: Callable[..., Any]) -> Callable[..., Any]:
        def masked(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            again: Again | None = getattr(self.here, "again", None)

            def run(*inputs: Any, **named: Any) -> Any:  # in the backward pass alone
                with contextlib.nullcontext() if again is None else again():
                    return function(*inputs, **named)

            return generator(run, *args, **kwargs)

        return masked


_WRAPPERS = _Wrappers()


@contextlib.contextmanager
def masked_again(again: Again) -> Iterator[None]:
    """Inside, in this thread, let checkpoints run their layers again under masks.

    Args:
        again: makes the context of that.
    """
    before = getattr(_WRAPPERS.here, "again", None)
    _WRAPPERS.install()
    _WRAPPERS.here.again = again
    try:
        yield
    finally:
        _WRAPPERS.here.again = before
        _WRAPPERS.remove()


def copies_kept() -> AbstractContextManager[Any]:
    """Inside, autograd keeps the masked copies of weights, and not the weights, whose own data come back.

    Where such hooks are, PyTorch no longer looks whether what it keeps is changed in place; these do.
    """
    return saved_tensors_hooks(_keep, _kept)


def _keep(tensor: Tensor) -> tuple[Tensor, int | None]:
    weight = tensor.is_leaf and tensor.requires_grad  # of which the copy is kept, whatever becomes of the weight
    return tensor.detach() if tensor.is_leaf else tensor, None if weight else tensor._version


def _kept(found: tuple[Tensor, int | None]) -> Tensor:
    tensor, version = found
    if version is not None and tensor._version != version:
        raise ConfigurationError(CHANGED_IN_PLACE)
    return tensor
