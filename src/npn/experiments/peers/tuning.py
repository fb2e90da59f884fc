"""Trials: as many for each method, drawn in advance, judged by validation data only."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from npn.experiments.peers.arms import COMMON, FIRST, KINDS

SEED = 100  # of the trials' runs; no other run has it


def settings(name: str, trial: int) -> dict[str, float]:
    """Draw the settings of a trial: the first has the defaults, the others lie anywhere in the ranges.

    A setting of the same name has the same place in its range for all methods, so that all try the same learning rates.

    Args:
        name: of the method.
        trial: number of the trial, from 0.

    Example:
        >>> settings("one-shot", 0)
        {'learning_rate': 1.0, 'weight_decay': 1.0}
        >>> settings("rigl", 3)["learning_rate"] == settings("arm", 3)["learning_rate"]
        True
    """
    ranges = {**COMMON, **KINDS[name].space, **(KINDS[FIRST].space if KINDS[name].role == "second" else {})}
    found = {}
    for setting, (default, least, most) in ranges.items():
        place = random.Random(f"{setting} {trial}").random()
        found[setting] = default if trial == 0 else float(f"{least * (most / least) ** place:.3g}")
    return found


def best(trials: Sequence[Mapping[str, Any]]) -> int:
    """Choose the trial of the highest validation accuracy; of equal ones that of the lowest validation loss.

    Args:
        trials: with `validation_accuracy` and `validation_loss`, at least one.

    Example:
        >>> best([{"validation_accuracy": 0.9, "validation_loss": loss} for loss in (0.3, 0.2)])
        1
    """

    def rank(number: int) -> tuple[float, float]:
        loss = trials[number]["validation_loss"]
        return trials[number]["validation_accuracy"], -loss if math.isfinite(loss) else -math.inf

    return max(range(len(trials)), key=rank)
