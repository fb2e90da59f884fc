"""Several processes that train one model: the same gates and sizes everywhere, other masks on each.

Each process draws masks of its own, so the estimate of the gates' gradient improves with their number. What all share
is averaged or comes from the first process: the gradients of the logits after each `Plasticity.backward`, the penalty's
multiplier, the rows that growth adds. The weights' gradients are DistributedDataParallel's. Where there is a process
group, all its processes must train the one model, and call what resizes it alike; on one process nothing here
communicates.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from npn.errors import DistributedError

if TYPE_CHECKING:
    from npn.plasticity import Plasticity


def size() -> int:
    """Processes that train together; 1 without `torch.distributed.init_process_group`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


class Follower(Protocol):
    """Holds a wrapper that knows the model's sizes; listed in `Plasticity.followers`."""

    def renew(self) -> None:
        """The sizes have changed."""


class Wrapped:
    """A model in DistributedDataParallel, wrapped anew after each resize; made by `wrap`.

    Whatever else is asked of it (`train`, `eval`, `parameters`, `state_dict`, ...) is the model's own.

    Attributes:
        module: the model.
        ddp: the present wrapper; None on one process.
    """

    def __init__(self, plastic: "Plasticity", module: nn.Module | None, options: dict[str, Any]) -> None:
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


def wrap(plastic: "Plasticity", module: nn.Module | None = None, **options: Any) -> Wrapped:
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


def check(plastic: "Plasticity") -> None:
    """Compare sizes, gates, penalty and weights of all processes; call it on each of them, say once per epoch.

    Raises:
        DistributedError: they are not the same; names the first thing that differs. Raised on every process.
    """
    if size() == 1:
        return
    _compare(list(_shared(plastic)))


def agree(what: str, value: object) -> None:
    """Compare what the processes are about to do, before any of them does it.

    Raises:
        DistributedError: they differ. Raised on every process.

    Example:
        >>> agree("what grow adds", {"fc1": 2})
    """
    if size() > 1:
        _compare([(what, value)])


def _compare(mine: list[tuple[str, Any]]) -> None:
    everyone: list[Any] = [None] * size()
    dist.all_gather_object(everyone, mine)
    for number, theirs in enumerate(everyone):
        for (name, first), (_, other) in zip(everyone[0], theirs, strict=False):
            if first != other:
                values = "" if isinstance(first, bytes) else f": {first} and {other}"
                raise DistributedError(
                    f"{name} must be the same on every process, but differs between 0 and {number}{values}. Set k, "
                    "close, open and resize on each process alike, from numbers that all have (a validation loss: "
                    "npn.distributed.mean), call the model through npn.distributed.wrap, and step its optimizers"
                )


def _shared(plastic: "Plasticity") -> Iterator[tuple[str, Any]]:
    """What must be the same everywhere, by name: small values as they are, tensors as digests."""
    yield "k", plastic.k
    for group in plastic.groups:
        yield f"the size of group {group.name!r}", group.size
    for group in plastic.groups:
        for name, value in group.gate.state_dict().items():
            yield f"{name} of group {group.name!r}", _digest(value)
    yield "the penalty's state", plastic.penalty.state_dict()
    for name, parameter in plastic.model.named_parameters():
        yield f"the shape of {name}", tuple(parameter.shape)
        yield f"the value of {name}", _digest(parameter)


def _digest(tensor: Tensor) -> bytes:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(raw.numpy().tobytes(), digest_size=16).digest()


def mean(value: Tensor) -> Tensor:
    """The mean over all processes, the same bits on each; the value itself on one.

    Example:
        >>> mean(torch.tensor(0.5))
        tensor(0.5000)
    """
    if size() > 1:
        value = value.detach().clone()
        _together([value], _average)
    return value


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give all processes the first one's values, in place."""
    if size() > 1:
        _together(tensors, lambda flat: dist.broadcast(flat, 0))


def synchronise(plastic: "Plasticity") -> None:
    """After a step: the mean of the gates' gradients, and of what the penalty has learnt.

    The penalty is the same everywhere but for the order of a GPU's sums, which is enough to drift apart.
    """
    if size() > 1:
        learnt = [value for value in vars(plastic.penalty).values() if isinstance(value, Tensor)]
        _together([logits.grad for logits in plastic.logits() if logits.grad is not None] + learnt, _average)


def own_seed(common: bytes) -> int:
    """A seed for this process alone that follows from what all have in common."""
    digest = hashlib.blake2b(common, digest_size=8, salt=rank().to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") >> 1


def own(generator: torch.Generator) -> torch.Generator:
    """A generator for one draw of this process, other than all others', from a generator whose state they share.

    So a checkpoint holds one state, whatever the number of processes before and after. On one process: the same.
    """
    if size() == 1:
        return generator
    seed = own_seed(generator.get_state().numpy().tobytes())
    torch.rand(1, generator=generator, device=generator.device)  # the state of the next draw
    return torch.Generator(generator.device).manual_seed(seed)


def _average(flat: Tensor) -> None:
    dist.all_reduce(flat)
    flat.div_(size())


def _together(tensors: Iterable[Tensor], collective: Callable[[Tensor], Any]) -> None:
    """One collective for all tensors of a kind."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
    for same in kinds.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        collective(flat)
        for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(part.view(tensor.shape))
