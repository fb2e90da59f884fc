"""The folder of one run: what is in it, written so that a crash at any moment loses nothing that counts."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from npn.errors import CheckpointError, ConfigurationError
from npn.experiments.engine.options import Options


@final
class RunDirectory:
    """Files of a run.

    `options.json` is there from the start, `metrics.jsonl` gains one line per epoch, `checkpoint.pt` is replaced as the
    run goes on and disappears when it ends, `result.json` and `model.pt` appear at the end.

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

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.result_file.exists()

    @property
    def unfinished(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.checkpoint_file.exists() and not self.finished

    def start(self, options: Options) -> None:
        """Begin a new run, without what an earlier one left here, the exports of its model included.

        Raises:
            ConfigurationError: nothing can be written here.
        """
        make_folder(self.path)
        left = (self.result_file, self.checkpoint_file, self.metrics_file, self.path / "table.md")
        for file in (*left, *self.path.glob("*.png"), *self.path.glob("model.*")):
            if file.is_file():
                file.unlink()
        write_json(self.options_file, options.as_dict())
        self.metrics_file.touch()

    def options(self, kind: type[Options] = Options) -> Options:
        """The settings that the run began with.

        Args:
            kind: the experiment's class of settings.

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
        """Add one epoch's line to the metrics."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All epochs' lines."""
        return [json.loads(line) for line in self.metrics_file.read_text().splitlines()]

    def truncate(self, rows: int) -> None:
        """Forget the epochs after a checkpoint.

        Raises:
            CheckpointError: fewer than `rows` epochs are on record.
        """
        lines = self.metrics_file.read_text().splitlines(keepends=True) if self.metrics_file.exists() else []
        if len(lines) < rows or not all(line.endswith("\n") for line in lines[:rows]):
            raise CheckpointError(
                f"the checkpoint was made after {rows} epochs, but {self.metrics_file} holds {len(lines)}; "
                "start a new run without --resume"
            )
        _replace(self.metrics_file, "".join(lines[:rows]))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result; after this the run counts as finished."""
        write_json(self.result_file, result)
        self.checkpoint_file.unlink(missing_ok=True)

    def result(self) -> dict[str, Any]:
        """What `finish` wrote."""
        result: dict[str, Any] = json.loads(self.result_file.read_text())
        return result


def make_folder(path: Path) -> None:
    """Make a folder for results, and those above it.

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
    """Write readable JSON in one step: a reader sees the old file or the new one."""
    _replace(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
