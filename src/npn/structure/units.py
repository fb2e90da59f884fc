"""What units, input columns and branches are, and the structure that they make up. Knows no model."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

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
