"""Shows a run in TensorBoard."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from npn.integrations.tensorboard import PlasticityWriter, require_tensorboard


@final
class Board:
    """An observer that writes one step per epoch to TensorBoard; a context manager.

    The first epoch opens the files, so a run that fails before leaves none behind. Its number is also the first step
    that TensorBoard drops of an earlier run: a resumed run shows no step twice.

    Args:
        folder: of the event files.

    Raises:
        ConfigurationError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        require_tensorboard()
        self.folder = folder
        self.writer: PlasticityWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.writer is not None:
            self.writer.close()

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """Write numbers as curves and keep probabilities as histograms.

        Args:
            row: measurements of the epoch.
            epochs: the most that the run can take.
        """
        step = int(row["epoch"])
        if self.writer is None:
            self.writer = PlasticityWriter(self.folder, purge_step=step)
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "epoch"}
        self.writer.scalars({**numbers, "k": float(row["k"])}, step)
        self.writer.units(row["units"], step)
        self.writer.histograms(row["keep"], step)

    def stage(self, entry: dict[str, Any]) -> None:
        """Flush the curves to the disk.

        Args:
            entry: summary of the stage.
        """
        if self.writer is not None:
            self.writer.writer.flush()
