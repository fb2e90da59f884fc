"""One gate per unit, all gates of a model, and the cost of the model under its gates."""

from npn.gates.gate import CLOSED, OPEN, Gate, Sharpness
from npn.gates.gates import Decision, Gates
from npn.gates.group import UnitGroup
from npn.gates.pricing import Priced, Pricing

__all__ = ["CLOSED", "OPEN", "Decision", "Gate", "Gates", "Priced", "Pricing", "Sharpness", "UnitGroup"]
