"""Ways to train the GPT that the bench compares."""

from collections.abc import Sequence

from npn.experiments.engine.campaign import STARTS_COMPARED, Arm, arms_of_starts

LABELS = {
    "dense": "full net",
    "expand": "grown by npn from a fifth",
    "expand-pair": "grown, new units in pairs",
    "expand-split": "grown, new units by splitting",
    "expand-select": "grown, new units chosen from candidates",
    "dense-macs": "full net, as many training MACs as growing",
    "sparsify": "shrunk by npn",
    "scratch": "plain net of the budget's size",
    "scratch-macs": "plain net, as many training MACs as shrinking",
    "found": "the sizes that shrinking found, from scratch",
}
COMPARED = (
    ("expand", "dense"),
    ("expand", "dense-macs"),
    *STARTS_COMPARED,
    ("sparsify", "scratch"),
    ("sparsify", "scratch-macs"),
    ("sparsify", "found"),
)


def arms(budgets: Sequence[float]) -> dict[str, Arm]:
    """List the arms by name.

    Args:
        budgets: MACs that shrinking ends with, and plain nets have; up to 1: a share of the full net.
    """
    return {
        "dense": Arm("dense", (None,)),
        "expand": Arm("expand", (None,)),
        **arms_of_starts((None,)),
        "dense-macs": Arm("dense", (None,), base="dense", macs_of="expand"),
        "sparsify": Arm("sparsify", budgets),
        "scratch": Arm("scratch", budgets),
        "scratch-macs": Arm("scratch", budgets, base="scratch", macs_of="sparsify"),
        "found": Arm("scratch", budgets, like="sparsify"),
    }
