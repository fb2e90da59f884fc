"""Several seeds of an experiment as the files of `results/`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npn.experiments.engine.recipe import Outcome
from npn.experiments.engine.rundir import write_json
from npn.experiments.moons.recipe import boundaries
from npn.experiments.report import figures
from npn.experiments.report.tables import command_line, percent, ratio, seeds_table, summarise, versions

Outcomes = Mapping[str, Sequence[Outcome]]  # mode -> one per seed
PAPER = {"sparsify": {"params": 3234, "accuracy": 0.990}, "expand": {"params": 3300, "accuracy": 0.996}}


def moons(out: Path, outcomes: Outcomes) -> list[Path]:
    """Write the table of the two moons: `out` with the endings .json, .md, .png and -sizes.png.

    Args:
        out: path without ending.
        outcomes: finished runs of both modes.

    Returns:
        The files written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    modes = {mode: summarise([outcome.result for outcome in runs]) for mode, runs in outcomes.items()}
    first = next(iter(outcomes.values()))[0].result
    summary = {
        "experiment": "moons",
        "modes": modes,
        "size_ratio": ratio(*(entry["params"]["mean"] for entry in modes.values())),
        "paper": PAPER,
        "command": command_line(),
        "options": {key: value for key, value in first["options"].items() if key not in ("mode", "seed")},
        "versions": versions(),
        "machine": first["machine"],
    }
    files = [
        out.with_suffix(".json"),
        out.with_suffix(".md"),
        out.with_suffix(".png"),
        out.with_name(f"{out.name}-sizes.png"),
    ]
    write_json(files[0], summary)
    boundaries(files[2], [runs[0] for runs in outcomes.values()])
    sizes(files[3], outcomes)
    files[1].write_text(_page(summary, [file.name for file in files[2:]]), encoding="utf-8")
    return files


def _page(summary: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The Markdown page: every seed, the means, the paper beside them, and how it was made."""
    modes, used, versions_used = summary["modes"], summary["machine"], summary["versions"]
    lines = ["# Two moons", "", seeds_table(modes), ""]
    for mode, entry in modes.items():
        paper = PAPER[mode]
        times = ratio(paper["params"], entry["params"]["mean"])
        lines.append(
            f"- Paper, {mode}: {paper['params']:,} parameters at {percent(paper['accuracy'], 1)}, "
            f"{times:,.0f} times as many."
        )
    lines += [
        f"- The two modes' mean sizes differ by a factor {summary['size_ratio']:.2f}.",
        "",
        "Parameters are the weights of the two trained layers without biases, as the paper counts. The test data steer "
        "nothing; accuracy is that of the last epoch, of the exported network. Spread is the standard deviation over "
        "the seeds; each seed draws its own data, weights and masks.",
        "",
        f"Made by `{summary['command']}` on {used['processor']}, {used['cores']} cores, device {used['device']}, with "
        + ", ".join(f"{name} {version}" for name, version in versions_used.items())
        + ".",
        "",
        *(f"![{picture}]({picture})" for picture in pictures),
    ]
    return "\n".join(lines) + "\n"


@figures.styled
def sizes(path: Path, outcomes: Outcomes) -> Path:
    """Size against accuracy beside the paper's points, and every run's parameters over its epochs."""
    figure, axes = figures.canvas(1, 2, 9.6, 3.4)
    points, curves = axes[0]
    for colour, (mode, runs) in zip(figures.COLOURS, outcomes.items(), strict=False):
        found = [(run.result["params"], 100 * run.result["accuracy"]) for run in runs]
        points.scatter(
            *zip(*found, strict=True), color=colour, s=22, label=f"{mode}, one seed", alpha=0.8, linewidths=0
        )
        paper = PAPER[mode]
        points.scatter(paper["params"], 100 * paper["accuracy"], color=colour, s=55, marker="*", label=f"{mode}, paper")
        for run in runs:
            epochs = np.asarray([row["epoch"] + 1 for row in run.rows])
            label = mode if run is runs[0] else None
            curves.step(epochs, [row["params"] for row in run.rows], where="mid", color=colour, lw=0.9, label=label)
    points.set(xscale="log", xlabel="parameters", ylabel="test accuracy in %")
    points.legend(loc="lower center", fontsize=8)
    longest = max(len(run.rows) for runs in outcomes.values() for run in runs)
    curves.set(yscale="log", xlabel="epoch", ylabel="parameters", xlim=(0.5, longest + 0.5))
    figures.shade_stages(curves, next(iter(outcomes.values()))[0].rows, label=True)
    curves.legend(loc="upper right")
    return figures.save(figure, path)
