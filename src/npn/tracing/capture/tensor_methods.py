"""Methods of tensors that a trace cannot follow as they are written, by others that it can."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from npn.tracing.capture.patching import patched

_IN_PLACE = {  # `mask &= other`, of which PyTorch can make no function
    "__iand__": "bitwise_and_", "__ior__": "bitwise_or_", "__ixor__": "bitwise_xor_",
    "__ilshift__": "bitwise_left_shift_", "__irshift__": "bitwise_right_shift_",
}  # fmt: skip


def read_by_entry() -> contextlib.AbstractContextManager[None]:
    """Inside, in this thread, lists and arrays of a traced tensor are read entry by entry, as `.item()` does.

    PyTorch's own methods read its memory, of which a traced tensor has none.
    """
    in_place = {name: _named(instead) for name, instead in _IN_PLACE.items()}
    return patched(Tensor, {"tolist": _tolist, "numpy": _numpy, **in_place})


def _named(name: str) -> Callable[..., Any]:
    return lambda before, tensor, other: getattr(tensor, name)(other)


def _traced(tensor: Tensor) -> bool:
    return isinstance(tensor, FakeTensor) or torch._is_functional_tensor(tensor)


def _tolist(before: Callable[..., Any], tensor: Tensor) -> Any:
    if not _traced(tensor):
        return before(tensor)
    return [_tolist(before, row) for row in tensor.unbind()] if tensor.dim() else tensor.item()


def _numpy(before: Callable[..., Any], tensor: Tensor, **options: Any) -> Any:
    if not _traced(tensor):
        return before(tensor, **options)
    entries = np.array(_tolist(before, tensor), str(tensor.dtype).removeprefix("torch."))
    return entries.reshape(tuple(tensor.shape))
