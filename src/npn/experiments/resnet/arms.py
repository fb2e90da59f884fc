"""Ways to train residual networks that the bench compares."""

from collections.abc import Sequence

from npn.experiments.engine.campaign import STARTS_COMPARED, Arm, arms_of_starts

LABELS = {  # in the order of the tables
    "sparsify": "shrunk by npn",
    "sparsify-8": "shrunk by npn, widths in multiples of 8",
    "expand": "grown by npn from a fifth",
    "expand-pair": "grown, new units in pairs",
    "expand-split": "grown, new units by splitting",
    "expand-select": "grown, new units chosen from candidates",
    "expand-over-1": "grown to the budget's size, no choice after it",
    "expand-over-2": "grown to twice the budget, then shrunk",
    "scratch": "plain net of the budget's size",
    "scratch-macs": "plain net, as many training MACs as shrinking",
    "scratch-macs-grown": "plain net, as many training MACs as growing",
    "dense": "full net",
}
COMPARED = (
    ("sparsify", "scratch"),
    ("sparsify", "scratch-macs"),
    ("sparsify", "dense"),
    ("sparsify-8", "sparsify"),
    ("expand", "scratch"),
    ("expand", "scratch-macs-grown"),
    *STARTS_COMPARED,
    ("expand-over-1", "expand"),
    ("expand-over-2", "expand"),
)


def arms(budgets: Sequence[float]) -> dict[str, Arm]:
    """List the arms by name; those of one stage train as long as those of several.

    Args:
        budgets: MACs to end with; up to 1: a share of the full net.
    """
    return {
        "sparsify": Arm("sparsify", budgets),
        "sparsify-8": Arm("sparsify", budgets, {"round_to": 8}),
        "expand": Arm("expand", budgets),
        **arms_of_starts(budgets),
        **{f"expand-over-{times}": Arm("expand", budgets, {"overshoot": float(times)}) for times in (1, 2)},
        "scratch": Arm("scratch", budgets),
        "scratch-macs": Arm("scratch", budgets, base="scratch", macs_of="sparsify"),
        "scratch-macs-grown": Arm("scratch", budgets, base="scratch", macs_of="expand"),
        "dense": Arm("dense", (None,)),
    }
