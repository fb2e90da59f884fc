"""What optimizers may hold, checked when they are tracked and before every resize."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch.optim import Optimizer

from npn.errors import OptimizerError

if TYPE_CHECKING:
    from npn.plasticity import Plasticity


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
                        f"{type(optimizer).__name__}; each would move it. Keep it in one"
                    )
                seen[id(p)] = type(optimizer).__name__
                if id(p) in gates and group.get("weight_decay"):
                    raise OptimizerError(
                        f"{names[id(p)]} are under weight_decay={group['weight_decay']}, which pulls every gate to "
                        "pi = 1/2; give plastic.logits() their own param group with weight_decay=0"
                    )
