"""Plasticity for PyTorch models: remove units that do not pay for themselves, add units where they help."""

import importlib
from typing import TYPE_CHECKING

from npn import distributed, functional, methods
from npn._attach import attach
from npn._importance import fit_to_budget, importance, start_from
from npn._masked import masked
from npn._prune import prune
from npn.budget import Budget
from npn.checkpoint import load, read_extra, save, save_folder
from npn.counting import count_macs, count_params
from npn.cuda_graphs import CudaGraphs
from npn.errors import PlasticityError
from npn.gates import UnitGroup
from npn.growth import Growth
from npn.inspection import inspect
from npn.modules import fuse, unfuse
from npn.penalty import CostTerm, Penalty
from npn.plasticity import Plasticity
from npn.schedule import Plateau, Schedule, Stage
from npn.structure import Frozen
from npn.surgery import ResizeReport

if TYPE_CHECKING:
    from npn import export as export
    from npn import integrations as integrations
    from npn import sparse as sparse

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "CostTerm",
    "CudaGraphs",
    "Frozen",
    "Growth",
    "Penalty",
    "Plasticity",
    "PlasticityError",
    "Plateau",
    "ResizeReport",
    "Schedule",
    "Stage",
    "UnitGroup",
    "attach",
    "count_macs",
    "count_params",
    "distributed",
    "fit_to_budget",
    "functional",
    "fuse",
    "importance",
    "inspect",
    "load",
    "masked",
    "methods",
    "prune",
    "read_extra",
    "save",
    "save_folder",
    "start_from",
    "unfuse",
]

if not TYPE_CHECKING:  # else a type checker would take every name for one of npn

    def __getattr__(name: str) -> object:
        """Import the modules that few programs need when they are first named."""
        if name in ("export", "integrations", "sparse"):
            return importlib.import_module(f"npn.{name}")
        raise AttributeError(f"module 'npn' has no attribute {name!r}")
