"""From resolved labels to groups: units that occupy the same (tensor, axis) slots in the same way."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from npn.tracing.labels import KERNEL
from npn.tracing.walk import Walked

LEFT_OUT = "left out by only= or skip="  # the reason of units that could have gates
NOT_PRODUCED = "no layer of the model produces it"
NOT_READ = "no weight reads it, so a gate would have nothing to close"


@dataclass(frozen=True)
class Slot:
    """Where the units of one group lie along one axis of one parameter or buffer.

    Attributes:
        tensor: name of the parameter or buffer.
        axis: the axis.
        index: int64 (units, entries per unit), positions along the axis.
        reads: whether the tensor reads the units (a closed gate zeroes these entries).
    """

    tensor: str
    axis: int
    index: Tensor
    reads: bool

    @property
    def key(self) -> tuple[str, int]:
        """Tensor and axis."""
        return (self.tensor, self.axis)


@dataclass(frozen=True)
class Group:
    """Units that can be removed and added one by one.

    Attributes:
        name: module that produces the units, from the parameter's name.
        size: number of units.
        slots: every place where they live, producers first.
        attributes: (module path, attribute, entries per unit) of integers that follow the size.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    attributes: tuple[tuple[str, str, int], ...] = ()


@dataclass(frozen=True)
class Columns:
    """Single input columns of one layer, each with a gate of its own.

    The axis counts in `Structure.shapes` at the full length that its producers give it; of that, these are there.

    Attributes:
        name: module that reads them, and ".columns".
        tensor: name of the layer's weight.
        axis: the axis of its inputs.
        kept: int64 (columns,), positions on the full axis of the columns that physically exist, ascending.
    """

    name: str
    tensor: str
    axis: int
    kept: Tensor

    @property
    def key(self) -> tuple[str, int]:
        """Tensor and axis."""
        return (self.tensor, self.axis)

    @property
    def path(self) -> str:
        """Path of the layer."""
        return self.tensor.rpartition(".")[0]

    @property
    def size(self) -> int:
        """Number of columns that physically exist."""
        return len(self.kept)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The one place where they live, as for a group whose every unit has one entry."""
        return (Slot(self.tensor, self.axis, self.kept[:, None], reads=True),)


@dataclass(frozen=True)
class Branches:
    """Submodules whose output is added to something: each has one gate, all of them are one group.

    Attributes:
        name: of the group.
        paths: of the submodules, in the model's order.
        scales: for each, the parameters that its gate multiplies: with these at zero its output is zero.
    """

    name: str
    paths: tuple[str, ...]
    scales: tuple[tuple[str, ...], ...]

    @property
    def size(self) -> int:
        """Number of branches that physically exist."""
        return len(self.paths)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """None: a branch is no entry of an axis, its gate multiplies whole parameters."""
        return ()

    def home(self, name: str) -> int:
        """Number of the branch in which a tensor or module of that name lives, the number of all where none."""
        return next((i for i, path in enumerate(self.paths) if f"{name}.".startswith(f"{path}.")), self.size)


@dataclass(frozen=True)
class Frozen:
    """A dimension that keeps its size, and why.

    Attributes:
        name: `tensor[axis]` of the first place it occupies.
        reason: cause, op and source line.
        slots: all places it occupies.
        size: number of entries along the first.
    """

    name: str
    reason: str
    slots: tuple[tuple[str, int], ...] = ()
    size: int = 0


@dataclass(frozen=True)
class Structure:
    """All that tracing finds out about a model.

    Attributes:
        groups: what can be resized.
        frozen: what cannot, with reasons.
        shapes: shape of every parameter and buffer.
        positions: times that each element of a weight is used in one forward pass, by tensor name.
        fingerprint: ops and float constants of the graph.
        outputs: shapes of the model's outputs.
        columns: input columns with gates of their own.
        branches: whole submodules with gates of their own.
        unreached: parameters that took no part in the forward pass.
        training: the mode in which the model was traced, None for the one that it is in.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    positions: Mapping[str, float] = field(repr=False)
    fingerprint: tuple[str, ...] = field(repr=False)
    outputs: tuple[tuple[int, ...], ...] = field(repr=False)
    columns: tuple[Columns, ...] = ()
    branches: Branches | None = None
    unreached: tuple[str, ...] = ()
    training: bool | None = None

    @property
    def parts(self) -> tuple[Group | Branches | Columns, ...]:
        """Groups, branches, then columns: all that has gates, in the order of the gates."""
        return (*self.groups, *([] if self.branches is None else [self.branches]), *self.columns)

    @property
    def before_columns(self) -> int:
        """Number of gates of groups and branches; those of columns come after them."""
        return sum(group.size for group in self.groups) + (self.branches.size if self.branches is not None else 0)

    def physical(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors as they are in memory, without the columns that are gone."""
        shapes = dict(self.shapes)
        for columns in self.columns:
            shape = shapes[columns.tensor]
            shapes[columns.tensor] = (*shape[: columns.axis], columns.size, *shape[columns.axis + 1 :])
        return shapes


def group_units(
    walked: Walked, shapes: Mapping[str, tuple[int, ...]], outputs: tuple[tuple[int, ...], ...]
) -> Structure:
    """Resolve the ledger of one walk into groups and frozen dimensions."""
    ledger = walked.ledger
    unit, reasons = ledger.resolve()
    slots, starts = ledger.slots, ledger.starts
    order = sorted(range(len(slots)), key=lambda i: (slots[i] not in ledger.produces, slots[i] in ledger.reads, i))
    members = {i: unit[starts[i] : starts[i + 1]] for i in order}
    kinds = _kinds(members, order, ledger.treatment(unit))
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
        useless = _unusable(rest, keys, walked)
        if len(rest) and useless:
            frozen.append(_frozen(keys, useless, starts, where))
        elif len(rest):
            placed = tuple(Slot(*slots[i], _positions(members[i], rest), slots[i] in ledger.reads) for i in where)
            groups.append(Group(_unique(_module(keys[0][0]), taken), len(rest), placed))
    known = dict(shapes), walked.positions, walked.fingerprint, outputs
    return Structure(tuple(groups), tuple(frozen), *known, unreached=walked.unreached)


def _kinds(
    members: Mapping[int, np.ndarray], order: list[int], treatment: np.ndarray
) -> list[tuple[np.ndarray, list[int]]]:
    """Classes of units treated alike, with as many entries in the same slots, each in order of first appearance."""
    rng = np.random.default_rng(0)
    total = len(treatment)
    mark = treatment.copy()
    for i in order:
        code = rng.integers(1, 2**63, dtype=np.uint64)
        found, counts = np.unique(members[i], return_counts=True)
        mark[found] += code * counts.astype(np.uint64)  # wraps: a hash of which slots, how often
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
    """Positions (units, entries) at which each unit stands, in order."""
    rank = np.full(int(max(member.max(), units.max())) + 1, -1, dtype=np.int64)
    rank[units] = np.arange(len(units))
    where = np.flatnonzero(rank[member] >= 0)
    where = where[np.argsort(rank[member[where]], kind="stable")]
    return torch.from_numpy(where.reshape(len(units), -1))


def _unusable(units: np.ndarray, keys: tuple[tuple[str, int], ...], walked: Walked) -> str | None:
    ledger = walked.ledger
    if not any(key in ledger.produces for key in keys):
        return NOT_PRODUCED
    if not any(key in ledger.reads for key in keys):
        return NOT_READ
    if len(units) < 2:
        return "it has one unit only"
    return None


def _frozen(keys: tuple[tuple[str, int], ...], reason: str, starts: list[int], where: list[int]) -> Frozen:
    size = starts[where[0] + 1] - starts[where[0]]
    return Frozen(f"{keys[0][0]}[{keys[0][1]}]", reason, keys, size)


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor


def _unique(name: str, taken: dict[str, int]) -> str:
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}#{taken[name]}"
