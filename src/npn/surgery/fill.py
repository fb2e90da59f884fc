"""Initial values of new entries: weights as in new layers, neutral norms, the mean of other tensors' entries."""

import math

import torch
from torch import Tensor, nn

from npn._utils.models import home_of

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_NEUTRAL = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_LAYERS = (nn.Linear, nn.Bilinear, *_EMBEDDINGS, nn.modules.conv._ConvNd, *_RECURRENT)


def initial_entries(model: nn.Module, name: str, old: Tensor, axis: int, shape: tuple[int, ...]) -> Tensor:
    """Make new entries along one axis of a parameter or buffer.

    Entries of a weight come from `U(-1/sqrt(n), 1/sqrt(n))`, where n is the present fan-in of a row, and those of its
    bias, too. This is PyTorch's default for linear and convolution layers; for transposed convolutions PyTorch counts
    the fan-out. As there, n is the first input's size in a bilinear layer and the hidden size for all parameters of a
    recurrent one, an embedding gets N(0, 1), and 0 for its padding, and normalisation starts neutral.

    Any other tensor (buffers, parameters with one number per unit, as of PReLU) gets the mean of its present entries
    along this axis, so that a fixed kernel and a positive variance stay so; one of -1, 0 and 1 alone, such as the mask
    of a masked autoencoder, gets whole entries of present units, in turn.

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
        if isinstance(owner, _EMBEDDINGS):
            return _normal(old, shape, owner.padding_idx)
        return _uniform(old, shape, _fan_in(owner, old, old.shape[axis]))
    if isinstance(owner, _RECURRENT) and leaf.startswith("bias"):
        return _uniform(old, shape, int(owner.hidden_size))
    weight = getattr(owner, "weight", None)
    if leaf.startswith("bias") and isinstance(weight, Tensor) and weight.dim() > 1:
        return _uniform(old, shape, _fan_in(owner, weight, old.numel()))
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


def _fan_in(owner: nn.Module, weight: Tensor, outputs: int) -> int:
    """The number n of a layer's weight, which gives so many outputs."""
    if isinstance(owner, _RECURRENT):
        return int(owner.hidden_size)
    if isinstance(owner, nn.Bilinear):
        return weight.shape[1]
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):
        return weight.numel() // max(weight.shape[1] * owner.groups, 1)
    return weight.numel() // max(outputs, 1)


def _normal(old: Tensor, shape: tuple[int, ...], padding: int | None) -> Tensor:
    """Draw features of embeddings from N(0, 1), and 0 for the padding's."""
    new = torch.empty(shape, dtype=old.dtype, device=old.device).normal_()
    if padding is not None:
        new[padding] = 0
    return new


def _uniform(old: Tensor, shape: tuple[int, ...], fan_in: int) -> Tensor:
    """Draw from U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(max(fan_in, 1))
    return torch.empty(shape, dtype=old.dtype, device=old.device).uniform_(-bound, bound)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Module that a tensor belongs to, and the tensor's name in it."""
    path, leaf = home_of(name)
    return model.get_submodule(path), leaf
