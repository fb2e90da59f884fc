"""Example inputs that follow their model."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


def moved(inputs: Any, device: torch.device, dtypes: tuple[torch.dtype, torch.dtype] | None = None) -> Any:
    """The same inputs on a device; floating-point ones of one dtype in another.

    Args:
        inputs: a tensor, or tensors in tuples, lists and dicts.
        device: of the result.
        dtypes: (old, new): the dtype that a model had, and the one that it has now.

    Example:
        >>> moved((torch.ones(2), torch.ones(2).long()), torch.device("cpu"), (torch.float32, torch.float64))
        (tensor([1., 1.], dtype=torch.float64), tensor([1, 1]))
    """

    def move(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.to(device, dtypes[1]) if dtypes is not None and x.dtype == dtypes[0] else x.to(device)

    return tree_map(move, inputs)
