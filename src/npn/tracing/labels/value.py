"""Shape and labels of one value in a graph."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from npn.tracing.labels.parts import Part, canonical


@dataclass(frozen=True)
class Value:
    """Shape and labels of one value in the graph.

    Attributes:
        shape: shape of the value.
        parts: its label tensors; an axis along which none varies has a fixed size.
        free: the value is uniform or random, so it can take any size that the code requests.
        const: its elements, if they depend on no input and no parameter; else None.
        own: the value is made of parameters, buffers and constants alone, though no unit lies along its axes.
        loose: axes along which the code repeats one entry.
        unmerged: the value of which it is a view.
        factors: data and the weight that it was multiplied by, elementwise: their sum is a matrix product.
        cause: why it has no units, where an op made it of which nothing is known.
    """

    shape: tuple[int, ...]
    parts: tuple[Part, ...] = ()
    free: bool = False
    const: Tensor | None = None
    own: bool = False
    loose: frozenset[int] = frozenset()
    unmerged: "Value | None" = None
    factors: "tuple[Value, Value] | None" = None
    cause: str = ""

    @property
    def weight(self) -> bool:
        """Whether the value is made of parameters alone."""
        return bool(self.parts) and all(part.weight for part in self.parts)

    @property
    def repeated(self) -> int:
        """How often the code repeats the value, as it does parameters that take the place of an input."""
        return max((part.repeated for part in self.parts), default=0)

    @property
    def table(self) -> bool:
        """Whether the value is made of buffers and constants alone."""
        return all(part.table for part in self.parts)

    @property
    def neutral(self) -> bool:
        """Whether the value depends on no input and no parameter."""
        return self.free or self.const is not None

    @property
    def nothing(self) -> bool:
        """Whether the value is zero everywhere."""
        return self.const is not None and not bool(self.const.any())

    def fixed(self, axis: int) -> bool:
        """Whether the size along an axis is fixed, not a number of units.

        Args:
            axis: the axis.
        """
        if self.free or self.shape[axis] <= 1 or axis in self.loose:
            return False
        if self.const is not None:
            return not bool((self.const == self.const.narrow(axis, 0, 1)).all())
        return not any(axis in part.axes for part in self.parts)

    def viewed(self, shape: Sequence[int]) -> "Value":
        """Add or remove axes of size 1.

        Args:
            shape: the new shape.
        """
        parts = tuple(replace(part, labels=part.labels.reshape(tuple(shape))) for part in self.parts)
        const = None if self.const is None else self.const.reshape(tuple(shape))
        old, new = ([axis for axis, size in enumerate(sizes) if size > 1] for sizes in (self.shape, shape))
        loose = frozenset(after for before, after in zip(old, new, strict=True) if before in self.loose)
        return Value(tuple(shape), parts, self.free, const, self.own, loose, cause=self.cause)

    def reshaped(self, shape: Sequence[int]) -> "Value":
        """The elements in the same order, in another shape.

        Args:
            shape: the new shape.
        """
        shape = tuple(shape)
        parts = tuple(replace(part, labels=canonical(part.labels.reshape(shape))) for part in self.parts)
        const = None if self.const is None else self.const.reshape(shape)
        return Value(shape, parts, self.free, const, self.own, cause=self.cause)

    def aligned(self, rank: int) -> "Value":
        """Prepend axes of size 1, as broadcasting does.

        Args:
            rank: number of axes of the result, if larger than the present one.
        """
        added = rank - len(self.shape)
        if added <= 0:
            return self
        return self.viewed((1,) * added + self.shape)
