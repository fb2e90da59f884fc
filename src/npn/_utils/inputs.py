"""What a model's forward pass takes, and what it gives."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from npn.errors import TraceError

_CACHES = ("past_key_values",)  # caches that are plain tuples are known by their name


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
    return next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)


def moved_with(model: nn.Module, inputs: Any, dtype: torch.dtype) -> Any:
    """Inputs on the device of a model, and in its dtype.

    Args:
        model: which may have moved since the inputs were made.
        inputs: a tensor, or tensors in tuples, lists and dicts.
        dtype: of the model when the inputs were made.
    """
    device = next((p.device for p in model.parameters()), None)
    return inputs if device is None else moved(inputs, device, (dtype, model_dtype(model)))


def split_inputs(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of one call, from a tensor, a tuple or list, or a dict of keywords."""
    if example_inputs is None:
        raise TraceError(
            "example_inputs is missing: expected a tensor, a tuple of positional arguments or a dict of keyword "
            "arguments, as the model's forward takes them; pass one small batch, e.g. torch.zeros(2, 3, 32, 32)"
        )
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def output_tensors(result: Any) -> list[Tensor]:
    """All tensors in a model's answer, whatever holds them; decoding caches, returned for reuse, are no part of it."""
    found = []
    for leaf in tree_flatten(result, is_leaf=lambda value: _is_cache(value) or isinstance(value, Mapping))[0]:
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            for value in (value for key, value in leaf.items() if key not in _CACHES):
                found += output_tensors(value)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, (type, nn.Module)) and not _is_cache(leaf):
            found += output_tensors({key: value for key, value in vars(leaf).items() if not key.startswith("__")})
    return found


def _is_cache(value: Any) -> bool:
    """By its class's name or by what it can do, as no library of models is imported here."""
    named = any(base.__name__.endswith("Cache") for base in type(value).__mro__)
    return named or (hasattr(value, "get_seq_length") and hasattr(value, "update"))
