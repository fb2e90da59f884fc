"""A group of units, the input columns of a layer, or all branches, together with their gates."""

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
    """

    name: str
    gate: Gate
    traced: Group | Branches | Columns

    @property
    def grows(self) -> bool:
        """Whether units can be added: columns are added with the units that feed them, and branches are never added."""
        return isinstance(self.traced, Group)

    @property
    def fixed(self) -> str:
        """Why units cannot be added to columns or branches, for error messages."""
        if isinstance(self.traced, Branches):
            return "are whole branches, which go but do not come back; attach a model that has more of them"
        return "are input columns, which come with their units: grow those instead"

    @property
    def size(self) -> int:
        """Number of units that physically exist."""
        return self.traced.size

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every (tensor, axis) on which the units lie, producers first."""
        return self.traced.slots

    def __repr__(self) -> str:
        return f"UnitGroup({self.name!r}, size={self.size}, open={int(self.gate.mask.sum())})"
