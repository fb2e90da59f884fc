"""Rules for products of matrices."""

import math
from dataclasses import replace

from npn.tracing.labels import Value, contract, merge, restrict
from npn.tracing.rules.call import Call, Rules, unknown

RULES = Rules()
ALONE = ("mm", "bmm", "mv", "dot", "vdot")
WITH_BIAS = ("addmm", "baddbmm", "addmv", "addbmm", "_sparse_addmm")  # which comes before the factors


@RULES.of(*ALONE)
def product(call: Call) -> Value:
    """Matrix product of two values."""
    return _product(call, call.args[0], call.args[1])


@RULES.of(*WITH_BIAS)
def add_product(call: Call) -> Value:
    """Bias plus matrix product."""
    out = _product(call, call.args[1], call.args[2])
    return merge(call.ledger, [out, call.args[0]], call.shapes[0], call.where)


def _product(call: Call, a: Value, b: Value) -> Value:
    first = _first_axes(a, b)
    if first is not None:  # torch has merged them, and with them an axis of units and one along which all is the same
        return _product(call, *(_with_first(v, first) for v in (a, b))).reshaped(call.shapes[0])
    rank_a, rank_b = len(a.shape), len(b.shape)
    if rank_a == rank_b == 1:
        return contract(call.ledger, a, b, [0], call.where)
    if rank_b == 1:
        return contract(call.ledger, a, b.viewed((1, *b.shape)), [1], call.where)
    wide = a.viewed((*a.shape, 1))
    other = b.viewed((*b.shape[:-2], 1, *b.shape[-2:]))
    return contract(call.ledger, wide, other, [rank_a - 1], call.where)


def _first_axes(a: Value, b: Value) -> tuple[int, ...] | None:
    """The axes that both operands of a product had before they were merged into the first one; None without any."""
    if len(a.shape) != 3 or len(b.shape) != 3:
        return None
    found = {v.unmerged.shape[:-2] for v in (a, b) if v.unmerged is not None and v.unmerged.shape[-2:] == v.shape[-2:]}
    first = found.pop() if len(found) == 1 else ()
    return first if len(first) > 1 and math.prod(first) == a.shape[0] == b.shape[0] else None


def _with_first(value: Value, first: tuple[int, ...]) -> Value:
    before = value.unmerged
    return before if before is not None and before.shape[:-2] == first else value.reshaped((*first, *value.shape[1:]))


@RULES.of("_grouped_mm", "grouped_mm_fallback")  # the latter is that of transformers
def grouped_product(call: Call) -> Value:
    """Each row meets the matrix of the expert that it is sent to: a unit is one row or column of every expert."""
    a, b, ends = call.args[0], call.args[1], call.arg(2, "offs")
    if (len(a.shape), len(b.shape)) != (2, 3) or not isinstance(ends, Value) or call.arg(3, "bias") is not None:
        several: Value = unknown(call, f"no rule for this kind of {call.name}, called at {call.where}")
        return several
    sent = f"the code routes rows to a fixed number of matrices at {call.where}"
    for part in ends.parts:
        call.ledger.freeze(part.labels, sent)
    rows, experts = (tuple(restrict(call.ledger, p, [0], sent) for p in v.parts) for v in (a, b))
    one = tuple(replace(p, labels=p.labels.narrow(0, 0, 1)) for p in experts if p.axes != {0})
    _align(call, a, 1)
    _align(call, b, 1)
    _align(call, b, 2)
    data = replace(a, parts=rows).viewed((*a.shape, 1))
    return contract(call.ledger, data, Value((1, *b.shape[1:]), one), [1], call.where)


def _align(call: Call, value: Value, axis: int) -> None:
    """PyTorch's kernel takes strides of 16 bytes; where they are others, another kernel is in use."""
    multiple = 16 // call.node.meta["val"].dtype.itemsize
    for part in value.parts:
        if axis in part.axes and value.shape[axis] % multiple == 0:
            call.ledger.align(part.labels, multiple)
