"""Label tensors: which unit each element of a value is of.

A label is a positive integer; 0 means "no unit". A label tensor has the shape of the value it describes, with stride 0
along every axis on which it does not vary, so that batch and space axes take no memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One label tensor of a value; a value has one for each way in which its elements belong to units.

    Attributes:
        labels: int64, the value's shape, stride 0 along axes on which the labels are constant.
        weight: the value is made of parameters alone, so a contraction with it *reads* units.
        opaque: zeroing the parameters does not zero the weight made of them.
        table: the value is made of buffers and constants alone.
        repeated: how often the code repeats it, as it does learned queries and initial states for each example.
    """

    labels: Tensor
    weight: bool = False
    opaque: bool = False
    table: bool = False
    repeated: int = 0

    @property
    def axes(self) -> frozenset[int]:
        """Axes along which the labels vary."""
        return varying(self.labels)


def varying(labels: Tensor) -> frozenset[int]:
    """Axes along which a label tensor varies.

    Args:
        labels: labels in canonical form, see `canonical`.
    """
    pairs = zip(labels.shape, labels.stride(), strict=True)
    return frozenset(axis for axis, (size, stride) in enumerate(pairs) if stride != 0 and size > 1)


def canonical(labels: Tensor) -> Tensor:
    """Give labels stride 0 along every axis on which they do not vary.

    Args:
        labels: int64, any shape.

    Returns:
        The same labels, in the same shape.
    """
    small = squeeze_constant(labels)
    for axis in sorted(varying(labels), reverse=True):
        first = small.narrow(axis, 0, 1)
        middle = small.narrow(axis, small.shape[axis] // 2, 1)  # most that vary do so here: the whole is not looked at
        if bool((middle == first).all()) and bool((small == first).all()):
            small = first
    if small.untyped_storage().nbytes() > 2 * small.element_size() * small.numel():
        small = small.clone()  # releases the larger storage it was a view of
    return small.expand(labels.shape)


def overlaid(a: Tensor, b: Tensor) -> Tensor:
    """Take labels from `a`, and from `b` where `a` has none.

    Args:
        a, b: int64 labels of one shape.

    Returns:
        Labels of this shape in canonical form.
    """
    x, y = squeeze_constant(a), squeeze_constant(b)
    return canonical(torch.where(x > 0, x, y).expand(a.shape))


def squeeze_constant(labels: Tensor, keep: Iterable[int] = ()) -> Tensor:
    """Reduce every axis along which the labels do not vary to size 1.

    Args:
        labels: labels in canonical form.
        keep: axes that keep their size.

    Returns:
        A view of the labels.
    """
    kept = varying(labels) | set(keep)
    shape = [size if size == 0 or axis in kept else 1 for axis, size in enumerate(labels.shape)]
    return labels.as_strided(shape, labels.stride(), labels.storage_offset())
