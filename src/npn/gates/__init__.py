"""One gate per unit or weight, all gates of a model, and the cost of the model under its gates."""

from npn.gates.decision import Decision
from npn.gates.gate import CLOSED, OPEN, Gate, Sharpness
from npn.gates.gates import Gates
from npn.gates.group import UnitGroup
from npn.gates.pricing import Costs, Pricing
from npn.gates.weight_gates import WeightGates

__all__ = [
    "CLOSED",
    "OPEN",
    "Costs",
    "Decision",
    "Gate",
    "Gates",
    "Pricing",
    "Sharpness",
    "UnitGroup",
    "WeightGates",
]
