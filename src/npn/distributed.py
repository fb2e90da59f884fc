"""Several processes that train one model: the same gates and sizes everywhere, other masks on each.

Each process draws masks of its own, so the estimate of the gates' gradient improves with their number. What all share
is averaged or comes from the first process: the gradients of the logits after each `Plasticity.backward`, the penalty's
multiplier, the rows that growth adds. The weights' gradients are DistributedDataParallel's. Where there is a process
group, all its processes must train the one model, and call what resizes it alike; on one process nothing here
communicates.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from npn._utils.collectives import (
    assert_all_same,
    assert_same,
    broadcast,
    digest,
    mean,
    own_seed,
    per_rank_generator,
    rank,
    size,
)
from npn.plasticity import Plasticity

__all__ = [
    "Wrapped",
    "assert_same",
    "broadcast",
    "check",
    "mean",
    "own_seed",
    "per_rank_generator",
    "rank",
    "size",
    "wrap",
]


class Wrapped:
    """A model in DistributedDataParallel, wrapped anew after each resize; made by `wrap`.

    Whatever else is asked of it (`train`, `eval`, `parameters`, `state_dict`, ...) is the model's own.

    Attributes:
        module: the model.
        ddp: the present wrapper; None on one process.
    """

    def __init__(self, plastic: Plasticity, module: nn.Module | None, options: dict[str, Any]) -> None:
        self.module = plastic.model if module is None else module
        self.options = options
        self.ddp: DistributedDataParallel | None = None
        broadcast([*self.module.parameters(), *self.module.buffers()])
        self.renew()
        plastic.followers[id(self)] = self

    def renew(self) -> None:
        """Wrap anew: after a resize, which does it by itself, or a change of what is frozen."""
        self.ddp = None  # the old one lets go of the gradients before the new one takes them
        if size() > 1:
            self.ddp = DistributedDataParallel(self.module, init_sync=False, **self.options)
            self.ddp.broadcast_buffers = False  # under masks it would overwrite masked buffers with other masked ones

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self.module if self.ddp is None else self.ddp)(*args, **kwargs)

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Gradients of steps inside stay each process's own until the next step outside; for accumulation."""
        context: contextlib.AbstractContextManager[None] = (
            contextlib.nullcontext() if self.ddp is None else self.ddp.no_sync()
        )
        return context

    def __getattr__(self, name: str) -> Any:
        if name == "module" or name.startswith("__"):  # of a copy in the making, or of what copies it
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.module, name)


def wrap(plastic: Plasticity, module: nn.Module | None = None, **options: Any) -> Wrapped:
    """The model in DistributedDataParallel, to call inside `Plasticity.backward`; it stays right when sizes change.

    DistributedDataParallel keeps the sizes that it was made with; this makes another after each resize. Weights and
    buffers begin as those of the first process; buffers such as batch statistics are each process's own from then on,
    until `broadcast(plastic.model.buffers())`. On one process a call of it is a call of the model. Other methods and
    attributes are the model's own: `train`, `eval` and `to` return the model, unwrapped. Call `wrap` on every process,
    outside `backward`; evaluate on `plastic.model`.

    Args:
        plastic: the attached model.
        module: to wrap instead of `plastic.model`: one that contains it.
        options: of `torch.nn.parallel.DistributedDataParallel`, but for those that say when it synchronises buffers.

    Example:
        >>> import npn
        >>> from torch.nn import functional as F
        >>> x, y = torch.randn(8, 4), torch.randint(2, (8,))
        >>> plastic = npn.attach(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), x)
        >>> model = wrap(plastic)  # under torchrun: after torch.distributed.init_process_group()
        >>> loss = plastic.backward(lambda: F.cross_entropy(model(x), y))
        >>> plastic.grow({"0": 2}).changes, model(x).shape
        ({'0': (6, 8)}, torch.Size([8, 2]))
    """
    return Wrapped(plastic, module, options)


def check(plastic: Plasticity) -> None:
    """Compare sizes, gates, penalty and weights of all processes; call it on each of them, say once per epoch.

    Raises:
        DistributedError: they are not the same; names the first thing that differs. Raised on every process.
    """
    if size() == 1:
        return
    assert_all_same(list(_shared(plastic)))


def _shared(plastic: Plasticity) -> Iterator[tuple[str, Any]]:
    """Values that must be the same everywhere, by name: small ones as they are, tensors as digests."""
    yield "k", plastic.k
    for group in plastic.groups:
        yield f"the size of group {group.name!r}", group.size
    for group in plastic.groups:
        for name, value in group.gate.state_dict().items():
            yield f"{name} of group {group.name!r}", digest(value)
    yield "the penalty's state", plastic.penalty.state_dict()
    for name, parameter in plastic.model.named_parameters():
        yield f"the shape of {name}", tuple(parameter.shape)
        yield f"the value of {name}", digest(parameter)
