"""Reads the folders of runs, finished or not, and writes their pages."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from npn._utils.files import write_atomically
from npn.checkpoint.files import read_tensors
from npn.errors import CheckpointError, ConfigurationError
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.report.html.run import Run

SAME = ("seed", "dataset", "depth", "network")  # settings that a dense run shares with the run compared to it
STARTED_FROM = ("teacher", "start")  # settings that name a run which may be dense


def write_report(directory: RunDirectory, experiment: str | None = None) -> Path | None:
    """Write the page of a run into its folder.

    Args:
        directory: of the run, finished or not.
        experiment: its name, where no result says it.

    Returns:
        The path of the page; None where plotly is not installed, which training does not need.
    """
    if find_spec("plotly") is None:
        return None
    run = replace(read_run(directory.path), experiment=experiment)
    return write_page(directory.report_file, [replace(run, dense=dense_run(run))])


def write_page(path: Path, runs: Sequence[Run]) -> Path:
    """Write the page of one run, or one that compares several.

    Args:
        path: of the page.
        runs: at least one.

    Returns:
        The path.
    """
    from npn.experiments.report.html.compare import comparison_page
    from npn.experiments.report.html.single import run_page

    if len(runs) == 1:
        text = run_page(runs[0])
    else:
        folder = path.resolve().parent
        pages = [RunDirectory(run.path.resolve()).report_file for run in runs]
        links = [os.path.relpath(page, folder) if page.exists() else None for page in pages]
        text = comparison_page(runs, links)
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def read_run(path: Path) -> Run:
    """Read all that a folder holds of a run; a run that was interrupted lacks its result, and may end in half a line.

    Args:
        path: of the folder.

    Raises:
        ConfigurationError: there is no run.
        CheckpointError: a file of the run is damaged.
    """
    directory = RunDirectory(path)
    if not directory.options_file.is_file():
        raise ConfigurationError(_no_run(path))
    options, rows = _object(directory.options_file), _rows(directory.metrics_file)
    result = directory.result() if directory.finished else {}
    return Run(path, options, rows, result, result.get("experiment"), _tensors(directory.model_file))


def dense_run(run: Run) -> Run | None:
    """Find the run of the full net that a run can be compared with: one that its settings name, or one beside it.

    A run beside it must be of the same experiment, seed, data and network.

    Args:
        run: to compare.

    Returns:
        The finished dense run, without its tensors, or None.
    """
    if run.mode == "dense":
        return None
    named = [Path(run.options[key]) for key in STARTED_FROM if run.options.get(key)]
    beside = sorted(file.parent for file in run.path.resolve().parent.glob("*/result.json"))
    for path in (*named, *beside):
        try:
            result = RunDirectory(path).result()
        except CheckpointError:
            continue
        options = result.get("options") or {}
        alike = path in named or (
            result.get("experiment") == run.experiment and all(options.get(key) == run.options.get(key) for key in SAME)
        )
        if result.get("mode") == "dense" and alike:
            return Run(path, options, [], result, result.get("experiment"))
    return None


def _no_run(path: Path) -> str:
    if not path.is_dir():
        return f"expected the folder of a run, but there is no folder {path}; npn run makes one"
    runs = sorted(file.parent.name for file in path.glob("*/options.json"))
    if runs:
        every = f"{shlex.quote(str(path))}/*"
        return f"{path} is no run, but holds {len(runs)}, such as {path / runs[0]}; to compare all: npn report {every}"
    return f"expected the folder of a run, but {path} holds no options.json; npn run makes one"


def _object(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}; start the run anew with --overwrite") from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path} is damaged: expected an object, got {found!r}; start the run anew with --overwrite"
        )
    return found


def _rows(path: Path) -> list[Mapping[str, Any]]:
    """All rows; the last one may be incomplete where a process was killed."""
    lines = path.read_text().splitlines() if path.is_file() else []
    rows: list[Mapping[str, Any]] = []
    for index, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if index + 1 < len(lines):
                raise CheckpointError(
                    f"line {index + 1} of {path} is damaged: {error}; start the run anew with --overwrite"
                ) from error
    return rows


def _tensors(path: Path) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and number of entries that are not zero; nothing where the model was written by another version."""
    try:
        tensors = read_tensors(path)
    except CheckpointError:
        return {}
    return {name: (tuple(tensor.shape), int(tensor.count_nonzero())) for name, tensor in tensors.items()}
