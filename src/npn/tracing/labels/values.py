"""Shape and labels of each value in the graph, and the operations on them: merge, restrict, reduce, contract."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from npn.tracing.labels.joining import unmet
from npn.tracing.labels.ledger import Ledger, Part, canonical, joined, squeeze_constant
from npn.tracing.labels.places import aligned

SHIFTED = "its units have been shifted against each other along another axis"
TWO_KINDS = "two axes of one weight make one axis"
OPAQUE = "the weight is a function that zero does not pass"


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
        cause: why it has no units, where an op made it of which nothing is known.
    """

    shape: tuple[int, ...]
    parts: tuple[Part, ...] = ()
    free: bool = False
    const: Tensor | None = None
    own: bool = False
    loose: frozenset[int] = frozenset()
    unmerged: "Value | None" = None
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


def restrict(ledger: Ledger, part: Part, axes: Iterable[int], reason: str) -> Part:
    """Forbid resizing along some axes: unite labels along them, freeze labels that vary along no other axis.

    Args:
        ledger: records the united and frozen labels.
        part: one label tensor.
        axes: axes along which units cannot be added or removed.
        reason: reason for frozen units.

    Returns:
        The part, with labels constant along these axes unless it is frozen.
    """
    hit = sorted(part.axes & set(axes))
    if not hit:
        return part
    if part.axes <= set(hit):
        ledger.freeze(part.labels, reason)
        return part
    part = replace(part, labels=_without_shared(ledger, part, hit, reason))
    if not aligned(part.labels, set(hit), ledger.owners):
        ledger.freeze(part.labels, f"{SHIFTED}: {reason}")
    first = ledger.unite_along(part.labels, hit, reason)
    return replace(part, labels=first.expand(part.labels.shape))


def _without_shared(ledger: Ledger, part: Part, hit: Sequence[int], reason: str) -> Tensor:
    """The labels without those that vary along `hit` alone, as features of a key that all heads share; these freeze."""
    labels = squeeze_constant(part.labels)
    shared = labels > 0
    for axis in part.axes - set(hit):
        shared = shared & (labels == labels.narrow(axis, 0, 1)).all(axis, keepdim=True)
    if not bool(shared.any()):
        return part.labels
    ledger.freeze(labels[shared], reason)
    return canonical(labels.masked_fill(shared, 0).expand(part.labels.shape))


def merge(ledger: Ledger, values: Sequence[Value], shape: Sequence[int], where: str, zero: str = "never") -> Value:
    """Elementwise op with broadcasting: units that meet in one element become one unit.

    Args:
        ledger: records the united and frozen labels.
        values: the operands.
        shape: shape of the result.
        where: op and source line, for reasons.
        zero: when the result is zero, so that a weight made in this way can be masked through its parameters: where
            "any" operand is (product), where "all" operands are (sum), or "never".

    Returns:
        The result.
    """
    rank = len(shape)
    operands = [value.aligned(rank) for value in values]
    own = all(v.weight or v.neutral or v.own for v in operands)
    weight = own and any(v.parts for v in operands)
    table = all(v.neutral or (v.parts and v.table) for v in operands)
    merged: list[tuple[set[int], Part]] = []
    for source, value in enumerate(operands):
        for part in value.parts:
            labels = part.labels.expand(tuple(shape))
            part = Part(labels, weight, part.opaque or (weight and zero == "never"), part.table, part.repeated)
            if not part.axes:
                same = [i for i, (_, other) in enumerate(merged) if not other.axes]
                if any(v.parts and any(p.axes for p in v.parts) for v in operands) or value.shape != tuple(shape):
                    ledger.freeze(labels, f"one unit is broadcast over others at {where}")
                elif same:
                    ledger.unite(merged[same[0]][1].labels, labels)
                else:
                    merged.append(({source}, part))
                continue
            partners = [i for i, (_, other) in enumerate(merged) if other.axes & part.axes]
            if any(merged[i][0] == {source} for i in partners):
                ledger.freeze(labels, f"{TWO_KINDS} at {where}")
                continue
            for i in partners:
                sources, other = merged[i]
                if part.axes < other.axes or other.axes < part.axes:
                    pairs = [(part, {source}), (other, sources)]
                    (small, fewer), (large, more) = pairs if part.axes < other.axes else pairs[::-1]
                    if all(operands[s].weight for s in fewer) and not all(operands[s].weight for s in more):
                        ledger.serve(small.labels, large.labels, small.table, where)
                        merged[i] = (sources | {source}, large)
                        continue
                    if small.table and not large.table:  # so it cannot be resized with the weights
                        ledger.freeze(small.labels, f"one table serves several units at {where}")
                        large = restrict(ledger, large, small.axes, f"combined with a table of fixed size at {where}")
                        merged[i] = (sources | {source}, large)
                        continue
                ledger.unite(other.labels, labels, f"different units meet in an elementwise op at {where}")
                if weight and zero == "all":
                    ledger.share(other.labels, labels)
                _pad(ledger, other.labels, labels, where)
                both = joined(other.labels, labels)
                merged[i] = (
                    sources | {source},
                    replace(
                        part,
                        labels=both,
                        opaque=other.opaque or part.opaque,
                        table=other.table and part.table,
                        repeated=max(other.repeated, part.repeated),
                    ),
                )
            if not partners:
                merged.append(({source}, part))
    terms = {i for i, v in enumerate(operands) if not v.nothing} if zero == "all" and weight else set()
    result = []
    for sources, part in merged:
        stuck = {a for i, v in enumerate(operands) if i not in sources for a in part.axes if v.fixed(a)}
        part = replace(part, opaque=part.opaque or not terms <= sources, table=table)
        fixed = f"combined with a value of fixed size at {where}"
        if any(v.const is not None and v.fixed(a) for v in operands for a in stuck):
            fixed += (
                ", which the code computes for their present number, or a buffer of booleans or whole numbers; as a "
                "floating-point buffer it would be resized with them"
            )
        restricted = restrict(ledger, part, stuck, fixed)
        positions = part.axes <= stuck and not own and all(operands[i].weight for i in sources)
        if not (part.axes and positions):  # a table of positions: from here on the axis is one of the data
            result.append(restricted)
    neutral = all(v.neutral for v in operands)
    return Value(tuple(shape), tuple(result), free=neutral, own=own and not neutral)


