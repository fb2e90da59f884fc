"""Units, input columns and branches, and the structure that they form; knows no model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from torch import Tensor

from npn._utils import cpu

Key = tuple[str, int]  # tensor name, axis

LEFT_OUT = "left out by only= or skip="  # reason of units that could have gates
MIXES = "mixes every unit of the axis"  # within the reasons of units that a norm, a mean, ... makes one
NOT_PRODUCED = "no layer of the model produces it"
NOT_READ = "no weight reads it, so a gate would have nothing to close"
READER_GONE = "only a branch that is gone read it"  # of units that may have been removed before


@dataclass(frozen=True)
class Slot:
    """Positions of one group's units along one axis of one parameter or buffer.

    Attributes:
        tensor: name of the parameter or buffer.
        axis: the axis.
        index: int64 (units, entries per unit), positions along the axis.
        reads: whether the tensor reads the units (a closed gate zeroes these entries).
        plain: whether reading is all that is done with these entries; not if the weight also makes the units or is
            combined with them, or if a norm or another function that is not linear is taken of it.
    """

    tensor: str
    axis: int
    index: Tensor
    reads: bool
    plain: bool = True

    @property
    def key(self) -> Key:
        """Tensor name and axis."""
        return (self.tensor, self.axis)


@dataclass(frozen=True)
class Group:
    """Units that can be removed and added one by one.

    Attributes:
        name: module that produces the units, taken from the parameter's name.
        size: number of units.
        slots: every (tensor, axis) on which the units lie, producers first.
        attributes: (module path, attribute, amount per unit) of integers that follow the size; one in a tuple is
            named `shape[0]`.
        multiple: units come and go in sets of so many, and a re-trace says where the others are then.
        normed: whether a norm computes its statistics over the units.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    attributes: tuple[tuple[str, str, int], ...] = ()
    multiple: int = 1
    normed: bool = False


@dataclass(frozen=True)
class Columns:
    """Single input columns of one layer, each with its own gate.

    `Structure.shapes` gives this axis the full length that its producers have; `kept` lists the columns still present.

    Attributes:
        name: module that reads the columns, followed by ".columns".
        tensor: name of the layer's weight.
        axis: input axis of the weight.
        kept: int64 (columns,), positions on the full axis of the columns that physically exist, ascending.
    """

    name: str
    tensor: str
    axis: int
    kept: Tensor

    @property
    def key(self) -> Key:
        """Tensor name and axis."""
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
        """The single slot of the columns, in the form of a group whose units have one entry each."""
        return (Slot(self.tensor, self.axis, self.kept[:, None], reads=True),)


