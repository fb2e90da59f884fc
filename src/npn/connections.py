"""Growth of connections: closed single weights reopen where the loss asks for them most."""

from collections.abc import Sequence

import torch
from torch.optim import Optimizer

from npn._utils.collectives import mean
from npn._utils.validation import connection_count, whole_number
from npn.gates import OPEN, Gates
from npn.gates.decision import check_undecided
from npn.masking import MaskedWeights
from npn.surgery import forget_momentum


def reconnect(
    gates: Gates, weights: MaskedWeights, optimizers: Sequence[Optimizer], share: int | float, grace: int
) -> dict[str, int]:
    """Open the closed single weights with the largest |dL/dw|, at zero, so that the function is unchanged.

    The gradient is that of the last backward pass, taken as if the weight were present. Weights on a closed unit have
    none, and stay closed.

    Args:
        gates: of the model.
        weights: of the model.
        optimizers: that may hold the weights or their logits.
        share: weights to open in each parameter: a whole number, or a float fraction of its open ones (at least 1).
        grace: calls of `backward` for which they are held open, unpenalised.

    Raises:
        ConfigurationError: a number is outside its range, or a method decides which weights stay.

    Returns:
        Name of the parameter -> number of weights opened.

    References:
        Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020.
    """
    connection_count("share", share)
    whole_number("grace", grace, 0, "calls of backward")
    check_undecided(gates.decision, "they are not opened by hand")
    gates.to(weights.device)
    gradients = weights.dense_gradients()
    tensors = weights.table.named
    opened = {}
    for gate in gates.weights:
        if gate.name not in gradients:
            continue
        with torch.no_grad():
            closed = ~gate.present
            score = torch.where(closed, mean(gradients[gate.name]).abs(), 0).reshape(-1)
            wanted = max(1, int(share * int((~closed).sum()))) if isinstance(share, float) else share
            largest = score.topk(min(wanted, len(score)))
            index = largest.indices[largest.values > 0]
            new = torch.zeros_like(closed).view(-1).index_fill(0, index, True).view_as(closed)
            tensors[gate.name].masked_fill_(new, 0)
            stand_in = gate.stand_in
        forget_momentum(optimizers, tensors[gate.name], new)
        gates.set(gate.name, index, OPEN, optimizers, grace)
        gates.set(gate.name, stand_in, OPEN, optimizers)  # it would close for the others
        opened[gate.name] = len(index)
    return {name: number for name, number in opened.items() if number}
