"""Reductions and products on labels: units become one along summed axes, and weights read the units of data."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from npn.structure import Key
from npn.tracing.labels.ledger import Ledger
from npn.tracing.labels.merging import SHIFTED, TWO_KINDS, merge, restrict
from npn.tracing.labels.parts import Part
from npn.tracing.labels.places import aligned
from npn.tracing.labels.value import Value

OPAQUE = "the weight is a function that zero does not pass"


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
    slots = set[Key]()
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