@dataclass(frozen=True)
class Branches:
    """Submodules whose output is added to another tensor; each has one gate, and together they form one group.

    Attributes:
        name: name of the group.
        paths: paths of the submodules, in the model's order.
        scales: for each submodule, the parameters that its gate multiplies; its output is zero when they are zero.
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
        """Empty: a branch is not an entry of an axis, its gate multiplies whole parameters."""
        return ()

    def home(self, name: str) -> int:
        """Find the branch that contains a tensor or module.

        Args:
            name: name of the tensor or module.

        Returns:
            Number of the branch; the number of branches if none contains it.
        """
        return next((i for i, path in enumerate(self.paths) if f"{name}.".startswith(f"{path}.")), self.size)


@dataclass(frozen=True)
class Product:
    """A product of two values, as queries and keys in attention, or of another kind that no single weight accounts for.

    It takes `macs` multiply-adds, times `rest + each * open units` for every group of units that lie in its factors.

    Attributes:
        macs: multiply-adds when it was traced.
        units: group name -> (rest, each); their factor is 1 at the traced size.
        tensor: name of the weight that has last been used for one of the factors: the product is where that weight is.
    """

    macs: float
    units: Mapping[str, tuple[float, float]]
    tensor: str | None = None


@dataclass(frozen=True)
class Norm:
    """A call of a norm, or of another reduction, that computes its statistics over the open units.

    Attributes:
        path: of the module in whose `forward` it is.
        number: of calls of this kind before it in there.
        name: of the function.
        axis: of the function's argument along which the units lie, counted from the last one: -1, -2, ...
        tensor, along: a tensor and its axis along which the units lie in the same order.
    """

    path: str
    number: int
    name: str
    axis: int
    tensor: str
    along: int

    @property
    def key(self) -> Key:
        """The tensor and its axis."""
        return (self.tensor, self.along)


@dataclass(frozen=True)
class Frozen:
    """A dimension that keeps its size, with the reason.

    Attributes:
        name: `tensor[axis]` of the first slot it occupies.
        reason: cause, op and source line.
        slots: (tensor name, axis) of every slot it occupies.
        size: number of entries along the first slot.
    """

    name: str
    reason: str
    slots: tuple[tuple[str, int], ...] = ()
    size: int = 0


class Decisions(NamedTuple):
    """Lines at which a forward pass decides by values, in their order.

    Attributes:
        by_inputs: by values that follow from its inputs.
        by_buffers: by values that follow from buffers, and not from inputs.
        by_others: by values of which half are assumed to hold, where it picks rows by some.
        held: the same, where it picks none: another path may be taken where they do not hold.
        leaving: at which values leave it that change nothing in it.
    """

    by_inputs: tuple[str, ...] = ()
    by_buffers: tuple[str, ...] = ()
    by_others: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    leaving: tuple[str, ...] = ()


@dataclass(frozen=True)
class Structure:
    """The result of tracing a model.

    Attributes:
        groups: units that can be resized.
        frozen: dimensions that cannot be resized, with reasons.
        shapes: name of each parameter and buffer -> shape.
        positions: name of each weight -> how often each of its elements is used in one forward pass.
        fingerprint: ops and float constants of the graph.
        outputs: shapes of the model's outputs.
        columns: input columns with their own gates.
        branches: submodules with one gate each; None if there are none.
        unreached: names of the parameters that took no part in the forward pass.
        numbers: integers above 1 in the shapes that the code asks for.
        training: mode in which the model was traced; None for the mode in which it was given.
        modes_differ: whether train and eval mode compute something else, so that both were traced.
        unstructured: names of the parameters with one gate per weight.
        products: products that no single weight accounts for; they cost multiply-adds, too.
        norms: calls that compute statistics over units.
        streams: whether the model was traced so that such units can be resized.
        decisions: lines at which the forward pass decides by values.
        couplings: (tensor name, axis) -> such a place with which it is coupled, or itself, and the number of its equal
            chunks; units at the same place of all these chunks are one unit.
        bare: path of a module that has no tensors and keeps numbers -> places of the units that go into it; of a norm,
            those along which they lie in the order of its channels.
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
    numbers: frozenset[int] = field(default=frozenset(), repr=False)
    training: bool | None = None
    modes_differ: bool = False
    unstructured: tuple[str, ...] = ()
    products: tuple[Product, ...] = field(default=(), repr=False, compare=False)
    norms: tuple[Norm, ...] = field(default=(), repr=False)
    streams: bool = False
    decisions: Decisions = field(default=Decisions(), repr=False, compare=False)
    couplings: Mapping[Key, tuple[Key, int]] = field(default_factory=dict, repr=False)
    bare: Mapping[str, tuple[Key, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def resizable(self) -> set[tuple[str, int]]:
        """Tensor name and axis of everything on which units of groups lie."""
        return {slot.key for group in self.groups for slot in group.slots}

    @property
    def parts(self) -> tuple[Group | Branches | Columns, ...]:
        """Groups, then branches, then columns: everything but single weights that has gates, in the gates' order."""
        return (*self.groups, *([] if self.branches is None else [self.branches]), *self.columns)

    @property
    def gates_before_columns(self) -> int:
        """Number of gates of groups and branches; the gates of columns follow them."""
        return self.units - sum(columns.size for columns in self.columns)

    @property
    def firsts(self) -> list[int]:
        """Number of the first gate of each of the `parts`."""
        return [0, *accumulate(part.size for part in self.parts)][:-1]

    @property
    def units(self) -> int:
        """Number of gates of groups, branches and columns; the gates of single weights follow them."""
        return sum(part.size for part in self.parts)

    def physical(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors in memory, without removed columns."""
        shapes = dict(self.shapes)
        for columns in self.columns:
            shape = shapes[columns.tensor]
            shapes[columns.tensor] = (*shape[: columns.axis], columns.size, *shape[columns.axis + 1 :])
        return shapes


def gate_of_entries(
    structure: Structure, wanted: Callable[[Slot], bool], none: int | None = None
) -> dict[tuple[str, int], Tensor]:
    """The gate of every entry along some axes of the model's tensors.

    Args:
        structure: of the model.
        wanted: chooses slots of its groups.
        none: the number where there is no gate; None for `structure.units`.

    Returns:
        (tensor name, axis) -> int64 (length of the axis,), number of the gate.
    """
    found: dict[tuple[str, int], Tensor] = {}
    none = structure.units if none is None else none
    for group, start in zip(structure.groups, structure.firsts, strict=False):
        numbers = cpu.arange(start, start + group.size)[:, None]
        for slot in filter(wanted, group.slots):
            if slot.key not in found:
                found[slot.key] = cpu.full((structure.shapes[slot.tensor][slot.axis],), none)
            found[slot.key][slot.index] = numbers
    return found
