"""What optimizers may hold, checked when they are tracked and before every resize."""

import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from npn.errors import OptimizerError

if TYPE_CHECKING:
    from npn.plasticity import Plasticity


def union(known: Sequence[Optimizer], more: Iterable[Optimizer]) -> list[Optimizer]:
    """Each optimizer once, and itself where only a view of it is given."""
    return list({id(optimizer): optimizer for optimizer in (*known, *map(_bare, more))}.values())


def _bare(optimizer: Optimizer) -> Optimizer:
    """What a wrapper holds that has no state of its own, such as Accelerate's."""
    inner = getattr(optimizer, "optimizer", None)
    return _bare(inner) if isinstance(inner, Optimizer) and inner.state is optimizer.state else optimizer


def check_optimizers(optimizers: Sequence[Optimizer], plastic: "Plasticity") -> None:
    """No parameter in two optimizers; no weight decay on gates."""
    gates = {id(p) for p in plastic.logits()}
    names = {id(p): name for name, p in plastic.model.named_parameters()}
    names |= {id(g.gate.logits): f"the gates of {g.name}" for g in plastic.groups}
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
                if id(p) in gates and group.get("weight_decay"):
                    raise OptimizerError(
                        f"{names[id(p)]} are under weight_decay={group['weight_decay']}, which pulls every gate to "
                        "pi = 1/2; give plastic.logits() their own param group with weight_decay=0"
                    )


_ATTACHED: "weakref.WeakSet[Plasticity]" = weakref.WeakSet()
_STEPPED: "weakref.WeakSet[Optimizer]" = weakref.WeakSet()
_watching = False


def watch(plastic: "Plasticity") -> None:
    """From now on notice every optimizer that steps, so that a resize can tell whether one was forgotten."""
    global _watching
    _ATTACHED.add(plastic)
    if not _watching:
        register_optimizer_step_post_hook(_stepped)
        _watching = True


def _stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if _ATTACHED and optimizer not in _STEPPED:
        _STEPPED.add(optimizer)


def forget(optimizers: Iterable[Optimizer]) -> None:
    """They are done: a resize may leave their state behind."""
    for optimizer in optimizers:
        _STEPPED.discard(optimizer)


def check_strangers(plastic: "Plasticity") -> None:
    """No optimizer outside `plastic.track` keeps state of the model's parameters.

    Raises:
        OptimizerError: one does; its state would keep the old shapes.
    """
    names = {id(p): name for name, p in plastic.model.named_parameters()}
    names |= {id(g.gate.logits): f"the gates of {g.name}" for g in plastic.groups}
    for optimizer in list(_STEPPED):
        if any(optimizer is tracked for tracked in plastic.optimizers):
            continue
        held = [names[id(p)] for p, state in optimizer.state.items() if state and id(p) in names]
        if held:
            raise OptimizerError(
                f"{type(optimizer).__name__} keeps state of {held[0]} and {len(held) - 1} more, but was never tracked: "
                "a resize would leave that state behind. Call plastic.track with every optimizer first"
            )
