"""Example inputs that follow their model."""

from typing import Any

import torch
from torch import Tensor, nn
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


def copied(inputs: Any) -> Any:
    """The same inputs in memory of their own, which code may write into.

    Args:
        inputs: a tensor, or tensors in tuples, lists and dicts.

    Example:
        >>> x = torch.ones(2)
        >>> copied((x, 3))[0].zero_(), x
        (tensor([0., 0.]), tensor([1., 1.]))
    """
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a model's first floating-point parameter; float32 where it has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def moved_with(model: nn.Module, inputs: Any, dtype: torch.dtype) -> Any:
    """Inputs on the device of a model, and in its dtype.

    Args:
        model: which may have moved since the inputs were made.
        inputs: a tensor, or tensors in tuples, lists and dicts.
        dtype: of the model when the inputs were made.
    """
    device = next((p.device for p in model.parameters()), None)
    return inputs if device is None else moved(inputs, device, (dtype, model_dtype(model)))
