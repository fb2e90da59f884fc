"""Shows a run in TensorBoard, beside whatever else follows it."""

from functools import cached_property
from pathlib import Path
from typing import Any, final

from npn.integrations.tensorboard import PlasticityWriter, require_tensorboard


@final
class Board:
    """An observer of `runner.run` that writes one step per epoch.

    Args:
        folder: of the event files.
        done: epochs that the run's checkpoint holds; what lies after it in the folder is written anew.

    Raises:
        ConfigurationError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, done: int = 0) -> None:
        require_tensorboard()
        self.folder, self.done = folder, done

    @cached_property
    def writer(self) -> PlasticityWriter:
        """Opened by the first epoch: a run that never gets there leaves no folder behind."""
        return PlasticityWriter(self.folder, purge_step=self.done)

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
        if "writer" in vars(self):
            self.writer.close()
