"""Gates that start informed: keep probabilities that rise with the importance of their units."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from npn import surgery
from npn._utils import cpu
from npn._utils.validation import HANDLE, instance, is_number
from npn.errors import ConfigurationError
from npn.functional import logits_for
from npn.gates import OPEN
from npn.gates.decision import check_undecided
from npn.plasticity import Plasticity

WIDEST = 8.0  # beyond, pi rounds to 1 in float32


def keep_probabilities(scores: Tensor, mean: float = OPEN, spread: float = 2.0) -> Tensor:
    """Keep probabilities that rise with the scores and have a given mean.

    ``pi_j = sigmoid(a + spread r_j)``, where r_j in [-1, 1] is the rank of score j (equal scores share theirs) and a is
    such that the mean of pi is ``mean``. Ranks, not values: scores of one group span orders of magnitude.

    Args:
        scores: (n,), any scale; infinite ones are allowed.
        mean: of pi, in (0, 1).
        spread: log-odds between the middle and either end, 0 (uniform) to 8.

    Returns:
        pi, float64 (n,), on the CPU.

    Raises:
        ConfigurationError: an argument is outside its range, or a score is NaN.

    Example:
        >>> pi = keep_probabilities(torch.tensor([0.1, 30.0, 2.0]), mean=0.9, spread=1.0)
        >>> pi.argsort().tolist(), round(float(pi.mean()), 6)
        ([0, 2, 1], 0.9)
    """
    if not is_number(mean) or not 0 < mean < 1:
        raise ConfigurationError(f"mean must be a keep probability in (0, 1), got {mean!r}")
    if not is_number(spread) or not 0 <= spread <= WIDEST:
        raise ConfigurationError(f"spread must be log-odds from 0 to {WIDEST:g}, got {spread!r}")
    if scores.dim() != 1 or bool(scores.isnan().any()):
        raise ConfigurationError(f"expected scores (n,) without NaN, got {scores!r}")
    offsets = spread * _ranks(scores)
    middle = math.log(mean / (1 - mean))
    low, high = middle - spread, middle + spread
    for _ in range(60):  # bisection; the mean of pi rises with a
        a = (low + high) / 2
        low, high = (a, high) if float(torch.sigmoid(a + offsets).mean()) < mean else (low, a)
    return torch.sigmoid((low + high) / 2 + offsets)


def start_from(plastic: Plasticity, scores: Mapping[str, Tensor], mean: float = OPEN, spread: float = 2.0) -> None:
    """Let the gates start from the importance of their units instead of all alike.

    In each group, ``pi_j = sigmoid(a + spread r_j)`` with r_j in [-1, 1] the rank of unit j and a such that the mean of
    pi is ``mean``, see `npn.importance` for scores. Call it before the plastic stage; every unit of the groups is set,
    closed ones as well. With the defaults all units are open under the deterministic mask.

    Args:
        plastic: the handle of the model.
        scores: group name -> (size,); groups that are not named stay as they are.
        mean: keep probability on average over each group, in (0, 1); 0.95 is that of the uniform start.
        spread: log-odds between the middle and either end, 0 (uniform) to 8.

    Raises:
        ConfigurationError: an unknown group, another number of scores than units, a NaN, an argument outside its range,
            or a method decides which units stay; nothing was set.

    Example:
        >>> import npn
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plastic = npn.attach(model, torch.zeros(1, 4))
        >>> npn.start_from(plastic, npn.importance(plastic, "magnitude"))
        >>> plastic.k = 7.0
        >>> round(plastic.groups[0].gate.keep_probability().mean().item(), 3)
        0.95
    """
    instance("plastic", plastic, Plasticity, HANDLE)
    instance("scores", scores, Mapping, "a dict from group name to scores, such as npn.importance returns")
    check_undecided(plastic.gates.decision, "trained gates have no part in it")
    found = {plastic.group(name): values for name, values in scores.items()}
    logits = {}
    for group, values in found.items():
        instance(f"the scores of {group.name!r}", values, Tensor, "a tensor")
        if values.shape != (group.size,):
            raise ConfigurationError(
                f"group {group.name!r} has {group.size} units, got scores of shape {tuple(values.shape)}; take them "
                "from npn.importance after the last resize"
            )
        pi = keep_probabilities(values.detach().cpu(), mean, spread)
        logits[group] = logits_for(pi, plastic.gates.sharpness.scale, plastic.function)
    for group, values in logits.items():
        gate = group.gate
        with torch.no_grad():
            gate.logits.copy_(values)
            gate.shut.zero_()
        surgery.forget_momentum(plastic.optimizers, gate.logits, torch.ones_like(gate.shut))


def _ranks(scores: Tensor) -> Tensor:
    """Ranks in [-1, 1], float64, equal scores in the middle of theirs; 0 where there is one score only."""
    _, which, counts = torch.unique(scores.cpu(), return_inverse=True, return_counts=True)
    middle = counts.cumsum(0) - (counts + 1) / 2
    return (2 * middle[which].double() / max(len(scores) - 1, 1) - 1) if len(scores) > 1 else cpu.zeros(1).double()
