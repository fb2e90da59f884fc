"""Which units the norms of a graph compute their statistics over, and along which parameter these lie."""

from collections.abc import Sequence

import numpy as np

from npn.structure import Norm
from npn.tracing.labels import Ledger, Normed, squeeze_constant, varying
from npn.tracing.labels.joining import edge

_ELSEWHERE = "no parameter lies along the axis that is normalised"


def settle(ledger: Ledger) -> tuple[np.ndarray, dict[int, str]]:
    """`Ledger.resolve`, with the norms that cannot be computed over some of their units united or frozen.

    A norm is left alone whose every row is one unit, as that of queries in one attention head, and followed if its
    units lie along one axis. Else its units become one.

    Args:
        ledger: changed in place.

    Returns:
        As of `Ledger.resolve`.
    """
    while True:
        unit, reasons = ledger.resolve()
        bad = [
            normed for normed in ledger.normed if not _whole(normed, unit) and varying(normed.labels) != {normed.axis}
        ]
        if not bad:
            return unit, reasons
        for normed in bad:
            labels = squeeze_constant(normed.labels)
            if varying(normed.labels) <= set(normed.axes):
                ledger.freeze(normed.labels, normed.reason)
            ledger.join(*edge(labels, labels.amax(list(normed.axes), keepdim=True)))
            ledger.normed.remove(normed)


def _whole(normed: Normed, unit: np.ndarray) -> bool:
    """Whether the units do not differ along the axes that are normalised."""
    found = unit[squeeze_constant(normed.labels).numpy()]
    return bool((found == found.max(axis=normed.axes, keepdims=True)).all())


def place(ledger: Ledger, unit: np.ndarray, reasons: dict[int, str], members: Sequence[np.ndarray]) -> tuple[Norm, ...]:
    """Where the units of each norm lie.

    Args:
        ledger: with the norms.
        unit: int64 (labels,), unit of every label.
        reasons: of frozen units; changed in place where no parameter says where a norm's units are.
        members: for each slot of the ledger, the units along it.

    Returns:
        One entry for each norm over units that are not frozen.
    """
    placed: dict[tuple[str, int], Norm] = {}
    for normed in ledger.normed:
        if _whole(normed, unit):
            continue
        own = unit[normed.labels.movedim(normed.axis, -1).reshape(-1, normed.labels.shape[normed.axis])[0].numpy()]
        fits = [i for i, units in enumerate(members) if len(units) == len(own) and ((own == units) | (own == 0)).all()]
        near = f"{normed.call.path}."  # a parameter of the norm itself goes where the norm goes
        fits.sort(key=lambda i: (not ledger.slots[i][0].startswith(near), ledger.slots[i][0].count(".")))
        slot = ledger.slots[fits[0]] if fits else None
        call, axis = normed.call, normed.axis - normed.labels.dim()
        norm = None if slot is None else Norm(call.path, call.number, call.name, axis, *slot)
        if norm is None or placed.setdefault((call.path, call.number), norm) != norm:
            for one in own[own > 0].tolist():
                reasons.setdefault(one, f"{normed.reason}: {_ELSEWHERE}")
    return tuple(placed.values())
