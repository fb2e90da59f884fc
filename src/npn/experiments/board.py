"""Shows a run in TensorBoard, beside whatever else follows it."""

from pathlib import Path
from typing import Any, final

from npn.integrations.tensorboard import PlasticityWriter


@final
class Board:
    """An observer of `runner.run` that writes one step per epoch.

    Args:
        folder: of the event files.
        done: epochs that the run's checkpoint holds; what lies after it in the folder is written anew.
    """

    def __init__(self, folder: Path, done: int = 0) -> None:
        self.writer = PlasticityWriter(folder, purge_step=done)

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """Numbers as curves, keep probabilities as histograms."""
        step = int(row["epoch"])
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "epoch"}
        self.writer.scalars({**numbers, "k": float(row["k"])}, step)
        self.writer.units(row["units"], step)
        self.writer.histograms(row["keep"], step)

    def stage(self, entry: dict[str, Any]) -> None:
        """Everything up to here is on the disk."""
        self.writer.writer.flush()

    def close(self) -> None:
        """The run is over."""
        self.writer.close()
