"""What a training does besides optimizer steps, so that a network becomes small: in general its gates learn."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

import npn
from npn.checkpoint import Stateful


class Procedure:
    """How the gradients are made, and what leaves the network when: by the gates, or by another way in a subclass."""

    def begin(self, plastic: npn.Plasticity, stage: npn.Stage) -> Optimizer | None:
        """Prepare for a stage; a resumed run calls it again for every stage that has begun, before it loads the state.

        Args:
            plastic: the attached model.
            stage: that begins.

        Returns:
            The optimizer that takes the place of the gates', if any.
        """
        return None

    def backward(
        self, plastic: npn.Plasticity, stage: npn.Stage, closure: Callable[[], Tensor], scale: float | Any
    ) -> Tensor:
        """Set every gradient, and return the loss, ().

        Args:
            plastic: the attached model.
            stage: of the step.
            closure: computes the loss.
            scale: see `npn.Plasticity.backward`.
        """
        return plastic.backward(closure, scale=scale)

    def after_step(self, plastic: npn.Plasticity, stage: npn.Stage, step: int) -> int:
        """Do what follows the optimizers' steps.

        Args:
            plastic: the attached model.
            stage: of the step.
            step: number of the stage's steps that are done.

        Returns:
            Multiply-adds that this has cost.
        """
        return 0

    def after_epoch(self, plastic: npn.Plasticity, stage: npn.Stage, position: int, below: float) -> int:
        """Remove what is closed.

        Args:
            plastic: the attached model.
            stage: of the epoch.
            position: of the epoch in the stage.
            below: keep probability under which units go.

        Returns:
            Multiply-adds that this has cost.
        """
        plastic.compact(below=below)
        return 0

    def state(self) -> dict[str, Stateful]:
        """Name -> object whose state a checkpoint keeps."""
        return {}
