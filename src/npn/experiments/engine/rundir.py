"""The folder of one run, written so that a crash at any moment loses at most the epochs after the checkpoint."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from filelock import FileLock, Timeout

from npn._utils.files import write_atomically
from npn.errors import CheckpointError, ConfigurationError
from npn.experiments.engine.options import Options


@final
class RunDirectory:
    """The files of a run.

    A run starts with `options.json`, adds a line to `metrics.jsonl` after each epoch, replaces `checkpoint.pt` now and
    then, and ends with `model.pt` and `result.json`; then the checkpoint is deleted. `report.html` shows what is there.
    `.lock` stays, empty: who trains there holds it.

    Args:
        path: the folder; made when first written to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.options_file = self.path / "options.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoint_file = self.path / "checkpoint.pt"
        self.result_file = self.path / "result.json"
        self.model_file = self.path / "model.pt"
        self.report_file = self.path / "report.html"

    @property
    def finished(self) -> bool:
        """Whether the run has ended."""
        return self.result_file.exists()

    @property
    def unfinished(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.checkpoint_file.exists() and not self.finished

    def files(self) -> list[Path]:
        """List what the folder holds, but for hidden files."""
        return sorted(file for file in self.path.iterdir() if not file.name.startswith("."))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training in the folder, until the context or the process ends.

        Raises:
            ConfigurationError: another process trains there, or the folder cannot be made or written to, or holds files
                that no run has written.
        """
        self._make()
        lock = FileLock(self.path / ".lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise ConfigurationError(
                f"another process trains in {self.path}; wait until it has ended, or choose another folder with --out"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def start(self, options: Options) -> None:
        """Begin a new run; delete the files of an earlier one, the exports of its model included.

        Args:
            options: complete settings of the run.

        Raises:
            ConfigurationError: the folder cannot be made or written to, or holds files that no run has written.
        """
        self._make()
        left = (self.result_file, self.checkpoint_file, self.metrics_file, self.path / "table.md", self.report_file)
        for file in (
            *left,
            *(file for kind in ("png", "gif", "mp4") for file in self.path.glob(f"*.{kind}")),
            *self.path.glob("model.*"),
        ):
            if file.is_file():
                file.unlink()
        write_json(self.options_file, options.as_dict())
        self.metrics_file.touch()

    def _make(self) -> None:
        """Make the folder; raise if it holds files of others."""
        make_folder(self.path)
        there = [file.name for file in self.files()]
        if there and not self.options_file.exists():
            some = ", ".join(there[:3]) + (f" and {len(there) - 3} more" if len(there) > 3 else "")
            raise ConfigurationError(f"{self.path} holds what is no run of npn ({some}); --out takes another folder")

    def options(self, kind: type[Options] = Options) -> Options:
        """Read the settings that the run began with.

        Args:
            kind: class of the settings.

        Raises:
            CheckpointError: they cannot be read.
        """
        try:
            return kind(**json.loads(self.options_file.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"expected the settings of a run in {self.options_file}, but: {error}; start a new run without --resume"
            ) from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Add the line of one epoch to the metrics.

        Args:
            row: measurements of the epoch.
        """
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Read the measurements of all epochs."""
        return [json.loads(line) for line in self.metrics_file.read_text().splitlines()]

    def truncate(self, rows: int) -> None:
        """Delete the lines of the epochs after a checkpoint.

        Args:
            rows: number of epochs before it.

        Raises:
            CheckpointError: the metrics have fewer lines.
        """
        lines = self.metrics_file.read_text().splitlines(keepends=True) if self.metrics_file.exists() else []
        if len(lines) < rows or not all(line.endswith("\n") for line in lines[:rows]):
            raise CheckpointError(
                f"the checkpoint was made after {rows} epochs, but {self.metrics_file} holds {len(lines)}; "
                "start a new run without --resume"
            )
        _write(self.metrics_file, "".join(lines[:rows]))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result and delete the checkpoint: the run is finished.

        Args:
            result: of the run.
        """
        write_json(self.result_file, result)
        self.checkpoint_file.unlink(missing_ok=True)

    def result(self) -> dict[str, Any]:
        """Read the result of a finished run.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            result: dict[str, Any] = json.loads(self.result_file.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"expected the result of a run in {self.result_file}, but: {error}; --overwrite starts the run anew"
            ) from error
        return result


def finished_run(path: Path, experiment: str) -> RunDirectory:
    """Return the folder of a finished run.

    Args:
        path: of the folder.
        experiment: that the run must be of.

    Raises:
        ConfigurationError: there is no finished run, or it is of another experiment.
    """
    directory = RunDirectory(path)
    if not directory.finished:
        raise ConfigurationError(f"expected a finished run of {experiment} in {path}, found no result.json there")
    found = directory.result()["experiment"]
    if found != experiment:
        raise ConfigurationError(f"expected a finished run of {experiment} in {path}, found one of {found}")
    return directory


def make_folder(path: Path) -> None:
    """Make a folder for results, and its parents.

    Args:
        path: of the folder.

    Raises:
        ConfigurationError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot make the folder {path} for results: {error}; --out takes another") from error
    if not os.access(path, os.W_OK):
        raise ConfigurationError(f"the folder {path} for results may not be written to; --out takes another")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file by readable JSON, in one step.

    Args:
        path: of the file.
        value: to write.
    """
    _write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
