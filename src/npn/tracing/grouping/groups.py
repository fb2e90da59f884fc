"""Turn resolved labels into groups: units that occupy the same (tensor, axis) slots in the same way."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npn.structure import NOT_PRODUCED, NOT_READ, Frozen, Group, Key, Product, Slot, Structure, frozen_axis
from npn.tracing.capture.bare import places_of
from npn.tracing.grouping.multiply_adds import LabelledProduct
from npn.tracing.grouping.norms import place, settle
from npn.tracing.grouping.walk import Walked
from npn.tracing.labels import KERNEL


def group_units(
    walked: Walked, shapes: Mapping[str, tuple[int, ...]], outputs: tuple[tuple[int, ...], ...]
) -> Structure:
    """Resolve the labels of one trace into groups and frozen dimensions.

    Args:
        walked: labels and positions from the walk over the graph.
        shapes: tensor name -> shape.
        outputs: shapes of the model's outputs.

    Returns:
        The structure.
    """
    ledger = walked.ledger
    unit, reasons = settle(ledger)
    slots, starts = ledger.slots, ledger.starts
    order = sorted(range(len(slots)), key=lambda i: (slots[i] not in ledger.produces, slots[i] in ledger.reads, i))
    members = {i: unit[starts[i] : starts[i + 1]] for i in order}
    norms = place(ledger, unit, reasons, [members[i] for i in range(len(slots))])
    normed = {norm.key for norm in norms}
    kinds = _kinds(members, order, ledger.treatment(unit))
    multiples = ledger.multiples(unit)
    frozen_units = np.array(sorted(reasons), dtype=np.int64)
    groups: list[Group] = []
    frozen: list[Frozen] = []
    taken: dict[str, int] = {}
    rank = np.full(starts[-1], -1, dtype=np.int64)
    group_of = np.full(starts[-1], -1, dtype=np.int64)
    for units, where in kinds:
        keys = tuple(slots[i] for i in where)
        blocked = np.isin(units, frozen_units)
        for reason in dict.fromkeys(reasons[int(u)] for u in units[blocked]):
            if reason == KERNEL:
                continue
            frozen.append(frozen_axis(keys, reason, starts[where[0] + 1] - starts[where[0]]))
        rest = units[~blocked]
        useless = _unusable(rest, keys, walked, members[where[0]], unit) if len(rest) else None
        if useless:
            frozen.append(frozen_axis(keys, useless, starts[where[0] + 1] - starts[where[0]]))
        elif len(rest):
            rank[rest] = np.arange(len(rest))
            placed = tuple(
                Slot(
                    *key,
                    _positions(rank[members[i]]),
                    key in ledger.reads,
                    key not in ledger.produces | ledger.nonlinear,
                )
                for i, key in zip(where, keys, strict=True)
            )
            rank[rest] = -1
            multiple = int(np.lcm.reduce(multiples[rest]))
            group_of[rest] = len(groups)
            name, over = _unique(_module(keys[0][0]), taken), bool(normed & set(keys))
            groups.append(Group(name, len(rest), placed, multiple=multiple, normed=over))
    known = dict(shapes), walked.multiply_adds.positions, walked.fingerprint, outputs
    return Structure(
        tuple(groups),
        tuple(frozen),
        *known,
        unreached=walked.unreached,
        numbers=walked.numbers,
        norms=norms,
        bare=places_of(walked.probes, unit, slots, members),
        products=_products(walked.multiply_adds.products, group_of[unit], groups),
    )


def _products(found: Sequence[LabelledProduct], group_of: np.ndarray, groups: Sequence[Group]) -> tuple[Product, ...]:
    """Products after the same weight, whose factors have units of the same groups, become one."""
    macs: dict[tuple[Any, ...], float] = {}
    for product in found:
        key = (product.tensor, *sorted(_sharing(product.labels, group_of, groups).items()))
        macs[key] = macs.get(key, 0.0) + product.macs
    return tuple(Product(count, dict(units), tensor) for (tensor, *units), count in macs.items())


def _sharing(labels: Sequence[Tensor], group_of: np.ndarray, groups: Sequence[Group]) -> dict[str, tuple[float, float]]:
    """Which part of a product each group's units take up: `Product.units`.

    Args:
        labels: of its factors.
        group_of: int64 (labels,), number of the group of every label, -1 for none.
        groups: all groups.
    """
    shares: dict[str, tuple[float, float]] = {}
    for part in labels:
        found = group_of[part.numpy().reshape(-1)]
        for number, count in zip(*np.unique(found[found >= 0], return_counts=True), strict=True):
            share, group = float(count) / len(found), groups[number]
            before = shares.get(group.name, (0.0, 0.0))[1]
            each = max(share / group.size, before)  # both factors may have the same units
            shares[group.name] = (1.0 - each * group.size, each)
    return shares


def _kinds(
    members: Mapping[int, np.ndarray], order: list[int], treatment: np.ndarray
) -> list[tuple[np.ndarray, list[int]]]:
    """Sort units into classes with the same ops and as many entries in the same slots; in order of appearance."""
    rng = np.random.default_rng(0)
    total = len(treatment)
    mark = treatment.copy()
    for i in order:
        code = rng.integers(1, 2**63, dtype=np.uint64)
        np.add.at(mark, members[i], code)  # overflow wraps: a hash of slots and entry counts
    classes: dict[int, tuple[list[np.ndarray], list[int]]] = {}
    seen = np.zeros(total, dtype=bool)
    first = np.zeros(total, dtype=np.int64)
    for i in order:
        along = np.arange(len(members[i]))
        first[members[i][::-1]] = along[::-1]  # of several entries the last that is written counts
        found = members[i][first[members[i]] == along]  # each once, in order of appearance
        for code in dict.fromkeys(mark[found].tolist()):
            of_kind = found[mark[found] == np.uint64(code)]
            entry = classes.setdefault(code, ([], []))
            entry[1].append(i)
            entry[0].append(of_kind[~seen[of_kind]])
        seen[found] = True
    return [(np.concatenate(units), where) for units, where in classes.values()]


def _positions(rank: np.ndarray) -> Tensor:
    """Positions (units, entries) of each unit along an axis, ascending, from the unit at each position, -1 for none."""
    where = np.flatnonzero(rank >= 0)
    where = where[np.argsort(rank[where], kind="stable")]
    return torch.from_numpy(where.reshape(int(rank.max()) + 1, -1))


def _unusable(
    units: np.ndarray, keys: tuple[Key, ...], walked: Walked, member: np.ndarray, unit: np.ndarray
) -> str | None:
    """Why units that are not frozen cannot have gates either, or None.

    Args:
        units: of one kind.
        keys: slots that they occupy.
        walked: roles of the slots.
        member: units along the first of them.
        unit: int64 (labels,), unit of every label.
    """
    ledger = walked.ledger
    if not any(key in ledger.produces for key in keys):
        return NOT_PRODUCED
    if not any(key in ledger.reads for key in keys):
        return NOT_READ
    if len(units) < 2:
        entries = int((member == units[0]).sum())
        if entries > 1:
            cause = ledger.coupling(unit, int(units[0]))
            coupled = f"the code couples its {entries} channels into one unit, which has to stay"
            return f"{coupled}: {cause}" if cause else coupled
        return "it has one unit only"
    return None


def _module(tensor: str) -> str:
    """Path of the module that owns a tensor; the tensor's own name at the top level."""
    return tensor.rpartition(".")[0] or tensor


def _unique(name: str, taken: dict[str, int]) -> str:
    """A name with a number appended if it is taken."""
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}#{taken[name]}"
