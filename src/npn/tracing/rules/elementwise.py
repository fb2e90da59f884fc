"""Elementwise ops: units that meet are one; of weights, the masked function has to be the function of masked ones."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from npn.structure import Key
from npn.tracing.labels import Ledger, Value, Zero, merge, with_repeats
from npn.tracing.rules.call import Call

NONLINEAR = frozenset((  # elementwise and not linear, but zero at zero, with a finite slope there
    "abs", "relu", "tanh", "sin", "sinh", "asin", "atan", "erf", "sign", "round", "trunc", "floor", "ceil",
    "fake_quantize_per_channel_affine_cachemask", "fake_quantize_per_tensor_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
))  # fmt: skip
# zero in, zero out: a weight made by these is masked by masking its parameters
ZERO_PRESERVING = NONLINEAR | {"mul", "neg", "clone", "_to_copy", "detach", "alias", "lift_fresh_copy"}


def pointwise(call: Call) -> Any:
    """Elementwise op: unite what meets. In a quotient only the numerator may be a masked weight."""
    values = [v for v in [*call.args, *call.kwargs.values()] if isinstance(v, Value)]
    power = call.name == "pow" and isinstance(call.args[1], (int, float)) and call.args[1] >= 1
    mark_nonlinear(call.ledger, call.name, values, nonlinear=power or call.name in NONLINEAR)
    zero: Zero = "any" if power or call.name in ZERO_PRESERVING else "never"
    if call.name == "div":
        zero = "any"
        for part in (p for divisor in values[1:] if divisor.weight for p in divisor.parts):
            call.ledger.divide(part.labels, call.where)
    elif call.name in ("add", "sub", "where"):
        terms = values[1:] if call.name == "where" else values
        zero = "all" if len(terms) == 2 else "never"
        if call.name == "where" and len(terms) == 2 and not values[0].neutral:
            zero = "never"
        values = [*terms, *values[: len(values) - len(terms)]]
    results = [with_repeats(merge(call.ledger, values, shape, call.where, zero), values) for shape in call.shapes]
    if call.name == "mul" and len(values) == 2:
        results = [replace(result, factors=_data_and_weight(*values)) for result in results]
    return results[0] if len(results) == 1 else results


def _data_and_weight(a: Value, b: Value) -> tuple[Value, Value] | None:
    """The operands of a product if one is data and the other a weight; None if not."""
    data, weight = (b, a) if a.weight else (a, b)
    return (data, weight) if weight.weight and data.parts and not data.weight and not weight.repeated else None


def mark_nonlinear(ledger: Ledger, name: str, values: Sequence[Value], nonlinear: bool) -> None:
    """Record weights in which an elementwise op is not linear, and weights that it combines with data.

    Of a product of weights, those that are in both factors count.

    Args:
        ledger: records them.
        name: of the op.
        values: its operands.
        nonlinear: whether it is one that is zero at zero and not linear.
    """
    slots = [set[Key]() for _ in values]
    for value, own in zip(values, slots, strict=True):
        for part in value.parts if value.weight else ():
            ledger.mark(part.labels, own)
    if nonlinear or any(value.parts and not value.weight for value in values):
        ledger.nonlinear.update(*slots)
    elif name == "mul" and len(slots) == 2:
        ledger.nonlinear.update(slots[0] & slots[1])
