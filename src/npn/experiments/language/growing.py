"""A GPT that grows deeper: the branches of its later blocks are closed at first, and open block by block."""

import math
from collections.abc import Iterable
from typing import final

from torch.optim import Optimizer

import npn
from npn.experiments.engine.procedure import Procedure


@final
class Deepening(Procedure):
    """Opens the blocks one after the other, evenly over the first stage; heads and units are added after it.

    What is open then is held open while the network grows: there is no price yet, so masks would only be noise.

    Args:
        layers: number of blocks.
        first: blocks that are open from the beginning.
        epochs: of the first stage.
        hold: training steps of the plastic stage in which the network grows.
    """

    def __init__(self, layers: int, first: int, epochs: int, hold: int) -> None:
        self.layers, self.first, self.epochs, self.hold = layers, first, epochs, hold

    def close(self, plastic: npn.Plasticity) -> None:
        """Close the branches of all blocks but the first.

        Args:
            plastic: the attached model, before its training.
        """
        plastic.close("branches", branches_of(plastic, range(self.first, self.layers)))

    def begin(self, plastic: npn.Plasticity, stage: npn.Stage) -> Optimizer | None:
        """Hold everything open when the plastic stage begins.

        Args:
            plastic: the attached model.
            stage: that begins.
        """
        if math.isfinite(stage.k):
            plastic.gates.hold_open({group.name: range(group.size) for group in plastic.groups}, self.hold)
        return None

    def after_epoch(self, plastic: npn.Plasticity, stage: npn.Stage, position: int, below: float) -> int:
        """Open blocks in the first stage, where nothing is removed: a removed branch would not come back.

        Args:
            plastic: the attached model.
            stage: of the epoch.
            position: of the epoch in the stage.
            below: keep probability under which units go.
        """
        if stage.name != "pretrain":
            return super().after_epoch(plastic, stage, position, below)
        plastic.open("branches", branches_of(plastic, range(self.opened(position), self.opened(position + 1))))
        return 0

    def opened(self, epochs: int) -> int:
        """Count the blocks that are open after so many epochs.

        Args:
            epochs: of the first stage that are over.

        Example:
            >>> [Deepening(6, 2, epochs=4, hold=1).opened(epoch) for epoch in range(5)]
            [2, 3, 4, 5, 6]
        """
        return self.first + (self.layers - self.first) * min(epochs, self.epochs) // self.epochs


def branches_of(plastic: npn.Plasticity, blocks: Iterable[int]) -> list[int]:
    """Find the branches of some blocks.

    Args:
        plastic: the attached model, with all its branches.
        blocks: numbers of the blocks.

    Returns:
        Their numbers in the group "branches".
    """
    wanted = {f"blocks.{i}" for i in blocks}
    assert plastic.structure.branches is not None
    return [i for i, path in enumerate(plastic.structure.branches.paths) if path.rpartition(".")[0] in wanted]
