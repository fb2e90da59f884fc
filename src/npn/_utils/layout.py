"""Memory formats, and vectors along one axis: how the entries of a tensor lie."""

import torch
from torch import Tensor

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def memory_format(tensor: Tensor) -> torch.memory_format:
    """Whether a tensor is channels-last; all other layouts count as row-major.

    `is_contiguous(memory_format=torch.channels_last)` holds for every kernel of 1 x 1, too, and a convolution whose
    weight has the strides of channels-last returns channels-last: only strides that no row-major tensor has count here.

    Args:
        tensor: dense.

    Example:
        >>> kernel = torch.zeros(4, 8, 1, 1)
        >>> memory_format(kernel), memory_format(kernel.clone(memory_format=torch.channels_last))
        (torch.contiguous_format, torch.channels_last)
    """
    last = _LAST.get(tensor.dim(), torch.contiguous_format)
    row_major = tensor.stride() == _strides(tensor, torch.contiguous_format)
    return last if tensor.stride() == _strides(tensor, last) and not row_major else torch.contiguous_format


def laid_out_like(value: Tensor, tensor: Tensor) -> Tensor:
    """A tensor in the memory format of another one with as many axes; the same object unless that is channels-last.

    Args:
        value: (...), to be laid out.
        tensor: whose format it gets.
    """
    wanted = torch.contiguous_format if tensor.is_sparse else memory_format(tensor)
    return value if wanted is torch.contiguous_format else value.clone(memory_format=wanted)


def along(vector: Tensor, axis: int, dims: int) -> Tensor:
    """A vector as a tensor that broadcasts along one axis.

    Args:
        vector: (n,).
        axis: from 0.
        dims: number of axes.

    Returns:
        n entries along the axis, one along each other.

    Example:
        >>> along(torch.arange(3), 1, 4).shape
        torch.Size([1, 3, 1, 1])
    """
    return vector.view([-1 if a == axis else 1 for a in range(dims)])


def _strides(tensor: Tensor, wanted: torch.memory_format) -> tuple[int, ...]:
    return torch.empty(tensor.shape, device="meta", memory_format=wanted).stride()
