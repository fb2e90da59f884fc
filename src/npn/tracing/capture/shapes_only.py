"""Stand-ins for functions that keep a shape, for forward passes on the meta device of which only shapes are wanted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from npn._utils.layout import memory_format


class ShapesOnly(TorchFunctionMode):
    """Inside, activations and norms return empty tensors of the shape of their input, without their meta kernels.

    These kernels are Python, and take most of the time of a forward pass without values. Sizes that do not fit raise
    `RuntimeError`, as the functions themselves do.

    Example:
        >>> with ShapesOnly():
        ...     F.batch_norm(torch.empty(2, 4, 3, device="meta"), None, None, torch.ones(5))
        Traceback (most recent call last):
        RuntimeError: a norm over 4 units got one of 5
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        x = args[0] if args else None
        if func in STAND_INS and isinstance(x, Tensor) and x.is_meta and x.is_floating_point():
            return STAND_INS[func](*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _elementwise(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.empty_like(x)


def _per_channel(x: Tensor, tensors: Sequence[Tensor | None]) -> Tensor:
    for tensor in tensors:
        if tensor is not None and len(tensor) != x.shape[1]:
            raise RuntimeError(f"a norm over {x.shape[1]} units got one of {len(tensor)}")
    return torch.empty_like(x, memory_format=memory_format(x))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    return _per_channel(x, (running_mean, running_var, weight, bias))


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    if x.shape[1] % num_groups:
        raise RuntimeError(f"{x.shape[1]} units are not divisible into {num_groups} groups")
    return _per_channel(x, (weight, bias))


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    shape = tuple(normalized_shape)
    for found in (tuple(x.shape[x.dim() - len(shape) :]), *(tuple(t.shape) for t in (weight, bias) if t is not None)):
        if found != shape:
            raise RuntimeError(f"a norm over {list(shape)} got {list(found)}")
    return torch.empty_like(x, memory_format=torch.contiguous_format)


STAND_INS: dict[Any, Callable[..., Tensor]] = {
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    **dict.fromkeys((F.gelu, F.hardswish, F.hardsigmoid, F.silu, F.mish, F.elu, F.relu6), _elementwise),
}
