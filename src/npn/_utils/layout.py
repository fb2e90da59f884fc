"""Memory formats: how the entries of a tensor lie in memory."""

import torch
from torch import Tensor

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def laid_out_like(value: Tensor, tensor: Tensor) -> Tensor:
    """A tensor in the memory format of another one with as many axes; the same object unless that is channels-last.

    `is_contiguous(memory_format=torch.channels_last)` holds for every kernel of 1 x 1, too, and a convolution whose
    weight has the strides of channels-last returns channels-last: only strides that no row-major tensor has count here.

    Args:
        value: (...), to be laid out.
        tensor: whose format it gets.

    Example:
        >>> kernel = torch.zeros(4, 8, 1, 1)
        >>> laid_out_like(torch.zeros(2, 8, 1, 1), kernel).stride()
        (8, 1, 1, 1)
        >>> laid_out_like(torch.zeros(2, 8, 1, 1), kernel.clone(memory_format=torch.channels_last)).stride()
        (8, 1, 8, 8)
    """
    last = _LAST.get(tensor.dim())
    if last is None or tensor.is_sparse or tensor.stride() == _strides(tensor, torch.contiguous_format):
        return value
    return value.clone(memory_format=last) if tensor.stride() == _strides(tensor, last) else value


def _strides(tensor: Tensor, memory_format: torch.memory_format) -> tuple[int, ...]:
    return torch.empty(tensor.shape, device="meta", memory_format=memory_format).stride()
