"""Elementwise ops on labels: units that meet in one element become one; along axes of fixed size they keep theirs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from npn.tracing.labels.joining import unmet
from npn.tracing.labels.ledger import Ledger
from npn.tracing.labels.parts import Part, canonical, overlaid, squeeze_constant
from npn.tracing.labels.places import aligned
from npn.tracing.labels.value import Value

SHIFTED = "its units have been shifted against each other along another axis"
TWO_KINDS = "two axes of one weight make one axis"
Zero = Literal["any", "all", "never"]  # of which operands zeros make the result zero


@dataclass(frozen=True)
class _Met:
    """Units of a result, and the numbers of the operands that have them."""

    sources: frozenset[int]
    part: Part


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


def merge(ledger: Ledger, values: Sequence[Value], shape: Sequence[int], where: str, zero: Zero = "never") -> Value:
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
    operands = [value.aligned(len(shape)) for value in values]
    own = all(v.weight or v.neutral or v.own for v in operands)
    weight = own and any(v.parts for v in operands)
    table = all(v.neutral or (v.parts and v.table) for v in operands)
    share = weight and zero == "all"
    spread = any(part.axes for v in operands for part in v.parts)
    met: list[_Met] = []
    for source, value in enumerate(operands):
        for part in value.parts:
            opaque = part.opaque or (weight and zero == "never")
            part = replace(part, labels=part.labels.expand(tuple(shape)), weight=weight, opaque=opaque)
            new = _Met(frozenset([source]), part)
            partners = [i for i, each in enumerate(met) if each.part.axes & part.axes]
            if not part.axes:
                alone = [each.part for each in met if not each.part.axes]
                if spread or value.shape != tuple(shape):
                    ledger.freeze(part.labels, f"one unit is broadcast over others at {where}")
                elif alone:
                    ledger.unite(alone[0].labels, part.labels)
                else:
                    met.append(new)
            elif any(met[i].sources == new.sources for i in partners):
                ledger.freeze(part.labels, f"{TWO_KINDS} at {where}")
            elif partners:
                for i in partners:
                    met[i] = _united(ledger, operands, met[i], new, share, where)
            else:
                met.append(new)
    terms = {i for i, v in enumerate(operands) if not v.nothing} if share else set()
    parts = []
    for each in met:
        part = replace(each.part, opaque=each.part.opaque or not terms <= each.sources, table=table)
        stuck, reason = _stuck(operands, each, where)
        restricted = restrict(ledger, part, stuck, reason)
        positions = part.axes <= stuck and not own and all(operands[i].weight for i in each.sources)
        if not (part.axes and positions):  # a table of positions: from here on the axis is one of the data
            parts.append(restricted)
    neutral = all(v.neutral for v in operands)
    return Value(tuple(shape), tuple(parts), free=neutral, own=own and not neutral)


def _united(ledger: Ledger, operands: Sequence[Value], old: _Met, new: _Met, share: bool, where: str) -> _Met:
    """Units of two operands that meet.

    Args:
        ledger: records the united and frozen labels.
        operands: all of them.
        old, new: what meets.
        share: whether the result is one weight made of two by a sum.
        where: op and source line.
    """
    sources = old.sources | new.sources
    small, large = (new, old) if new.part.axes < old.part.axes else (old, new)
    if small.part.axes < large.part.axes:
        of_weights, of_more = (all(operands[s].weight for s in each.sources) for each in (small, large))
        if of_weights and not of_more:
            ledger.serve(small.part.labels, large.part.labels, small.part.table, where)
            return _Met(sources, large.part)
        if small.part.table and not large.part.table:  # so it cannot be resized with the weights
            ledger.freeze(small.part.labels, f"one table serves several units at {where}")
            reason = f"combined with a table of fixed size at {where}"
            return _Met(sources, restrict(ledger, large.part, small.part.axes, reason))
    a, b = old.part, new.part
    ledger.unite(a.labels, b.labels, f"different units meet in an elementwise op at {where}")
    if share:
        ledger.share(a.labels, b.labels)
    for labels in unmet(squeeze_constant(a.labels), squeeze_constant(b.labels)):
        ledger.freeze(labels, f"added to zero padding at {where}")  # the amount of padding is a number in the code
    opaque, table, repeated = a.opaque or b.opaque, a.table and b.table, max(a.repeated, b.repeated)
    both = replace(b, labels=overlaid(a.labels, b.labels), opaque=opaque, table=table, repeated=repeated)
    return _Met(sources, both)


def _stuck(operands: Sequence[Value], met: _Met, where: str) -> tuple[set[int], str]:
    """Axes of units along which another operand has a fixed size, and the reason why they keep theirs."""
    others = [v for i, v in enumerate(operands) if i not in met.sources]
    stuck = {a for v in others for a in met.part.axes if v.fixed(a)}
    reason = f"combined with a value of fixed size at {where}"
    if any(v.const is not None and v.fixed(a) for v in operands for a in stuck):
        reason += (
            ", which the code computes for their present number, or a buffer of booleans or whole numbers; as a "
            "floating-point buffer it would be resized with them"
        )
    return stuck, reason


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
