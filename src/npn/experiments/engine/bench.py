"""Tables of many runs: one point per mode and budget, and the record of how they were made."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from npn.experiments.engine.rundir import make_folder
from npn.experiments.report.provenance import command_line, common
from npn.experiments.report.scores import Score, score_of
from npn.experiments.report.tables import Result, markdown_table, paired, spread

MODES = ("sparsify", "expand", "scratch", "dense")  # in the order of the tables
SPREAD = ("params", "params_with_biases", "macs", "training_macs", "seconds")


def result_files(out: Path) -> list[Path]:
    """Make the folder of a bench's files, and name them: `out` with the endings .json, .md and .png.

    Args:
        out: path without ending.

    Raises:
        ConfigurationError: the folder cannot be made or written to.
    """
    make_folder(out.parent)
    return [out.with_suffix(ending) for ending in (".json", ".md", ".png")]


def points(results: Sequence[Result], modes: Sequence[str] = MODES) -> list[dict[str, Any]]:
    """Merge the results of each mode and budget into one entry, with the spread over its seeds.

    Args:
        results: contents of `result.json` of finished runs; `mode` may be the name of an arm.
        modes: all that there are.

    Returns:
        Entries in the order of the modes, and by budget.
    """
    kinds: dict[tuple[str, float | None], list[Result]] = {}
    for result in results:
        kinds.setdefault((result["mode"], result["options"]["budget"]), []).append(result)
    order = sorted(kinds, key=lambda kind: (modes.index(kind[0]), kind[1] or 0.0))
    return [_point(*kind, sorted(kinds[kind], key=lambda run: int(run["seed"]))) for kind in order]


def point_title(point: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Name one entry of `points`: the label of its mode, and its budget if it has one.

    Args:
        point: the entry.
        labels: mode -> label.

    Example:
        >>> point_title({"mode": "dense", "budget": None}, {"dense": "full net"})
        'full net'
    """
    budget = point["budget"]
    return labels[point["mode"]] + (f", budget {budget:g}" if budget else "")


def _point(mode: str, budget: float | None, runs: Sequence[Result]) -> dict[str, Any]:
    score = score_of(runs[0])
    lengths = sorted({sum(stage["epochs"] for stage in run["stages"]) for run in runs})  # at equal MACs they may differ
    return {
        "mode": mode,
        "budget": budget,
        "runs": len(runs),
        **{key: spread([run[key] for run in runs]) for key in (*score.keys, *SPREAD)},
        "epochs": lengths[0] if len(lengths) == 1 else f"{lengths[0]}-{lengths[-1]}",
        "seeds": [{key: run[key] for key in ("seed", score.key, "params", "architecture")} for run in runs],
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


def differences(results: Sequence[Result], compared: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Compare the score of modes on test and validation data, paired by seed, at each budget of the first.

    Where the second has no such budget, its runs without one are taken: those of the full net.

    Args:
        results: contents of `result.json` of finished runs; `mode` may be the name of an arm.
        compared: pairs of modes.

    Returns:
        Entries with `first`, `second`, `budget`, and by the key of the score, such as `accuracy` and
        `validation_accuracy`, the first's less the second's, see `paired`.
    """
    runs: dict[tuple[str, float | None], dict[int, Result]] = {}
    for run in results:
        runs.setdefault((run["mode"], run["options"]["budget"]), {})[run["seed"]] = run
    found = []
    for first, second in compared:
        for mode, budget in sorted((kind for kind in runs if kind[0] == first), key=lambda kind: kind[1] or 0.0):
            ours, others = runs[mode, budget], runs.get((second, budget)) or runs.get((second, None), {})
            if seeds := sorted(set(ours) & set(others)):
                pairs = {
                    key: paired([ours[seed][key] - others[seed][key] for seed in seeds])
                    for key in score_of(ours[seeds[0]]).keys
                }
                found.append({"first": first, "second": second, "budget": budget, **pairs})
    return found


def difference_lines(entries: Sequence[Mapping[str, Any]], title: str = "## Differences") -> list[str]:
    """Write the result of `differences` in Markdown, with a title; nothing for no entries.

    Args:
        entries: the result.
        title: line of the title.
    """
    if not entries:
        return []
    score = score_of(entries[0])
    rows = [
        (
            f"{entry['first']} - {entry['second']}",
            "" if entry["budget"] is None else f"{entry['budget']:,g}",
            entry[score.key]["pairs"],
            *(_difference(entry[key], score) for key in score.keys),
        )
        for entry in entries
    ]
    return [
        title,
        "",
        markdown_table((score.unit, "budget", "seeds", f"test {score.name}", f"validation {score.name}"), rows),
        "",
        "Paired by seed; the mean and its 95% interval by Student's t.",
        "",
    ]


def _difference(found: Mapping[str, Any], score: Score) -> str:
    """A result of `paired` in the unit of a score."""
    half, digits = found["half_width"], score.digits
    interval = "" if half is None else f" ± {score.factor * half:.{digits}f}"
    return f"{score.factor * found['mean']:+.{digits}f}{interval}"
