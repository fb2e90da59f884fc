"""Other ways to decide which units or weights stay, on the groups, masks, surgery and optimizers of `npn.attach`."""

from npn.methods.beta_bernoulli import BetaBernoulli
from npn.methods.dependent import DependentBetaBernoulli
from npn.methods.hard_concrete import DualRestarts, HardConcrete
from npn.methods.information_bottleneck import InformationBottleneck
from npn.methods.lp_sphere import LpSphere
from npn.methods.method import Method
from npn.methods.slimming import Slimming
from npn.methods.sparse_training import SET, RigL
from npn.methods.targeted_dropout import TargetedDropout

__all__ = [
    "SET",
    "BetaBernoulli",
    "DependentBetaBernoulli",
    "DualRestarts",
    "HardConcrete",
    "InformationBottleneck",
    "LpSphere",
    "Method",
    "RigL",
    "Slimming",
    "TargetedDropout",
]
