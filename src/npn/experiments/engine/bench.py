"""Tables of many runs: one point per mode and budget, and the record of how they were made."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from npn.experiments.engine.rundir import make_folder
from npn.experiments.report.provenance import command_line, common
from npn.experiments.report.tables import Result, spread

MODES = ("sparsify", "expand", "scratch", "dense")  # in the order of the tables


def result_files(out: Path) -> list[Path]:
    """Make the folder of a bench's files, and name them: `out` with the endings .json, .md and .png.

    Args:
        out: path without ending.

    Raises:
        ConfigurationError: the folder cannot be made or written to.
    """
    make_folder(out.parent)
    return [out.with_suffix(ending) for ending in (".json", ".md", ".png")]


def points(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Merge the results of each mode and budget into one entry, with the spread over its seeds.

    Args:
        results: contents of `result.json` of finished runs.

    Returns:
        Entries in the order of `MODES`, and by budget.
    """
    kinds: dict[tuple[str, float | None], list[Result]] = {}
    for result in results:
        kinds.setdefault((result["mode"], result["options"]["budget"]), []).append(result)
    order = sorted(kinds, key=lambda kind: (MODES.index(kind[0]), kind[1] or 0.0))
    return [_point(*kind, sorted(kinds[kind], key=lambda run: int(run["seed"]))) for kind in order]


def _point(mode: str, budget: float | None, runs: Sequence[Result]) -> dict[str, Any]:
    return {
        "mode": mode,
        "budget": budget,
        "runs": len(runs),
        **{key: spread([run[key] for run in runs]) for key in ("accuracy", "params", "params_with_biases", "macs")},
        "seconds": spread([run["seconds"] for run in runs]),
        "epochs": sum(stage["epochs"] for stage in runs[0]["stages"]),
        "seeds": [{key: run[key] for key in ("seed", "accuracy", "params", "architecture")} for run in runs],
    }


def made_with(results: Sequence[Result], different: Collection[str]) -> dict[str, Any]:
    """Record command, settings, versions and machine of many runs.

    Args:
        results: contents of `result.json` of finished runs.
        different: settings to leave out, since they differ from run to run.
    """
    return {
        "command": command_line(),
        "options": {key: value for key, value in results[0]["options"].items() if key not in different},
        "versions": common([result["versions"] for result in results]),
        "machine": common([result["machine"] for result in results]),
    }
