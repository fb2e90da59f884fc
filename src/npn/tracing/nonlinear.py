"""Elementwise functions of weights that are not linear: their masks are exact, a gradient through the mask is not."""

from collections.abc import Sequence

from npn.tracing.labels import Ledger
from npn.tracing.values import Value

NONLINEAR = frozenset((  # elementwise and not linear, but zero at zero, with a finite slope there
    "abs", "relu", "tanh", "sin", "sinh", "asin", "atan", "erf", "sign", "round", "trunc", "floor", "ceil",
    "fake_quantize_per_channel_affine_cachemask", "fake_quantize_per_tensor_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
))  # fmt: skip


def mark_nonlinear(ledger: Ledger, name: str, values: Sequence[Value], nonlinear: bool) -> None:
    """Record weights in which an elementwise op is not linear, and weights that it combines with data.

    Of a product of weights, those that are in both factors count.

    Args:
        ledger: records them.
        name: of the op.
        values: its operands.
        nonlinear: whether it is one that is zero at zero and not linear.
    """
    slots = [set[tuple[str, int]]() for _ in values]
    for value, own in zip(values, slots, strict=True):
        for part in value.parts if value.weight else ():
            ledger.mark(part.labels, own)
    if nonlinear or any(value.parts and not value.weight for value in values):
        ledger.nonlinear.update(*slots)
    elif name == "mul" and len(slots) == 2:
        ledger.nonlinear.update(slots[0] & slots[1])
