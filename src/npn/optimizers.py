"""Check the optimizers: when they are tracked, and before every resize."""

import contextlib
import copy
import inspect
import warnings
import weakref
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from npn._utils.rng import preserved_rng
from npn._utils.validation import shown
from npn._utils.warning import warn
from npn.errors import ConfigurationError, OptimizerError
from npn.gates import Gates
from npn.masking import MaskedWeights
from npn.masking.messages import CHANGED
from npn.structure import Structure
from npn.surgery import held_by, unmovable


def union(known: Sequence[Optimizer], more: Iterable[Optimizer]) -> list[Optimizer]:
    """Combine two lists of optimizers without duplicates; replace wrappers without own state by their inner optimizer.

    Args:
        known: optimizers tracked already.
        more: optimizers to track as well.

    Returns:
        Each optimizer once.
    """
    return list({id(optimizer): optimizer for optimizer in (*known, *map(_unwrapped, more))}.values())


def tracked(known: Sequence[Optimizer], more: Iterable[Optimizer], model: nn.Module, gates: Gates) -> list[Optimizer]:
    """The optimizers of two lists, once each, after all checks.

    Args:
        known: optimizers tracked already.
        more: optimizers to track as well.
        model: the model.
        gates: its gates.

    Raises:
        OptimizerError: see `check_layouts` and `check_optimizers`.
    """
    every = union(known, more)
    new, names = every[len(known) :], parameter_names(model, gates)
    check_layouts(new)
    check_optimizers(every, names, gates)
    for optimizer in new:
        if not held_by(optimizer) & names.keys():
            warn(
                f"{type(optimizer).__name__} holds no weight and no gate of this model, so it trains none of them; "
                "make it from plastic.weights() or plastic.logits(), after any copy or conversion of the model"
            )
    return every


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


def parameter_names(model: nn.Module, gates: Gates) -> dict[int, str]:
    """Name all weights and gates, for error messages.

    Args:
        model: the model.
        gates: its gates.

    Returns:
        `id` of each parameter -> name.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    names |= {id(extra.tensor): f"the gates of {extra.name}" for extra in gates.carried}
    names |= {id(gate.logits): f"the gates of {gate.name}" for gate in gates.weights}
    return names | {id(group.gate.logits): f"the gates of {group.name}" for group in gates.groups}


def check_layouts(optimizers: Iterable[Optimizer]) -> None:
    """Raise if an optimizer keeps state that no resize can carry along.

    A copy of the optimizer takes one step on small parameters, of the same numbers of axes, to show its state.

    Args:
        optimizers: before or after their first step.

    Raises:
        OptimizerError: the message names the state and what to use instead.
    """
    instead = "use an optimizer whose state has the layout of each parameter, such as SGD, AdamW, Muon or Adafactor"
    for optimizer in optimizers:
        name = type(optimizer).__name__
        if isinstance(optimizer, torch.optim.LBFGS):
            raise OptimizerError(
                f"{name} keeps one flat history of all its parameters, which no resize can carry along; {instead}"
            )
        for parameter, state in _state_after_a_step(optimizer).items():
            strange = unmovable(parameter, state)
            if strange is not None:
                raise OptimizerError(
                    f"{name} keeps {strange[0]!r} of a parameter of shape {tuple(parameter.shape)} as {strange[1]}, "
                    f"which no resize can carry along; {instead}"
                )


def _state_after_a_step(optimizer: Optimizer) -> dict[Tensor, dict[str, object]]:
    """The state of a copy of an optimizer after a step on small parameters; empty if the copy cannot step."""
    memo: dict[int, Any] = {id(optimizer.state): defaultdict(dict)}
    for group in optimizer.param_groups:
        alike = {p.dim(): p for p in group["params"]}
        memo[id(group["params"])] = [_small(p) for p in alike.values()]
    with preserved_rng(), torch.no_grad(), warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        probe = copy.deepcopy(optimizer, memo)
        for key in vars(optimizer).keys() - vars(probe).keys():  # its own attributes, which Optimizer does not copy
            setattr(probe, key, copy.deepcopy(vars(optimizer)[key], memo))
        inspect.unwrap(type(probe).step)(probe)  # without the hooks that all optimizers share
        return dict(probe.state)
    return {}


def _small(parameter: Tensor) -> nn.Parameter:
    """A parameter of the same number of axes, with a gradient."""
    made = nn.Parameter(torch.zeros((3, 5, 2, 4, 6)[: parameter.dim()], dtype=parameter.dtype, device=parameter.device))
    made.grad = torch.ones_like(made)
    return made


def check_optimizers(optimizers: Sequence[Optimizer], names: Mapping[int, str], gates: Gates) -> None:
    """Raise if two optimizers hold the same parameter, or if weight decay acts on gates.

    Args:
        optimizers: all tracked optimizers.
        names: see `parameter_names`.
        gates: the model's gates.

    Raises:
        OptimizerError: the message names the parameter and the remedy.
    """
    of_gates = {id(gate.logits): ("pi = 1/2", "plastic.logits()") for gate in gates.each}
    of_gates |= {id(extra.tensor): ("0", "method.parameters()") for extra in gates.carried}
    seen: dict[int, str] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if id(p) in seen:
                    raise OptimizerError(
                        f"{names.get(id(p), 'a parameter')} is in two optimizers, {seen[id(p)]} and "
                        f"{type(optimizer).__name__}; each would move it. Keep it in one, or untrack the "
                        "one that it has replaced"
                    )
                seen[id(p)] = type(optimizer).__name__
                if id(p) in of_gates and group.get("weight_decay"):
                    raise OptimizerError(
                        f"{names[id(p)]} are under weight_decay={group['weight_decay']}, which pulls every gate to "
                        f"{of_gates[id(p)][0]}; give {of_gates[id(p)][1]} their own param group with weight_decay=0"
                    )


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


def _unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside a wrapper that has no state of its own, such as Accelerate's; raise if it has some."""
    if not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "state"):
        raise OptimizerError(f"expected optimizers, one after the other: track(first, second); got {shown(optimizer)}")
    for name, inner in vars(optimizer).items():
        if not isinstance(inner, Optimizer) or inner is optimizer:
            continue
        if inner.state is optimizer.state:
            return _unwrapped(inner)
        if held_by(inner) & held_by(optimizer):
            kind = type(inner).__name__
            raise OptimizerError(
                f"{type(optimizer).__name__} is a wrapper around {kind} with a state of its own, and a resize could "
                f"not keep the two in step. If it puts everything into the state of {kind}, as timm's Lookahead does, "
                f"call plastic.track(optimizer.{name}); else train with {kind} alone"
            )
    return optimizer
