"""All methods of the comparison by name."""

from npn.experiments.engine.procedure import Procedure
from npn.experiments.peers import kinds
from npn.experiments.peers.kinds import Kind, Range, budget, decides, gates, importance
from npn.experiments.peers.procedures import PRETRAIN

# what every method may choose, as factors of the network's default
COMMON: dict[str, Range] = {"learning_rate": (1.0, 0.33, 3.0), "weight_decay": (1.0, 0.1, 3.0)}
NPN_RATE: dict[str, Range] = {"gate_rate": (4e-3, 2e-3, 2e-2)}
RATE: dict[str, Range] = {"gate_rate": (1e-2, 3e-3, 3e-2)}
CUTS: dict[str, Range] = {"cuts": (16, 4, 64)}
DROP: dict[str, Range] = {"drop": (0.1, 0.03, 0.5)}
TARGETED: dict[str, Range] = {"drop": (0.5, 0.25, 0.9)}
REPLACED: dict[str, Range] = {"drop": (0.3, 0.1, 0.5)}
KL: dict[str, Range] = {"kl_scale": (10.0, 1.0, 300.0)}


def plain(plan: kinds.Plan) -> Procedure:
    """Nothing leaves the network."""
    return Procedure()


KINDS: dict[str, Kind] = {
    "reinmax": Kind("NPN, ReinMax", gates, NPN_RATE, budget, "reinmax"),
    "arm": Kind("NPN, ARM", gates, NPN_RATE, budget, "arm"),
    "hard-concrete": Kind("L0 hard concrete, NPN's budget", decides(kinds.hard_concrete), RATE | DROP, budget),
    "hard-concrete-dual": Kind(
        "L0 hard concrete, dual restarts",
        decides(kinds.hard_concrete),
        RATE | DROP | {"dual_rate": (1e-2, 1e-3, 1e-1)},
        kinds.restarts,
    ),
    "beta-bernoulli": Kind("Beta-Bernoulli dropout", decides(kinds.beta_bernoulli), RATE | KL),
    "dependent": Kind(
        "dependent Beta-Bernoulli dropout", decides(kinds.beta_bernoulli, then=kinds.dependent), RATE | KL
    ),
    "bottleneck": Kind("information bottleneck", decides(kinds.bottleneck), RATE | {"price": (1e-4, 1e-5, 3e-3)}),
    "targeted-dropout": Kind("targeted dropout", decides(kinds.targeted_dropout, reopens=True), TARGETED),
    "lp-sphere": Kind(
        "Lp sphere",
        decides(kinds.lp_sphere, reopens=True),
        {"step": (5e-3, 1e-3, 3e-2), "p": (1.3, 1.1, 1.6)},
    ),
    "slimming": Kind("network slimming", decides(kinds.slimming), {"price": (1e-4, 1e-5, 1e-3)}, needs="BatchNorm"),
    "gradual-fisher": Kind("gradual, Fisher", importance("fisher", gradual=True), CUTS),
    "gradual-taylor": Kind("gradual, Taylor", importance("taylor", gradual=True), CUTS),
    "gradual-magnitude": Kind("gradual, magnitude", importance("magnitude", gradual=True), CUTS),
    "one-shot": Kind("one shot (npn.prune), fine-tuned", importance("taylor", gradual=False)),
    "scratch": Kind("plain net, hand-picked widths, from scratch", plain, role="plain"),
    "found": Kind("plain net, widths that NPN (ReinMax) found, from scratch", plain, role="plain"),
    "torch-pruning": Kind("Torch-Pruning, group norm", plain, role="second", needs="Torch-Pruning"),
    "reinmax-weights": Kind("NPN, ReinMax, single weights", gates, NPN_RATE, budget, "reinmax", single=True),
    "magnitude-weights": Kind("gradual, magnitude, single weights", kinds.smallest_weights, CUTS, single=True),
    "targeted-weights": Kind(
        "targeted dropout, single weights",
        decides(kinds.targeted_weights, exact=True, reopens=True),
        TARGETED,
        single=True,
    ),
    "rigl": Kind("RigL", decides(kinds.rigl, since=PRETRAIN, to_the_end=True, reopens=True), REPLACED, single=True),
    "set": Kind("SET", decides(kinds.set_, since=PRETRAIN, to_the_end=True, reopens=True), REPLACED, single=True),
}
FIRST = "group-sparsity"  # the run that "torch-pruning" continues
KINDS[FIRST] = Kind(
    "sparse training of Torch-Pruning", plain, {"strength": (5e-4, 1e-4, 5e-3)}, role="first", needs="Torch-Pruning"
)
NAMES = tuple(name for name, kind in KINDS.items() if kind.role != "first")
COMPARED = tuple(("reinmax", name) for name in NAMES if name not in ("reinmax",) and not KINDS[name].single) + tuple(
    ("reinmax-weights", name) for name in NAMES if KINDS[name].single and name != "reinmax-weights"
)
