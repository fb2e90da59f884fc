"""Norms and other reductions over the open units alone: what the network without the closed ones computes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def open_mean(x: Tensor, z: Tensor, dims: Sequence[int]) -> Tensor:
    r"""Mean over the open units, $\sum_j z_j x_j / \sum_j z_j$.

    Args:
        x: of any shape.
        z: gates, of shape (units, 1, ..., 1): the units lie along an axis of `x` that is among `dims`.
        dims: axes of `x`, counted from the last one; they stay with length 1.

    Example:
        >>> x, z = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 0.0, 1.0])
        >>> open_mean(x, z, [-1])
        tensor([3.5000])
    """
    others = [x.shape[d] for d in dims if d != -z.dim()]
    count = z.sum().clamp_min(1)  # all units may be closed for once; nothing reads the result then
    total: Tensor = (x * z).sum(tuple(dims), keepdim=True)
    return total / (count * torch.Size(others).numel())


def open_layer_norm(
    x: Tensor, z: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    r"""Layer norm with mean and variance over the open units.

    $$y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}\, g + b,\qquad \mu = \frac{\sum_j z_j x_j}{\sum_j z_j},\quad
    \sigma^2 = \frac{\sum_j z_j (x_j - \mu)^2}{\sum_j z_j}$$

    Args:
        x: of any shape; half precision is computed in float32.
        z: see `open_mean`.
        shape: of the last axes, which are normalised.
        weight, bias, eps: of `torch.nn.functional.layer_norm`.

    Example:
        >>> x, z = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 0.0, 1.0])
        >>> open_layer_norm(x, z, (3,), None, None, 0.0)[[0, 2]]
        tensor([-1.,  1.])
    """
    dims = range(-len(shape), 0)
    centred = x - open_mean(x, z, dims)
    y = centred * torch.rsqrt(open_mean(centred.square(), z, dims) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def open_rms_norm(x: Tensor, z: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None) -> Tensor:
    r"""RMS norm with the mean square over the open units.

    $$y = \frac{x}{\sqrt{\sum_j z_j x_j^2 / \sum_j z_j + \epsilon}}\, g$$

    Args:
        x, z, shape, weight: as for `open_layer_norm`.
        eps: None for the machine precision.
    """
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * torch.rsqrt(open_mean(x.square(), z, range(-len(shape), 0)) + eps)
    return y if weight is None else y * weight


def open_group_norm(x: Tensor, z: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Group norm of one group, with mean and variance over the open channels and all positions.

    Args:
        x: (batch, channels, ...).
        z, weight, bias, eps: as for `open_layer_norm`; weight and bias are of shape (channels,).
    """
    space = (-1, *[1] * (x.dim() - 2))
    gain, shift = (None if each is None else each.view(space) for each in (weight, bias))
    return open_layer_norm(x, z, x.shape[1:], gain, shift, eps)


def open_variance(x: Tensor, z: Tensor, dims: Sequence[int], correction: float) -> Tensor:
    r"""Variance over the open units, $\sum_j z_j (x_j - \mu)^2 / (n - c)$ for n open entries; see `open_mean`."""
    centred = (x - open_mean(x, z, dims)).square()
    count = z.sum() * torch.Size([x.shape[d] for d in dims if d != -z.dim()]).numel()
    return open_mean(centred, z, dims) * count / (count - correction).clamp_min(0)


def over_open(function: Callable[..., Any], z: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Call a norm or reduction of torch as it would be without the closed units.

    Args:
        function: `layer_norm`, `rms_norm`, `group_norm` of one group, `normalize`, `mean`, `sum`, `var`, `std`,
            `norm` or `vector_norm`.
        z: float (units, 1, ..., 1), gates along one axis of x.
        x: its first argument.
        *args, **kwargs: its others.

    Returns:
        Its result. At closed units it is arbitrary.
    """
    name = function.__name__
    if name in ("sum", "norm", "linalg_vector_norm"):
        return function(x * z.to(x.dtype), *args, **kwargs)  # type: ignore[no-any-return]
    if name == "mean":
        z = z.to(x.dtype)
        return function(x * z, *args, **kwargs) * (z.numel() / z.sum().clamp_min(1))  # type: ignore[no-any-return]
    if name == "normalize":
        return _normalize(x, z.to(x.dtype), *args, **kwargs)
    if name in ("var", "std"):
        variance = _variance(x, z.to(x.dtype), *args, **kwargs)
        return variance.sqrt() if name == "std" else variance
    y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    like = function(x[:0] if x.dim() > 1 else x, *args, **kwargs)  # autocast decides the dtype
    compute: Callable[..., Tensor] = (
        _layer_norm if name == "layer_norm" else _group_norm if name == "group_norm" else _rms_norm
    )
    return compute(y, z.to(y.dtype), *args, **kwargs).to(like.dtype)


def _layer_norm(
    x: Tensor,
    z: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    return open_layer_norm(x, z, normalized_shape, weight, bias, eps)


def _rms_norm(
    x: Tensor, z: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    return open_rms_norm(x, z, normalized_shape, weight, eps)


def _group_norm(
    x: Tensor, z: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    return open_group_norm(x, z, weight, bias, eps)


def _normalize(x: Tensor, z: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
    length: Tensor = (x * z).norm(p, dim, True)
    return x / length.clamp_min(eps)


def _variance(
    x: Tensor, z: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, **kwargs: Any
) -> Tensor:
    if isinstance(dim, bool):  # x.var(False)
        dim, unbiased = None, dim
    correction = kwargs.get("correction", int(unbiased))
    dims = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    last = [d % x.dim() - x.dim() for d in dims]
    variance = open_variance(x, z, last, 1 if correction is None else correction)
    return variance if keepdim else variance.squeeze(tuple(last))
