"""Train one model with several processes: the same gates and sizes on each process, different masks on each.

Every process draws its own masks, so the estimate of the gates' gradient improves with their number. These values are
averaged or copied from the first process: the gradients of the logits after each `Plasticity.backward`, the penalty's
multiplier, the rows that growth adds. DistributedDataParallel averages the gradients of the weights. If there is a
process group, all its processes must train this one model and make the same resizing calls; on a single process nothing
here communicates.

Where the model is too large for one process, `shard` splits the weights themselves; all processes then draw the same
masks.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from npn._utils.collectives import (
    assert_all_same,
    assert_same,
    broadcast,
    digest,
    from_first,
    mean,
    own_seed,
    per_rank_generator,
    rank,
    size,
)
from npn._utils.fsdp import check_sharded, sharded_modules
from npn._utils.shards import is_shard
from npn._utils.validation import HANDLE, instance
from npn.errors import ConfigurationError
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
    "shard",
    "size",
    "wrap",
]


class Wrapped:
    """A model in DistributedDataParallel, wrapped again after each resize; made by `wrap`.

    All other attributes and methods (`train`, `eval`, `parameters`, `state_dict`, ...) are those of the model.

    Args:
        plastic: the attached model.
        module: module to wrap instead of `plastic.model`, one that contains it; None for `plastic.model`.
        options: options of `torch.nn.parallel.DistributedDataParallel`.

    Attributes:
        module: the model.
        options: the argument.
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
        """Wrap the model again. Resizes call this; call it yourself after freezing or thawing parameters."""
        self.ddp = None  # the old wrapper must release the gradients before the new one takes them
        if size() > 1:
            self.ddp = DistributedDataParallel(self.module, init_sync=False, **self.options)
            self.ddp.broadcast_buffers = False  # it would overwrite buffers masked here with buffers masked elsewhere

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self.module if self.ddp is None else self.ddp)(*args, **kwargs)

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Accumulate gradients inside the context without averaging them, until the next step outside."""
        context: contextlib.AbstractContextManager[None] = (
            contextlib.nullcontext() if self.ddp is None else self.ddp.no_sync()
        )
        return context

    def __getattr__(self, name: str) -> Any:
        if name == "module" or name.startswith("__"):  # a copy under construction has no module yet
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.module, name)


def wrap(plastic: Plasticity, module: nn.Module | None = None, **options: Any) -> Wrapped:
    """Wrap the model in DistributedDataParallel, to be called inside `Plasticity.backward`; renewed by resizes.

    DistributedDataParallel keeps the sizes with which it was made, so this makes another after each resize. Weights and
    buffers start as those of the first process. Afterwards each process has its own buffers, such as batch statistics,
    until `broadcast(plastic.model.buffers())`. On one process, calling the wrapper calls the model. Other methods and
    attributes are those of the model; `train`, `eval` and `to` return the model, unwrapped. Call `wrap` on every
    process, outside `backward`; evaluate on `plastic.model`.

    Args:
        plastic: the attached model.
        module: module to wrap instead of `plastic.model`, one that contains it.
        options: options of `torch.nn.parallel.DistributedDataParallel`, except those about synchronising buffers.

    Returns:
        The wrapper.

    Raises:
        ConfigurationError: `plastic` is no handle, or its parameters are split over the processes.

    Example:
        >>> import npn, torch
        >>> from torch.nn import functional as F
        >>> x, y = torch.randn(8, 4), torch.randint(2, (8,))
        >>> plastic = npn.attach(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), x)
        >>> model = wrap(plastic)  # under torchrun: after torch.distributed.init_process_group()
        >>> loss = plastic.backward(lambda: F.cross_entropy(model(x), y))
        >>> plastic.grow({"0": 2}).changes, model(x).shape
        ({'0': (6, 8)}, torch.Size([8, 2]))
    """
    instance("plastic", plastic, Plasticity, HANDLE)
    plastic.masked_weights.need_whole("DistributedDataParallel")
    return Wrapped(plastic, module, options)


def shard(plastic: Plasticity, blocks: Iterable[nn.Module] = (), **options: Any) -> nn.Module:
    """Split the parameters over the processes by `torch.distributed.fsdp.fully_shard`, under the gates.

    Call it after `npn.attach` and before the optimizers are made. Every process keeps the rows of each weight that are
    its own. A mask is multiplied into them before each pass, and the weights are put back after it; all processes draw
    the same masks, each sees its own data. Gates, sizes and price are the same on all. dL/dz is summed over the
    processes in one collective. A resize gathers one parameter at a time, so the whole model is never on one process.

    With a `mesh` of two named dimensions, rows are split along the second one and replicated along the first (HSDP): on
    several nodes parameters are then gathered within each.

    Where a block needs options of its own, call `fully_shard` on it yourself first: what is sharded stays as it is.

    Args:
        plastic: the attached model.
        blocks: parts of the model that are gathered at a time, such as the blocks of a transformer; inner ones first.
            The model itself is sharded after them.
        options: options of `fully_shard`, such as `mp_policy` or `mesh`.

    Returns:
        The model, to be called inside `Plasticity.backward`.

    Raises:
        ConfigurationError: `plastic` is no handle; there is no process group; a parameter is split otherwise than by
            rows over all processes; gates on branches, columns or single weights, masks per example, a method or a copy
            that follows are not supported under it.

    Example:
        >>> import npn, torch
        >>> plastic = npn.attach(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(8, 4))
        >>> if torch.distributed.is_initialized():  # under torchrun: after torch.distributed.init_process_group()
        ...     model = shard(plastic)
    """
    from torch.distributed.fsdp import fully_shard

    instance("plastic", plastic, Plasticity, HANDLE)
    model, structure = plastic.model, plastic.structure
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigurationError(
            "there are no processes to shard over: call torch.distributed.init_process_group first"
        )
    unsupported = {
        'masks="example"': plastic.masks == "example",
        "branches": structure.branches is not None,
        "columns": bool(structure.columns),
        "unstructured": bool(structure.unstructured),
        "a method of npn.methods": plastic.gates.decision is not None,
        "a wrapper or a copy that follows the model": bool(plastic.followers),
    }
    for what in (what for what, there in unsupported.items() if there):
        raise ConfigurationError(f"shard does not support {what}; use npn.distributed.wrap, or go without")
    if plastic.optimizers:
        raise ConfigurationError(
            "fully_shard replaces the parameters, which tracked optimizers hold already; make and track them after it"
        )
    check_sharded(model, wholly=False)
    already = sharded_modules(model)
    for module in (*blocks, model):
        if module not in already:
            fully_shard(module, **options)
    check_sharded(model)
    plastic.masked_weights.sharded = plastic.gates.same_draws = True
    plastic._call.surround(model)
    plastic.gates.generator.set_state(from_first(plastic.gates.generator.get_state()))
    return model


def check(plastic: Plasticity) -> None:
    """Compare sizes, gates, penalty and weights of all processes; call it on every process, for example once per epoch.

    Of weights that are split over the processes, only the shapes are compared.

    Args:
        plastic: the attached model.

    Raises:
        ConfigurationError: `plastic` is no handle.
        DistributedError: they differ; raised on every process, and the message names the first difference.
    """
    instance("plastic", plastic, Plasticity, HANDLE)
    if size() == 1:
        return
    assert_all_same(list(_shared(plastic)))


def _shared(plastic: Plasticity) -> Iterator[tuple[str, Any]]:
    """Values that must agree between processes, with names: small ones as they are, tensors as digests."""
    yield "k", plastic.k
    for group in plastic.groups:
        yield f"the size of group {group.name!r}", group.size
    for group in plastic.groups:
        for name, value in group.gate.state_dict().items():
            yield f"{name} of group {group.name!r}", digest(value)
    for gate in plastic.unstructured.values():
        for name, value in gate.state_dict().items():
            yield f"{name} of the weights of {gate.name!r}", digest(value)
    yield "the penalty's state", plastic.penalty.state_dict()
    if plastic.gates.same_draws:
        yield "the state of the masks' generator", digest(plastic.gates.generator.get_state())
    for name, parameter in plastic.model.named_parameters():
        yield f"the shape of {name}", tuple(parameter.shape)
        if is_shard(parameter):
            continue
        yield f"the value of {name}", digest(parameter)
