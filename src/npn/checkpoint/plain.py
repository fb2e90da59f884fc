"""What a checkpoint may hold: tensors and plain values, which `torch.load(weights_only=True)` reads."""

import copy
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npn.errors import CheckpointError

_VALUES = (type(None), bool, int, float, complex, str, bytes, bytearray, torch.Size, torch.dtype, torch.device)
_MAPPINGS, _SEQUENCES = (dict, OrderedDict), (list, tuple, set)


def plain(value: Any, path: str) -> Any:
    """Turn NumPy's numbers into Python's, and raise if anything else could not be read again.

    Args:
        value: of any depth.
        path: where it lies in the checkpoint, for the error message.

    Returns:
        The value; the same object if nothing had to be turned.

    Raises:
        CheckpointError: an object is of another type.

    Example:
        >>> plain({"best": np.float64(0.5), "epoch": 7}, "extra")
        {'best': 0.5, 'epoch': 7}
    """
    kind = type(value)
    if isinstance(value, Tensor) or kind in _VALUES or kind in torch.serialization.get_safe_globals():
        return value
    if isinstance(value, np.generic):
        return value.item()
    if kind in _MAPPINGS:
        pairs = [(plain(key, f"a key of {path}"), plain(each, f"{path}.{key}")) for key, each in value.items()]
        if all(a is b and c is d for (a, c), (b, d) in zip(pairs, value.items(), strict=True)):
            return value
        new = copy.copy(value)  # with the attributes of a state_dict
        new.clear()
        new.update(pairs)
        return new
    if kind in _SEQUENCES:
        parts = [plain(each, f"{path}[{place}]") for place, each in enumerate(value)]
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else kind(parts)
    raise CheckpointError(
        f"{path} is of class {kind.__module__}.{kind.__qualname__}, which could not be loaded again; save tensors and "
        "plain values: numbers, text, None, and lists, tuples, sets and dicts of these"
    )
