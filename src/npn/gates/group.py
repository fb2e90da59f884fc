"""A group of units, the input columns of a layer, or all branches, together with their gates."""

from collections.abc import Sequence
from dataclasses import dataclass

from npn.gates.gate import Gate
from npn.structure import Branches, Columns, Group, Slot


@dataclass(eq=False)
class UnitGroup:
    """Units that are removed and added together with all their entries; or a layer's input columns; or all branches.

    Attributes:
        name: module that produces the units; for columns the module that reads them, followed by ".columns"; for
            branches "branches".
        gate: the gates.
        traced: positions of the units in the model.

    Example:
        >>> import npn, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> group = npn.attach(model, torch.zeros(1, 4)).groups[0]
        >>> group, [(slot.tensor, slot.axis, slot.reads) for slot in group.slots]
        (UnitGroup('0', size=8, open=8), [('0.weight', 0, False), ('0.bias', 0, False), ('2.weight', 1, True)])
    """

    name: str
    gate: Gate
    traced: Group | Branches | Columns

    @property
    def grows(self) -> bool:
        """Whether units can be added: columns are added with the units that feed them, and branches are never added.

        A new unit under a norm would change the statistics of all others.
        """
        return isinstance(self.traced, Group) and not self.traced.normed

    @property
    def fixed(self) -> str:
        """Why units cannot be added to columns, branches or streams, for error messages."""
        if isinstance(self.traced, Group):
            return "lies under a norm, whose result a new unit would change for all others; start wider, or grow others"
        if isinstance(self.traced, Branches):
            return "are whole branches, which go but do not come back; attach a model that has more of them"
        return "are input columns, which come with their units: grow those instead"

    @property
    def size(self) -> int:
        """Number of units that physically exist."""
        return self.traced.size

    @property
    def multiple(self) -> int:
        """Units come and go in sets of so many: 1, but for code that reshapes by a fixed number."""
        return self.traced.multiple if isinstance(self.traced, Group) else 1

    def in_sets(self, units: Sequence[int]) -> list[int]:
        """As many whole sets of these units as there are, the least likely units first; ascending.

        Args:
            units: numbers of the units that should go.
        """
        count = len(units) // self.multiple * self.multiple
        if count == len(units):
            return sorted(units)
        probability = self.gate.keep_probability().detach()
        return sorted(sorted(units, key=lambda unit: float(probability[unit]))[:count])

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every (tensor, axis) on which the units lie, producers first."""
        return self.traced.slots

    def __repr__(self) -> str:
        return f"UnitGroup({self.name!r}, size={self.size}, open={int(self.gate.mask.sum())})"
