"""What experiments with gates on single weights share."""

from typing import Any

import torch

import npn
from npn._importance.costs import cost_function
from npn._importance.gradients import present_mask

OPEN = 1.0 - 1e-6


def hold_units_open(plastic: npn.Plasticity) -> None:
    """Open the gates of all units for good, so that only single weights are drawn; units without readers still leave.

    Args:
        plastic: the attached model; the logits of its units learn no more.
    """
    for group in plastic.groups:
        with torch.no_grad():
            group.gate.logits.fill_(plastic.gates.sharpness.logit(OPEN))
        group.gate.logits.requires_grad_(False)


def measure(plastic: npn.Plasticity) -> dict[str, Any]:
    """Report the size by open weights.

    Args:
        plastic: the attached model.

    Returns:
        `params`: open weights, without biases; `params_with_biases`: with the biases of the units that are there;
        `sparse_macs`: multiply-adds with open weights, per example; `architecture`: inputs that an open weight of the
        first layer reads, then the units of every other layer but the last; `layers`: open weights of each layer.
    """
    with torch.no_grad():
        mask = (present_mask(plastic) != 0).cpu().double()  # that of a method has other values than 0 and 1
        cost = {kind: round(float(cost_function(plastic, kind)(mask))) for kind in ("weights", "params", "macs")}
    open_weights = {name: gate.present for name, gate in plastic.unstructured.items()}
    first = next(iter(open_weights.values()), None)
    inputs = [] if first is None or first.dim() > 2 else [int(first.any(0).sum())]
    batch = len(plastic.example_inputs)
    return {
        "params": cost["weights"],
        "params_with_biases": cost["params"],
        "sparse_macs": cost["macs"] // batch,
        "architecture": "-".join(map(str, [*inputs, *plastic.sizes().values()])),
        "layers": {name: int(present.sum()) for name, present in open_weights.items()},
    }
