"""Mode expand with each start of new units, paired by seed, as files of `results/`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from npn.errors import ConfigurationError
from npn.experiments.engine.bench import made_with, result_files
from npn.experiments.engine.campaign import Train, finished
from npn.experiments.engine.options import Options
from npn.experiments.engine.rundir import write_json
from npn.experiments.registry import EXPERIMENTS
from npn.experiments.report import figures
from npn.experiments.report.provenance import made_by
from npn.experiments.report.tables import markdown_table, number_spread, paired, percent_spread, spread
from npn.surgery import INITS

Rows = list[dict[str, Any]]
GROWING = ("moons", "lenet5-mnist", "resnet56-cifar10")  # those that grow and classify
COMPARED = ("validation_accuracy", "accuracy", "params", "training_macs")


def bench(
    out: Path, runs: Path, name: str, options: Options, seeds: Sequence[int], inits: Sequence[str], train: Train
) -> list[Path]:
    """Train with every start and seed, and write `out` with the endings .json, .md and .png.

    Args:
        out: path without ending.
        runs: folder of the single runs; finished ones are used as they are.
        name: of the experiment.
        options: settings of every run, without mode, seed and start.
        seeds: to train with.
        inits: starts of new units; the others are compared to the first.
        train: trains one run, and resumes where it was stopped.

    Returns:
        The files written.

    Raises:
        ConfigurationError: the experiment or a start is unknown, or a folder holds a run with other settings.
    """
    if name not in GROWING:
        raise ConfigurationError(f"experiment must be one of {', '.join(map(repr, GROWING))}, got {name!r}")
    for init in inits:
        if init not in INITS:
            raise ConfigurationError(f"inits must be among {', '.join(INITS)}, got {init!r}")
    files = result_files(out)
    found: dict[str, list[tuple[dict[str, Any], Rows]]] = {init: [] for init in inits}
    for seed in seeds:
        for init in inits:
            chosen = replace(options, mode="expand", seed=seed, growth_init=None if init == "zero" else init)
            run = finished(runs / f"{name}-{init}-{seed}", EXPERIMENTS[name], chosen, train)
            found[init].append((run.result(), run.metrics()))
    results = {init: [result for result, _ in made] for init, made in found.items()}
    every = [result for made in results.values() for result in made]
    summary = {
        "experiment": name,
        "starts": {init: _entry(made, results[inits[0]]) for init, made in results.items()},
        **made_with(every, ("seed", "growth_init")),
    }
    write_json(files[0], summary)
    draw(files[2], {init: [rows for _, rows in made] for init, made in found.items()})
    files[1].write_text(_page(summary, files[2].name), encoding="utf-8")
    return files


def _entry(results: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    difference = {}
    for key in ("validation_accuracy", "accuracy"):
        found = paired([result[key] - other[key] for result, other in zip(results, base, strict=True)])
        difference[key] = {part: found[part] for part in ("mean", "error", "above", "below")}
    return {
        "runs": len(results),
        **{key: spread([result[key] for result in results]) for key in COMPARED},
        "difference": difference,
        "seeds": [{key: result[key] for key in ("seed", *COMPARED, "architecture")} for result in results],
    }


@figures.styled
def draw(path: Path, curves: Mapping[str, Sequence[Rows]]) -> Path:
    """Draw validation loss over training cost, and parameters over epochs; medians over the seeds.

    Args:
        path: of the PNG.
        curves: start -> measurements of each run, one row per epoch.

    Returns:
        The path.
    """
    figure, axes = figures.canvas(1, 2, 9.6, 3.4)
    loss, size = axes[0]
    for colour, (init, runs) in zip(figures.COLOURS, curves.items(), strict=False):
        macs = [list(accumulate(row["training_macs"] for row in rows)) for rows in runs]
        seen = [[row["validation_loss"] for row in rows] for rows in runs]
        loss.plot(np.median(macs, axis=0), np.median(seen, axis=0), color=colour, lw=1.1, label=init)
        params = np.median([[row["params"] for row in rows] for rows in runs], axis=0)
        size.step(range(1, len(params) + 1), params, where="mid", color=colour, lw=1.1, label=init)
    loss.set(xscale="log", yscale="log", xlabel="multiply-adds of training", ylabel="validation loss")
    size.set(yscale="log", xlabel="epoch", ylabel="parameters")
    figures.shade_stages(size, next(iter(curves.values()))[0], label=True)
    loss.legend()
    return figures.save(figure, path)


def _page(summary: Mapping[str, Any], picture: str) -> str:
    """Write the Markdown page."""
    starts = summary["starts"]
    base = next(iter(starts))
    rows = []
    for init, entry in starts.items():
        change = entry["difference"]["validation_accuracy"]
        error = "" if change["error"] is None else f" ± {100 * change['error']:.2f}"
        compared = "" if init == base else f"{100 * change['mean']:+.2f}{error} ({change['above']}/{change['below']})"
        rows.append(
            [
                init,
                percent_spread(entry["validation_accuracy"]),
                compared,
                percent_spread(entry["accuracy"], bold=False),
                number_spread(entry["params"], 1),
                f"{entry['training_macs']['mean']:.3g}",
            ]
        )
    header = ["start", "validation accuracy", f"to {base}, in points", "test accuracy", "parameters", "training MACs"]
    runs = starts[base]["runs"]
    return "\n".join(
        [
            f"# Starts of new units: {summary['experiment']}, mode expand",
            "",
            markdown_table(header, rows),
            "",
            f"{runs} seeds, last epoch, spread: standard deviation. The difference is that of validation accuracy, "
            "paired by seed: mean ± standard error, and how many seeds are above and below. Test data steer nothing. "
            "Training MACs are the multiply-adds of all training steps; a backward pass counts as two forward passes.",
            "",
            made_by(summary),
            "",
            f"![{picture}]({picture})",
            "",
        ]
    )
