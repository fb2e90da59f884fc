"""Initial values of new entries: fan-in initialised rows, neutral normalisation, the mean of other tensors' entries."""

import math

import torch
from torch import Tensor, nn

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_NEUTRAL = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
_LAYERS = (nn.Linear, nn.Bilinear, nn.Embedding, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase)


def initial_entries(model: nn.Module, name: str, old: Tensor, axis: int, shape: tuple[int, ...]) -> Tensor:
    """Make new entries along one axis of a parameter or buffer.

    A row of a weight gets PyTorch's default `U(-1/sqrt(fan_in), 1/sqrt(fan_in))` for its present fan-in, a bias gets
    the bound of its weight, and normalisation starts neutral. Any other tensor (buffers, parameters with one number per
    unit) gets the mean of its present entries along this axis, so that a fixed kernel and a positive variance stay so;
    one of -1, 0 and 1 alone, such as the mask of a masked autoencoder, gets whole entries of present units, in turn.

    Args:
        model: the model, in which the tensor's owner is looked up.
        name: name of the tensor.
        old: present value of the tensor.
        axis: axis along which entries are added.
        shape: shape of the new entries, that of `old` except along `axis`.

    Returns:
        The new entries, in `shape`, with dtype and device of `old`.
    """
    owner, leaf = _owner(model, name)
    if isinstance(owner, _NORMS) and leaf in _NEUTRAL:
        return old.new_full(shape, _NEUTRAL[leaf])
    if _is_weight(model, name, axis):
        return _uniform(old, shape, math.prod(shape) // max(shape[axis], 1))
    weight = getattr(owner, "weight", None)
    if leaf.startswith("bias") and isinstance(weight, Tensor) and weight.dim() > 1:
        return _uniform(old, shape, weight.numel() // max(old.numel(), 1))
    if not old.is_floating_point() and not old.is_complex():
        return old.new_zeros(shape)
    if bool((old.eq(0) | old.abs().eq(1)).all()):
        return old.index_select(axis, torch.arange(shape[axis], device=old.device) % old.shape[axis])
    return old.mean(axis, keepdim=True).expand(shape).clone()


def _is_weight(model: nn.Module, name: str, axis: int) -> bool:
    """Whether a parameter has several numbers per unit along this axis, or is the weight of a layer with one input."""
    path, _, own = name.rpartition(".")
    parameter = model.get_submodule(path)._parameters.get(own)
    if parameter is None or parameter.dim() < 2:
        return False
    owner, leaf = _owner(model, name)
    layer = isinstance(owner, _LAYERS) and leaf.startswith("weight") and getattr(owner, leaf).shape == parameter.shape
    return layer or parameter.numel() > parameter.shape[axis]


def _uniform(old: Tensor, shape: tuple[int, ...], fan_in: int) -> Tensor:
    """Draw from U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(max(fan_in, 1))
    return torch.empty(shape, dtype=old.dtype, device=old.device).uniform_(-bound, bound)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Module that owns a tensor and the tensor's name in it, seen through parametrizations."""
    path, _, leaf = name.rpartition(".")
    if ".parametrizations." in f".{path}":
        path, _, leaf = path.rpartition("parametrizations.")
        path = path.rstrip(".")
    return model.get_submodule(path), leaf
