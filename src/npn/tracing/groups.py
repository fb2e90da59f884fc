"""Turn resolved labels into groups: units that occupy the same (tensor, axis) slots in the same way."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from npn.structure import NOT_PRODUCED, NOT_READ, Frozen, Group, Slot, Structure
from npn.tracing.labels import KERNEL
from npn.tracing.walk import Walked


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
    unit, reasons = ledger.resolve()
    slots, starts = ledger.slots, ledger.starts
    order = sorted(range(len(slots)), key=lambda i: (slots[i] not in ledger.produces, slots[i] in ledger.reads, i))
    members = {i: unit[starts[i] : starts[i + 1]] for i in order}
    kinds = _kinds(members, order, ledger.treatment(unit))
    multiples = ledger.multiples(unit)
    frozen_units = np.array(sorted(reasons), dtype=np.int64)
    groups: list[Group] = []
    frozen: list[Frozen] = []
    taken: dict[str, int] = {}
    for units, where in kinds:
        keys = tuple(slots[i] for i in where)
        blocked = np.isin(units, frozen_units)
        for reason in dict.fromkeys(reasons[int(u)] for u in units[blocked]):
            if reason == KERNEL:
                continue
            frozen.append(_frozen(keys, reason, starts, where))
        rest = units[~blocked]
        useless = _unusable(rest, keys, walked, members[where[0]], unit) if len(rest) else None
        if useless:
            frozen.append(_frozen(keys, useless, starts, where))
        elif len(rest):
            placed = tuple(Slot(*slots[i], _positions(members[i], rest), slots[i] in ledger.reads) for i in where)
            multiple = int(np.lcm.reduce(multiples[rest]))
            groups.append(Group(_unique(_module(keys[0][0]), taken), len(rest), placed, multiple=multiple))
    known = dict(shapes), walked.positions, walked.fingerprint, outputs
    return Structure(tuple(groups), tuple(frozen), *known, unreached=walked.unreached, numbers=walked.numbers)


def _kinds(
    members: Mapping[int, np.ndarray], order: list[int], treatment: np.ndarray
) -> list[tuple[np.ndarray, list[int]]]:
    """Sort units into classes with the same ops and as many entries in the same slots; in order of appearance."""
    rng = np.random.default_rng(0)
    total = len(treatment)
    mark = treatment.copy()
    for i in order:
        code = rng.integers(1, 2**63, dtype=np.uint64)
        found, counts = np.unique(members[i], return_counts=True)
        mark[found] += code * counts.astype(np.uint64)  # overflow wraps: a hash of slots and entry counts
    classes: dict[int, tuple[list[np.ndarray], list[int]]] = {}
    seen = np.zeros(total, dtype=bool)
    for i in order:
        found, first = np.unique(members[i], return_index=True)
        found = found[np.argsort(first)]
        for code in dict.fromkeys(mark[found].tolist()):
            of_kind = found[mark[found] == np.uint64(code)]
            entry = classes.setdefault(code, ([], []))
            entry[1].append(i)
            entry[0].append(of_kind[~seen[of_kind]])
        seen[found] = True
    return [(np.concatenate(units), where) for units, where in classes.values()]


def _positions(member: np.ndarray, units: np.ndarray) -> Tensor:
    """Positions (units, entries) of each unit along an axis, ascending."""
    rank = np.full(int(max(member.max(), units.max())) + 1, -1, dtype=np.int64)
    rank[units] = np.arange(len(units))
    where = np.flatnonzero(rank[member] >= 0)
    where = where[np.argsort(rank[member[where]], kind="stable")]
    return torch.from_numpy(where.reshape(len(units), -1))


def _unusable(
    units: np.ndarray, keys: tuple[tuple[str, int], ...], walked: Walked, member: np.ndarray, unit: np.ndarray
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


def _frozen(keys: tuple[tuple[str, int], ...], reason: str, starts: list[int], where: list[int]) -> Frozen:
    """A frozen dimension at these slots."""
    size = starts[where[0] + 1] - starts[where[0]]
    return Frozen(f"{keys[0][0]}[{keys[0][1]}]", reason, keys, size)


def _module(tensor: str) -> str:
    """Path of the module that owns a tensor; the tensor's own name at the top level."""
    return tensor.rpartition(".")[0] or tensor


def _unique(name: str, taken: dict[str, int]) -> str:
    """A name with a number appended if it is taken."""
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}#{taken[name]}"
