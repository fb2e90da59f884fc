"""The structure of a model: units, input columns, branches, what keeps its size, and what was seen of its code."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from torch import Tensor

from npn._utils import cpu
from npn.structure.units import Branches, Columns, Group, Key, Slot

Couplings = Mapping[Key, tuple[Key, int]]  # see `Structure.couplings`


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

    Example:
        >>> import npn, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> frozen = npn.attach(model, torch.zeros(1, 4)).frozen[0]
        >>> frozen.name, frozen.size, frozen.reason
        ('2.weight[0]', 2, "it is the model's output")
    """

    name: str
    reason: str
    slots: tuple[Key, ...] = ()
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
    couplings: Couplings = field(default_factory=dict, repr=False)
    bare: Mapping[str, tuple[Key, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def resizable(self) -> set[Key]:
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


def gate_of_entries(structure: Structure, wanted: Callable[[Slot], bool], none: int | None = None) -> dict[Key, Tensor]:
    """The gate of every entry along some axes of the model's tensors.

    Args:
        structure: of the model.
        wanted: chooses slots of its groups.
        none: the number where there is no gate; None for `structure.units`.

    Returns:
        (tensor name, axis) -> int64 (length of the axis,), number of the gate.
    """
    found: dict[Key, Tensor] = {}
    none = structure.units if none is None else none
    for group, start in zip(structure.groups, structure.firsts, strict=False):
        numbers = cpu.arange(start, start + group.size)[:, None]
        for slot in filter(wanted, group.slots):
            if slot.key not in found:
                found[slot.key] = cpu.full((structure.shapes[slot.tensor][slot.axis],), none)
            found[slot.key][slot.index] = numbers
    return found
