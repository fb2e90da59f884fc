"""Check the optimizers that are tracked: when they are given, and before every resize."""

import contextlib
import copy
import inspect
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from npn._utils.rng import preserved_rng
from npn._utils.validation import shown
from npn._utils.warning import warn
from npn.errors import OptimizerError
from npn.gates import Gates
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
