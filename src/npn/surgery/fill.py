"""Values of new entries: fan-in initialised rows, zero fan-out, neutral normalisation."""

import math

import torch
from torch import Tensor, nn

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_NEUTRAL = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


def fresh(model: nn.Module, name: str, old: Tensor, axis: int, shape: tuple[int, ...]) -> Tensor:
    """New entries along one axis of a parameter or buffer.

    A row of a weight gets PyTorch's default `U(-1/sqrt(fan_in), 1/sqrt(fan_in))` for the fan-in it has now, a bias the
    bound of its weight, normalisation starts neutral, and anything else the mean of the entries that are there.

    Args:
        name: of the tensor; `old` is its value, `shape` the shape of the new entries.
    """
    owner, leaf = _owner(model, name)
    if isinstance(owner, _NORMS) and leaf in _NEUTRAL:
        return old.new_full(shape, _NEUTRAL[leaf])
    if old.dim() > 1:
        return _uniform(old, shape, math.prod(shape) // max(shape[axis], 1))
    weight = getattr(owner, "weight", None)
    if leaf.startswith("bias") and isinstance(weight, Tensor) and weight.dim() > 1:
        return _uniform(old, shape, weight.numel() // max(old.numel(), 1))
    return old.mean().expand(shape).clone() if old.is_floating_point() else old.new_zeros(shape)


def _uniform(old: Tensor, shape: tuple[int, ...], fan_in: int) -> Tensor:
    bound = 1 / math.sqrt(max(fan_in, 1))
    return torch.empty(shape, dtype=old.dtype, device=old.device).uniform_(-bound, bound)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    if ".parametrizations." in f".{path}":
        path, _, leaf = path.rpartition("parametrizations.")
        path = path.rstrip(".")
    return model.get_submodule(path), leaf
