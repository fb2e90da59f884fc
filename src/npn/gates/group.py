"""A group of units, or a layer's input columns, or all branches, with their gates."""

from dataclasses import dataclass

from npn.gates.gate import Gate
from npn.structure import Branches, Columns, Group, Slot


@dataclass(eq=False)
class UnitGroup:
    """Units that come and go together with all that belongs to them; or one layer's input columns; or whole branches.

    Attributes:
        name: module that produces the units; module that reads the columns, and ".columns"; "branches".
        gate: their gates.
        traced: where the units live.
    """

    name: str
    gate: Gate
    traced: Group | Branches | Columns

    @property
    def grows(self) -> bool:
        """Whether units can be added; columns come with the units that feed them, and branches only go."""
        return isinstance(self.traced, Group)

    @property
    def fixed(self) -> str:
        """Why units cannot be added to what does not grow."""
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
