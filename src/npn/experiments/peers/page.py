"""The page and the picture of the comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes

from npn.experiments.engine.bench import difference_lines
from npn.experiments.peers.arms import KINDS, NAMES
from npn.experiments.peers.tuning import best
from npn.experiments.report import figures
from npn.experiments.report.provenance import made_by
from npn.experiments.report.tables import markdown_table, percent, percent_spread

MARKERS = "osD^vP*X"
HEADER = (
    "method", "budget", "seeds", "weights", "MACs", "training MACs", "seconds", "validation", "test", "architectures",
)  # fmt: skip


def page(summary: Mapping[str, Any], picture: str) -> str:
    """Write the Markdown page: every method, what has not run, differences, trials, and how it was made.

    Args:
        summary: content of the JSON file.
        picture: name of the figure.
    """
    seeds = ", ".join(map(str, summary["seeds"]))
    parts = [
        "# NPN and neighbouring methods on equal terms",
        "",
        f"![Weights against test error]({picture})",
        "",
        "All methods have the same network, data, order of batches, number of steps, optimizer (AdamW), fall of the "
        "learning rate and length of fine-tuning; a budget is a share of the full network's weights, without biases. "
        f"Each method and budget had {summary['trials']} trials on a seed of their own, judged by validation accuracy. "
        f"Accuracy is that of the exported network at the last epoch, mean and standard deviation over the seeds "
        f"{seeds}. MACs count open weights only; a training step counts as three forward passes of the network as it "
        "was at the start of the epoch, with masked weights. docs/peers.md says what each method does.",
        "",
    ]
    for entry in summary["networks"]:
        parts += [f"## {entry['title']}", "", f"{entry['weights']:,} weights at full size.", "", _table(entry), ""]
        parts += difference_lines(entry["differences"], "### Differences")
        parts += ["### Trials", "", _trials(entry), ""]
    if "machine" in summary:
        parts += [made_by(summary, per=" a run"), ""]
    if summary.get("earlier"):
        commands = [made_by(before, per=" a run", first="-") for before in summary["earlier"]]
        parts += ["Parts that it did not run were made by", "", *commands, ""]
    return "\n".join(parts)


def _table(entry: Mapping[str, Any]) -> str:
    lacking = {(cell["mode"], cell["budget"]): cell for cell in entry["missing"]}
    points = {(point["mode"], point["budget"]): point for point in entry["points"]}
    order = sorted({*lacking, *points}, key=lambda key: (-key[1], NAMES.index(key[0])))
    rows = []
    for mode, budget in order:
        title = KINDS[mode].label, percent(budget, 1)
        point = points.get((mode, budget))
        if point is None:
            rows.append((*title, lacking[mode, budget]["why"], *[""] * (len(HEADER) - 3)))
            continue
        less = lacking.get((mode, budget))
        rows.append(
            (
                *title,
                f"{point['runs']}" + (f" ({less['runs']} {less['why']})" if less else ""),
                f"{point['params']['mean']:,.0f}",
                f"{point['sparse_macs']['mean']:,.0f}",
                f"{point['training_macs']['mean'] / 1e12:.2f} T",
                f"{point['seconds']['mean']:,.0f}",
                percent_spread(point["validation_accuracy"], bold=False),
                percent_spread(point["accuracy"]),
                ", ".join(seed["architecture"] for seed in point["seeds"]),
            )
        )
    return markdown_table(HEADER, rows)


def _trials(entry: Mapping[str, Any]) -> str:
    rows = []
    for cell in entry["trials"]:
        chosen = best(cell["trials"]) if cell["trials"] else None
        title = KINDS[cell["mode"]].label, percent(cell["budget"], 1)
        if chosen is None:
            rows.append((*title, "not run", "", "", ""))
        for number, trial in enumerate(cell["trials"]):
            drawn = ", ".join(f"{name} {value:g}" for name, value in trial["settings"].items())
            accuracy = percent(trial["validation_accuracy"])
            mark = "**" if number == chosen else ""
            loss, weights = f"{trial['validation_loss']:.4f}", f"{trial['params']:,}"
            rows.append((*title, drawn, f"{mark}{accuracy}{mark}", loss, weights))
    return markdown_table(("method", "budget", "settings", "validation accuracy", "loss", "weights"), rows)


@figures.styled
def draw(path: Path, summary: Mapping[str, Any]) -> Path:
    """Draw test error over weights and over the cost of training, for each network.

    Methods on units are above, those on single weights below.

    Args:
        path: of the PNG.
        summary: content of the JSON file.

    Returns:
        The path.
    """
    networks: Sequence[Mapping[str, Any]] = summary["networks"]
    figure, axes = figures.canvas(2, 2 * len(networks), 7.4 * len(networks) + 3.0, 7.0, height_ratios=(3, 2))
    sizes = (("params", 1.0, "weights without biases"), ("training_macs", 1e-12, "training MACs, in 10¹²"))
    for row, names in enumerate([n for n in NAMES if KINDS[n].single == single] for single in (False, True)):
        found: dict[str, Any] = {}
        for column, axis in enumerate(axes[row]):
            entry, (key, unit, label) = networks[column // 2], sizes[column % 2]
            for number, mode in enumerate(names):
                chosen = [point for point in entry["points"] if point["mode"] == mode]
                if chosen:
                    found[KINDS[mode].label] = _line(axis, chosen, key, unit, mode, number)
            drawn = [unit * point[key]["mean"] for point in entry["points"] if point["mode"] in names]
            if not drawn:
                axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center", color="0.5")
                axis.set(xticks=[], yticks=[])
            else:
                errors = [100 * (1 - point["accuracy"]["mean"]) for point in entry["points"] if point["mode"] in names]
                _scale(axis.xaxis, drawn)
                _scale(axis.yaxis, errors)
            title = f"{entry['title']}: {'single weights' if row else 'units'}"
            axis.set(title=title, xlabel=label, ylabel="test error in %")
        if found:
            place = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0), "fontsize": 7.5}
            axes[row, -1].legend(list(found.values()), list(found), **place)
    return figures.save(figure, path)


def _scale(along: Any, values: Sequence[float]) -> None:
    """A logarithmic axis where the values differ by more than a factor of two."""
    if max(values) > 2 * min(values):
        along.axes.set(**{f"{along.axis_name}scale": "log"})
        along.set_major_locator(mpl.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        along.set_minor_formatter(mpl.ticker.NullFormatter())
    along.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,g}"))


def _line(axis: Axes, points: Sequence[Mapping[str, Any]], key: str, unit: float, mode: str, number: int) -> Any:
    """Draw one method: NPN thick, plain nets grey and dashed."""
    own, plain = KINDS[mode].estimator is not None, KINDS[mode].role == "plain"
    return axis.errorbar(
        [unit * point[key]["mean"] for point in points],
        [100 * (1 - point["accuracy"]["mean"]) for point in points],
        [100 * point["accuracy"]["std"] for point in points],
        color="0.4" if plain else figures.COLOURS[number % len(figures.COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        ms=7 if own else 4.5,
        lw=2.0 if own else 1.0,
        ls="" if key != "params" else "--" if plain else "-",  # budgets in a row, by size only
        capsize=2,
    )
