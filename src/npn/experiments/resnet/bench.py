"""Residual networks over modes and seeds: accuracy over MACs, with learning curves, as files of `results/`."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes

from npn.experiments.engine.bench import difference_lines, differences, made_with, point_title, points, result_files
from npn.experiments.engine.campaign import Campaign, Train
from npn.experiments.engine.rundir import RunDirectory, make_folder, write_json
from npn.experiments.report import figures
from npn.experiments.report.provenance import made_by
from npn.experiments.report.tables import markdown_table, number_spread, percent, percent_spread
from npn.experiments.resnet.arms import COMPARED, LABELS, arms
from npn.experiments.resnet.options import ResNetOptions
from npn.experiments.resnet.published import published_lines
from npn.experiments.resnet.recipe import EXPERIMENT, STAGES


def bench(
    out: Path,
    runs: Path,
    options: ResNetOptions,
    seeds: Sequence[int],
    modes: Sequence[str],
    budgets: Sequence[float],
    train: Train,
) -> list[Path]:
    """Train every mode to every budget with every seed, and write the files of `write`.

    Finished runs in `runs` are used as they are, and a stopped one is resumed.

    Args:
        out: path without ending.
        runs: folder of the single runs.
        options: settings of every run, without mode, seed and budget.
        seeds: to train with.
        modes: names of arms, see `arms`.
        budgets: of every arm but "dense".
        train: trains one run.

    Returns:
        The files written.

    Raises:
        ConfigurationError: an unknown mode, or `runs` holds runs with other settings.
    """
    make_folder(out.parent)
    return write(out, Campaign(runs, EXPERIMENT, options, STAGES, arms(budgets), train).trained(seeds, modes))


def write(out: Path, made: Sequence[tuple[str, RunDirectory]]) -> list[Path]:
    """Write `out` with the endings .json, .md and .png, and the learning curves of one run of each mode beside them.

    Args:
        out: path without ending.
        made: arm and folder of finished runs of any budgets and seeds, all of one depth and data set.

    Returns:
        The files written.
    """
    runs = [run for _, run in made]
    results = [{**run.result(), "mode": name} for name, run in made]
    first = results[0]
    summary: dict[str, Any] = {
        "experiment": first["experiment"],
        **{key: first[key] for key in ("depth", "dataset", "base")},
        "points": points(results, tuple(LABELS)),
        "differences": differences(results, COMPARED),
        **made_with(results, different=("mode", "seed", "budget", "epochs", "data", "growth_init")),
    }
    files = result_files(out)
    write_json(files[0], summary)
    rows = [run.metrics() for run in runs]
    draw(files[2], summary, list(zip(results, rows, strict=True)))
    parts, pictures = [], []
    for result, run, curve in zip(results, runs, rows, strict=True):
        target = out.with_name(f"{out.name}-{result['mode']}-curves.png")
        if target not in pictures:
            pictures.append(target)
            title = f"{LABELS[result['mode']]}, seed {result['seed']}"
            figures.learning_curves(target, curve, f"ResNet-{result['depth']}, {title}")
            parts += [f"## {title[0].upper()}{title[1:]}", "", (run.path / "table.md").read_text(encoding="utf-8")]
            parts += [f"![{title}]({target.name})", ""]
    files[1].write_text(page(summary, files[2].name, parts), encoding="utf-8")
    return files + pictures


def page(summary: Mapping[str, Any], picture: str, runs: Sequence[str] = ()) -> str:
    """Write the Markdown page: every point, every seed, and the record of how it was made.

    Args:
        summary: content of the JSON file.
        picture: name of the figure.
        runs: lines about single runs.
    """
    base = summary["base"]["zero_padding"]
    header = (
        "network",
        "epochs",
        "seeds",
        "MACs",
        "of the base",
        "weights",
        "training MACs",
        "validation",
        "test",
        "seconds",
    )
    rows = [
        (
            point_title(point, LABELS),
            point["epochs"],
            point["runs"],
            f"{point['macs']['mean'] / 1e6:.2f} M",
            percent(point["macs"]["mean"] / base["macs"], 1),
            f"{point['params']['mean']:,.0f}",
            f"{point['training_macs']['mean'] / 1e12:.1f} T",
            percent_spread(point["validation_accuracy"], bold=False),
            percent_spread(point["accuracy"]),
            number_spread(point["seconds"]),
        )
        for point in summary["points"]
    ]
    singles = [
        (
            point_title(point, LABELS),
            seed["seed"],
            percent(seed["accuracy"]),
            f"{seed['params']:,}",
            seed["architecture"],
        )
        for point in summary["points"]
        for seed in point["seeds"]
    ]
    return "\n".join(
        [
            f"# ResNet-{summary['depth']} on {summary['dataset'].upper().replace('CIFAR', 'CIFAR-')}",
            "",
            f"![Learning curves and accuracy against MACs]({picture})",
            "",
            markdown_table(header, rows),
            "",
            f"The base has {base['macs'] / 1e6:.2f} M MACs and {base['params']:,} weights, BatchNorm and biases not "
            "counted. Accuracy is that of the exported network at the last epoch; mean and standard deviation over the "
            "seeds. All networks see the same 45,000 images in the same order, with the same optimizer; a training "
            "step counts as three forward passes. The 5,000 validation images steer growth, the test images nothing. "
            "Seconds include an evaluation of both after each epoch, and whatever else the machine did meanwhile.",
            "",
            *difference_lines(summary["differences"]),
            *published_lines(summary),
            *runs,
            "## Every run",
            "",
            markdown_table(("network", "seed", "test accuracy", "weights", "stream channels (in blocks)"), singles),
            "",
            made_by(summary, per=" a run"),
            "",
        ]
    )


@figures.styled
def draw(path: Path, summary: Mapping[str, Any], runs: Sequence[tuple[Mapping[str, Any], figures.Rows]]) -> Path:
    """Draw accuracy and MACs over the epochs, runs thin and means of modes thick, and accuracy over MACs at the end.

    Args:
        path: of the PNG.
        summary: content of the JSON file.
        runs: result and measurements of each run.

    Returns:
        The path.
    """
    figure, axes = figures.canvas(1, 3, 11.5, 3.6)
    accuracy, macs, ends = axes[0]
    there = {point["mode"] for point in summary["points"]}
    colours = dict(zip((mode for mode in LABELS if mode in there), cycle(figures.COLOURS), strict=False))
    for axis, key, factor in ((accuracy, "accuracy", 100.0), (macs, "macs", 1e-6)):
        _curves(axis, runs, key, factor, colours)
    longest = max((rows for _, rows in runs), key=lambda rows: (len(figures.stages_of(rows)), len(rows)))
    for axis in (accuracy, macs):
        figures.shade_stages(axis, longest, label=True)
        axis.set(xlabel="epoch", xlim=(0.5, max(len(rows) for _, rows in runs) + 0.5))
        axis.xaxis.get_major_locator().set_params(integer=True)
    accuracy.set(ylabel="test accuracy in %")
    macs.set(ylabel="million MACs", ylim=(0.0, None))
    for mode, colour in colours.items():
        chosen = [point for point in summary["points"] if point["mode"] == mode]
        if chosen:
            sizes = [point["macs"]["mean"] / 1e6 for point in chosen]
            means = [100 * point["accuracy"]["mean"] for point in chosen]
            spreads = [100 * point["accuracy"]["std"] for point in chosen]
            ends.errorbar(sizes, means, spreads, color=colour, marker="o", ms=4, capsize=2, lw=1.2, label=LABELS[mode])
    ends.set(xlabel="million MACs", ylabel="test accuracy in %, last epoch", xlim=(0.0, None))
    low, high = ends.get_ylim()
    ends.set_ylim(low - (0.09 * len(colours)) * (high - low), high)  # room for the legend
    ends.legend(loc="lower left", fontsize=7)
    return figures.save(figure, path)


def _curves(
    axis: Axes,
    runs: Sequence[tuple[Mapping[str, Any], figures.Rows]],
    key: str,
    factor: float,
    colours: Mapping[str, str],
) -> None:
    for mode, colour in colours.items():
        label: str | None = LABELS[mode]
        for budget in {result["options"]["budget"]: None for result, _ in runs if result["mode"] == mode}:
            lines = [
                [factor * row[key] for row in rows]
                for result, rows in runs
                if (result["mode"], result["options"]["budget"]) == (mode, budget)
            ]
            for line in lines:
                axis.plot(range(1, len(line) + 1), line, color=colour, lw=0.6, alpha=0.4)
            mean = [fmean(values) for values in zip(*lines, strict=False)]  # to the end of the shortest
            axis.plot(range(1, len(mean) + 1), mean, color=colour, label=label)
            label = None  # one entry in the legend for all budgets of a mode
