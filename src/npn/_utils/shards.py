"""Tensors that are split by rows over processes: what is here of them, the whole, and others split alike."""

import sys
from typing import Any

import torch
from torch import Tensor

from npn._utils import cpu


def is_shard(tensor: object) -> bool:
    """Whether a tensor is spread over processes, as a `DTensor`.

    Args:
        tensor: any object.
    """
    module = sys.modules.get("torch.distributed.tensor")  # before its import there is no such tensor
    return module is not None and isinstance(tensor, module.DTensor)


def full(tensor: Tensor) -> Tensor:
    """The whole tensor. A shard is gathered from all processes, which must all call this.

    Args:
        tensor: plain or spread over processes.
    """
    return tensor.full_tensor() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """The rows of this process, in the memory of the shard; of a plain tensor its data.

    Args:
        tensor: plain or spread over processes.
    """
    return tensor.detach().to_local() if is_shard(tensor) else tensor.data  # type: ignore[attr-defined]


def rows(tensor: Any) -> slice:
    """The places of this process's rows among those of the whole tensor.

    Args:
        tensor: plain or split by rows.
    """
    if not is_shard(tensor):
        return slice(0, tensor.shape[0])
    return _rows(tensor.shape[0], tensor.device_mesh)


def replicas(tensor: Any) -> int:
    """Number of processes that have the same rows, this one included; 1 unless shards are replicated (HSDP).

    Args:
        tensor: split by rows.
    """
    mesh = tensor.device_mesh
    return int(mesh.size() // mesh.size(mesh.ndim - 1))


def _rows(length: int, mesh: Any) -> slice:
    """Which of so many rows are on this process: as `torch.chunk` splits them, and none on the last ones at times.

    They are split along the last dimension of the mesh, and replicated along one before it (HSDP).
    """
    along = mesh.ndim - 1
    each = -(-length // mesh.size(along))
    start = min(mesh.get_local_rank(along) * each, length)
    return slice(start, min(start + each, length))


def like(value: Tensor, shard: Any) -> Tensor:
    """Split a whole tensor as another one is; nothing is sent, since every process has the whole.

    Args:
        value: of any size, the same on all processes.
        shard: split by rows, or spread otherwise: then every process keeps the whole. If it is not spread over
            processes, `value` is returned as it is.
    """
    if not is_shard(shard) or is_shard(value) or not value.dim():
        return value
    device = local(shard).device
    if not _by_rows(shard):
        return _spread(value.to(device), value.shape, shard)
    mine = value[_rows(value.shape[0], shard.device_mesh)].to(device, copy=True)
    return _spread(mine.contiguous(), value.shape, shard)


def empty_like(shape: torch.Size, dtype: torch.dtype, shard: Any) -> Tensor:
    """A tensor of any shape that is split as another one is, with any values.

    Args:
        shape: of the whole tensor.
        dtype: of the values.
        shard: as for `like`; a whole tensor is on the CPU.
    """
    if not is_shard(shard):
        return cpu.empty(shape, dtype=dtype)
    mine = _rows(shape[0], shard.device_mesh)
    part = torch.empty((mine.stop - mine.start, *shape[1:]), dtype=dtype, device=local(shard).device)
    return _spread(part, shape, shard)


def _by_rows(shard: Any) -> bool:
    return bool(shard.placements[-1].is_shard(0))


def _spread(part: Tensor, shape: torch.Size, shard: Any) -> Tensor:
    """A tensor of which this process has a part, or the whole where `shard` is not split by rows."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    stride = torch.empty(shape, device="meta").stride()
    last = Shard(0) if _by_rows(shard) else Replicate()
    places = (*[Replicate()] * (shard.device_mesh.ndim - 1), last)
    return DTensor.from_local(part, shard.device_mesh, places, run_check=False, shape=shape, stride=stride)
