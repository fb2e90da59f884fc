"""Watch the steps of all optimizers, tracked or not: one that a resize would leave behind, or that steps under masks.

PyTorch registers hooks on the steps of all optimizers at once, so what these hooks have seen belongs to the process.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from npn.errors import ConfigurationError, OptimizerError
from npn.masking import MaskedWeights
from npn.masking.messages import CHANGED
from npn.optimizers import check_layouts, union
from npn.structure import Structure
from npn.surgery import held_by

# with the structure at attach, whose sizes the state of an older optimizer has
_ATTACHED: "weakref.WeakKeyDictionary[MaskedWeights, Structure]" = weakref.WeakKeyDictionary()
_STEPPED: "weakref.WeakSet[Optimizer]" = weakref.WeakSet()
_hooks: list[Any] = []  # at most one hook on all optimizers, registered with the first gates


def watch(weights: MaskedWeights) -> None:
    """Record every optimizer that steps from now on, so that a resize can detect untracked ones.

    Args:
        weights: of a newly attached model.
    """
    _ATTACHED[weights] = weights.structure
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_stepping))
        _hooks.append(register_optimizer_step_post_hook(_stepped))


def forgotten(known: Sequence[Optimizer], gone: Iterable[Optimizer]) -> list[Optimizer]:
    """The tracked optimizers without those that no longer step; resizes ignore their state from now on.

    Args:
        known: optimizers tracked so far.
        gone: optimizers to forget.
    """
    leaving = union([], gone)
    for optimizer in leaving:
        _STEPPED.discard(optimizer)
    return [optimizer for optimizer in known if optimizer not in leaving]


def check_untracked(tracked: Sequence[Optimizer], names: Mapping[int, str]) -> None:
    """Raise if an untracked optimizer keeps state of the model's parameters.

    Args:
        tracked: optimizers whose state follows a resize.
        names: see `parameter_names`.

    Raises:
        OptimizerError: an untracked optimizer keeps such state, which would retain the old shapes; or one that cannot
            be tracked does.
    """
    for optimizer in list(_STEPPED):
        if any(optimizer is other for other in tracked):
            continue
        held = [names[id(p)] for p, state in optimizer.state.items() if state and id(p) in names]
        if held:
            check_layouts([optimizer])  # one that cannot be tracked either
            more = f" and {len(held) - 1} more" if len(held) > 1 else ""
            raise OptimizerError(
                f"{type(optimizer).__name__} keeps state of {held[0]}{more}, but was never tracked: "
                "a resize would leave that state behind. Call plastic.track with every optimizer first"
            )


def _stepping(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Optimizer hook: raise if the step would change masked copies of weights; fused ones leave no other trace.

    An optimizer that has not stepped since attach is unknown to a resize, so its state is looked at here.
    """
    if optimizer not in _STEPPED and optimizer.state:
        for weights, before in list(_ATTACHED.items()):
            _check_left_behind(optimizer, weights, before)
    for weights in [each for each in list(_ATTACHED) if each.swapped]:
        held = held_by(optimizer)
        for name, parameter in weights.table.named.items():
            if id(parameter) in held:
                where = "plastic.backward" if weights.in_step else "npn.masked"
                raise ConfigurationError(CHANGED.format(name=name, where=where))


def _check_left_behind(optimizer: Optimizer, weights: MaskedWeights, before: Structure) -> None:
    """Raise if an optimizer keeps state of a parameter at its size of attach, and the parameter has another one now."""
    if weights.structure is before:
        return
    shapes = before.physical()
    for name, parameter in weights.model.named_parameters():
        if name not in shapes or parameter.shape == shapes[name]:
            continue
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == shapes[name]:
                raise OptimizerError(
                    f"{type(optimizer).__name__} keeps {key!r} of {name} in shape {tuple(value.shape)}, the one before "
                    f"a resize to {tuple(parameter.shape)}: it was not tracked then, so its state was left behind. "
                    "Call plastic.track with every optimizer before compact and grow; now, clear its state with "
                    "optimizer.state.clear() and track it"
                )


def _stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Optimizer hook: record the optimizer."""
    if _ATTACHED and optimizer not in _STEPPED:
        _STEPPED.add(optimizer)
