"""Multiply-adds that a training costs."""

import math
from typing import final

import torch

import npn
from npn.experiments.engine.recipe import Recipe
from npn.functional.table import ESTIMATORS

FORWARD, BACKWARD = 1, 2  # a backward pass multiplies twice: for the gradients of the inputs and of the weights


def passes(stage: npn.Stage, estimator: str) -> int:
    """Count the multiply-adds of a training step in those of a forward pass.

        sum over the passes of 1 + 2 [backward]

    The estimator of the gates decides the passes while k is finite and above 0; else there is one of each.

    Args:
        stage: of the step.
        estimator: name of the estimator.

    Example:
        >>> passes(npn.Stage("plastic", 3, k=7.0), "arm"), passes(npn.Stage("finetune", 3), "arm")
        (4, 3)
    """
    if not 0.0 < stage.k < math.inf:
        return FORWARD + BACKWARD
    return sum(FORWARD + BACKWARD * (each.weights > 0) for each in ESTIMATORS[estimator].passes)


@final
class TrainingMacs:
    """Counts the multiply-adds of epochs; those of a forward pass are counted again only after a resize.

    Closed units that are still there count. Evaluation, optimizers and the masks themselves do not.

    Args:
        recipe: to train.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._shapes: list[torch.Size] | None = None
        self._macs = 0

    def epoch(self, stage: npn.Stage) -> int:
        """Count those of an epoch of the network as it is, over all its examples.

        Args:
            stage: of the epoch.
        """
        plastic, train = self.recipe.plastic, self.recipe.data.train
        shapes = [parameter.shape for parameter in plastic.model.parameters()]
        if shapes != self._shapes:
            self._shapes, self._macs = shapes, npn.count_macs(plastic.model, self.recipe.prepare(train.x[:1]))
        return passes(stage, plastic.estimator) * self.recipe.data.epoch * self._macs