def with_repeats(result: Value, values: Sequence[Value]) -> Value:
    """An elementwise result with the axes along which it repeats one entry, as a mask with zeros of another shape does.

    Args:
        result, values: the result without them, and the operands with all their axes.
    """
    if result.neutral:
        return result
    operands = [value.aligned(len(result.shape)) for value in values]
    kept = {axis for part in result.parts for axis in part.axes}
    wide = [a for a, size in enumerate(result.shape) if size > 1 and a not in kept]
    wide = [a for a in wide if all(v.neutral or v.shape[a] == 1 or a in v.loose for v in operands)]
    return replace(result, loose=frozenset(axis for axis in wide if not any(v.fixed(axis) for v in operands)))


def _pad(ledger: Ledger, a: Tensor, b: Tensor, where: str) -> None:
    """Freeze units that are added to zero padding, since the amount of padding is a number in the code."""
    for labels in unmet(squeeze_constant(a), squeeze_constant(b)):
        ledger.freeze(labels, f"added to zero padding at {where}")


def reduce(
    ledger: Ledger, value: Value, axes: Sequence[int], keepdim: bool, reason: str, linear: bool = False
) -> Value:
    """Sum, mean, norm, ... over `axes`: units that vary along these axes become one unit.

    Args:
        ledger: records the united and frozen labels.
        value: the operand.
        axes: the reduced axes.
        keepdim: whether the reduced axes stay with size 1.
        reason: reason for frozen units.
        linear: whether zeroed columns of a weight leave the result unchanged (sum, norm).

    Returns:
        The result.
    """
    parts = []
    for part in value.parts:
        gone = part.axes & set(axes)
        if part.weight and linear and gone and not part.opaque:
            ledger.mix(part.labels, sorted(gone), reason)
        else:
            part = restrict(ledger, part, axes, reason)
        if gone and not part.axes - gone:
            continue
        labels = part.labels
        for axis in axes:
            labels = labels.narrow(axis, 0, 1)
        if not keepdim:
            labels = labels.reshape([s for a, s in enumerate(labels.shape) if a not in axes])
        parts.append(replace(part, labels=labels))
    sizes = [1 if a in axes else s for a, s in enumerate(value.shape)]
    shape = sizes if keepdim else [s for a, s in enumerate(value.shape) if a not in axes]
    own = value.weight or value.own
    return Value(tuple(shape), tuple(parts), free=value.neutral, own=own, cause=value.cause)


