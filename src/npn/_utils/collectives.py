"""Collective operations over the processes of one training; on a single process they do nothing."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from npn._utils.shards import is_shard
from npn.errors import DistributedError


def size() -> int:
    """Number of processes that train together; 1 without `torch.distributed.init_process_group`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, counted from 0."""
    return dist.get_rank() if size() > 1 else 0


def assert_same(what: str, value: object) -> None:
    """Raise on every process unless all processes have the same value.

    Args:
        what: name of the value, for the error message.
        value: any picklable object; compared by `==` after pickling.

    Raises:
        DistributedError: the values differ.

    Example:
        >>> assert_same("the units that grow adds", {"fc1": 2})
    """
    if size() > 1:
        assert_all_same([(what, value)])


def assert_all_same(mine: list[tuple[str, Any]]) -> None:
    """Raise on every process unless all processes have the same values.

    Args:
        mine: (name, value) pairs; every process gives the same names in the same order.

    Raises:
        DistributedError: a value differs; the message names the first one.
    """
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


def mean(value: Tensor) -> Tensor:
    """Average a tensor over all processes.

    Args:
        value: tensor of one shape on every process.

    Returns:
        The mean, the same bits on each process; `value` itself on a single process.

    Example:
        >>> import torch
        >>> mean(torch.tensor(0.5))
        tensor(0.5000)
    """
    if size() > 1:
        value = value.detach().clone()
        average_([value])
    return value


def average_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by its mean over all processes.

    Args:
        tensors: tensors of the same shapes and in the same order on every process.
    """
    if size() > 1:
        _flattened(tensors, _average)


def barrier() -> None:
    """Wait for all processes."""
    if size() > 1:
        dist.barrier()


def sum_(tensor: Tensor) -> None:
    """Replace a tensor, in place, by its sum over all processes.

    Args:
        tensor: of the same shape on every process.
    """
    if size() > 1:
        dist.all_reduce(tensor)


def from_first(value: Any) -> Any:
    """The value that the first process has.

    Args:
        value: any picklable object.
    """
    values = [value]
    if size() > 1:
        dist.broadcast_object_list(values, 0)
    return values[0]


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Copy the values of the first process into the tensors of all processes, in place; not those of shards.

    Args:
        tensors: tensors of the same shapes and in the same order on every process.
    """
    if size() > 1:
        tensors = [tensor for tensor in tensors if not is_shard(tensor)]
        _flattened(tensors, lambda flat: dist.broadcast(flat, 0))


def own_seed(common: bytes) -> int:
    """Derive a seed for this process from bytes that all processes share.

    Args:
        common: the same bytes on every process.

    Returns:
        A seed >= 0 that differs between processes.
    """
    digest = hashlib.blake2b(common, digest_size=8, salt=rank().to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") >> 1


def per_rank_generator(generator: torch.Generator) -> torch.Generator:
    """Make a generator for one draw that differs on every process, from a generator whose state they share.

    A checkpoint therefore holds one state, however many processes train before and after.

    Args:
        generator: in the same state on all processes; advances by one draw.

    Returns:
        A generator for this process; `generator` itself on a single process.
    """
    if size() == 1:
        return generator
    seed = own_seed(generator.get_state().numpy().tobytes())
    torch.rand(1, generator=generator, device=generator.device)  # the state of the next draw
    return torch.Generator(generator.device).manual_seed(seed)


def digest(tensor: Tensor) -> bytes:
    """Hash the bits of a tensor.

    Args:
        tensor: any shape, dtype and device.

    Returns:
        16 bytes.
    """
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(raw.numpy().tobytes(), digest_size=16).digest()


def _average(flat: Tensor) -> None:
    """Average one flat tensor over all processes, in place."""
    dist.all_reduce(flat)
    flat.div_(size())


def _flattened(tensors: Iterable[Tensor], collective: Callable[[Tensor], Any]) -> None:
    """Run one collective for all tensors that share a dtype and device."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
    for same in kinds.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        collective(flat)
        for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(part.view(tensor.shape))
