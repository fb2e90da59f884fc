"""Plasticity for PyTorch models: units that do not pay for themselves go, new ones come where they help."""

from npn import distributed, functional
from npn.attach import attach
from npn.checkpoint import load, read_extra, save
from npn.count import count_macs, count_params
from npn.errors import PlasticityError
from npn.growth import Growth
from npn.penalty import Budget, Penalty
from npn.plasticity import Plasticity
from npn.resizing import ResizeReport
from npn.schedule import Plateau, Schedule, Stage

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Growth",
    "Penalty",
    "Plasticity",
    "PlasticityError",
    "Plateau",
    "ResizeReport",
    "Schedule",
    "Stage",
    "attach",
    "count_macs",
    "count_params",
    "distributed",
    "functional",
    "load",
    "read_extra",
    "save",
]