def contract(ledger: Ledger, a: Value, b: Value, axes: Sequence[int], where: str) -> Value:
    """Sum of products over `axes`: a weight reads the units of the data and produces its own units.

    Args:
        ledger: records the united and frozen labels.
        a, b: the operands, viewed in the space of the product (size 1 where one of them does not vary).
        axes: the contracted axes, which are removed from the result.
        where: op and source line, for reasons.

    Returns:
        The result.
    """
    shape = torch.broadcast_shapes(a.shape, b.shape)
    if a.weight and b.weight and a.repeated != b.repeated:  # a product of many repeats both operands itself
        a, b = (_as_data(a), b) if a.repeated > b.repeated else (a, _as_data(b))
    elif a.weight and b.weight and _of_layer(ledger, b, set(axes)):
        a = _as_data(a)
    crossed: tuple[Part, ...] = ()
    if a.weight != b.weight:
        data, weight = (b, a) if a.weight else (a, b)
        a, b, crossed = _read(ledger, data, weight, set(axes), where)
        b = replace(b, parts=tuple(p for p in b.parts if not _fixed_by(ledger, p, a, where)))
    both = a.weight and b.weight
    mixes = f"the product at {where} mixes every unit"
    if not both:  # before the units meet: one operand may serve several units of the other
        a, b = (replace(v, parts=tuple(restrict(ledger, p, axes, mixes) for p in v.parts)) for v in (a, b))
    product = merge(ledger, [a, b], shape, where, zero="any")
    kept = tuple(replace(p, labels=restrict(ledger, p, axes, mixes).labels.expand(shape)) for p in crossed)
    product = replace(product, parts=product.parts + kept)
    return reduce(ledger, product, axes, False, mixes, linear=both)


def _fixed_by(ledger: Ledger, part: Part, data: Value, where: str) -> bool:
    """Whether the data fixes the size of all axes of a part, as of a matrix for each frequency; it freezes then."""
    fixed = bool(part.axes) and all(data.fixed(axis) for axis in part.axes)
    if fixed:
        ledger.freeze(part.labels, f"combined with a value of fixed size at {where}")
    return fixed


def fixed_input(data: Value, where: str) -> str:
    """The reason of what reads a value without units, with the cause where that is known.

    Args:
        data: the value.
        where: op and source line.
    """
    return f"it reads an input of fixed size at {where}{f', which comes from here: {data.cause}' if data.cause else ''}"


def _of_layer(ledger: Ledger, weight: Value, axes: set[int]) -> bool:
    """Whether a product sums over the inputs of a layer, which reads a parameter then as it would read data."""
    slots = set[tuple[str, int]]()
    for part in weight.parts:
        if part.axes & axes:
            ledger.mark(part.labels, slots)
    return any(axis == 1 and name in ledger.layers for name, axis in slots)


def _as_data(value: Value) -> Value:
    """Take a parameter that the code repeats, or that a layer reads, for what it is: a learned input, not a weight."""
    return replace(value, parts=tuple(replace(p, weight=False, repeated=0) for p in value.parts), own=False)


def _read(
    ledger: Ledger, data: Value, weight: Value, axes: set[int], where: str
) -> tuple[Value, Value, tuple[Part, ...]]:
    """Unite the data's units with the columns that read them.

    Returns:
        The data's other units; the weight's rows; and rows of a second kind along the axis of the first, as where
        `einsum` computes all experts in one product and tells them apart afterwards.
    """
    columns = [part for part in weight.parts if part.axes & axes]
    read = [part for part in data.parts if part.axes & axes]
    rows: list[Part] = []
    crossed: list[Part] = []
    for part in weight.parts:
        if part.axes & axes:
            continue
        ledger.mark(part.labels, ledger.produces)
        if not any(part.axes & row.axes for row in rows):
            rows.append(replace(part, weight=False))
        elif any(data.shape[axis] > 1 for axis in part.axes):
            ledger.freeze(part.labels, f"{TWO_KINDS} at {where}")
        else:
            crossed.append(replace(part, weight=False))
    for i, part in enumerate(columns):
        if i >= len(read) and data.neutral and not any(data.fixed(a) for a in axes):
            ledger.mark(part.labels, ledger.reads)  # what another call may give in their place
            continue  # zeros, such as the initial state of a recurrent layer, follow the width
        if i >= len(read) or part.opaque:
            reason = f"{OPAQUE} at {where}" if part.opaque else fixed_input(data, where)
            ledger.freeze(part.labels, reason)
            if i < len(read):
                ledger.freeze(read[i].labels, reason)
            continue
        if not aligned(read[i].labels, set(range(len(data.shape))) - axes, ledger.owners):
            ledger.freeze(part.labels, f"{SHIFTED}, and are read at {where}")
        ledger.unite(read[i].labels, part.labels)
        ledger.mark(part.labels, ledger.reads)
    for part in read[len(columns) :]:
        ledger.freeze(part.labels, f"read along a fixed axis at {where}")
    rest = tuple(part for part in data.parts if not part.axes & axes)
    return replace(data, parts=rest), Value(weight.shape, tuple(rows)), tuple(crossed)
