"""Figures of any run: gate functions, learning curves, keep probabilities."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from npn.experiments.report.scores import ACCURACY, score_of
from npn.functional import keep_probability

Rows = Sequence[Mapping[str, Any]]
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe & Ito: colour-blind safe
STAGE_SHADES = ("#eef2f7", "#fff4d9", "#e9f5ea")
FUNCTION_NAMES = {"sigmoid": "sigmoid", "hard_sigmoid": "centred hard sigmoid", "shifted_sigmoid": "shifted sigmoid"}

GONE = -0.22  # position of the bar that counts the removed units

styled = mpl.rc_context(STYLE)  # decorates every function that draws


def canvas(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, np.ndarray[Any, Any]]:
    """Make a figure outside pyplot's global state.

    Args:
        rows: of axes.
        columns: of axes.
        width: in inches.
        height: in inches.
        options: of `Figure.subplots`.

    Returns:
        The figure and its (rows, columns) axes.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def named_point(
    axis: Axes, name: str, x: float, y: float, marker: str = "x", size: float = 6, above: float = 4
) -> None:
    """Draw a published result in grey, its name to the right of it.

    Args:
        axis: to draw on.
        name: of the method.
        x, y: place of the result.
        marker: of matplotlib.
        size: of the marker, in points.
        above: of the name over the marker, in points.
    """
    axis.plot(x, y, marker=marker, ms=size, color="0.25", ls="")
    axis.annotate(name, (x, y), textcoords="offset points", xytext=(5, above), fontsize=7.5)


def plain_log_ticks(axis: Axes) -> None:
    """Write the numbers 1, 2 and 5 times powers of ten along a logarithmic x axis, so that none touches another.

    Args:
        axis: with such a scale.
    """
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG; the same figure always gives the same bytes.

    Args:
        figure: to write.
        path: of the file.

    Returns:
        The path.
    """
    figure.savefig(path, dpi=140, metadata={"Software": None})
    return path


@styled
def gate_functions(path: Path, ks: Sequence[float] = (0.0, 1.0, 2.0, 7.0, 20.0, math.inf)) -> Path:
    """Draw the keep probability g(k phi) over phi for several k, one panel per gate function (the paper's Fig. 1).

    Args:
        path: of the PNG.
        ks: sharpnesses.

    Returns:
        The path.
    """
    figure, axes = canvas(1, len(FUNCTION_NAMES), 10.0, 3.2, sharey=True)
    logits = torch.linspace(-2.0, 2.0, 801, dtype=torch.float64)
    for axis, (function, name) in zip(axes[0], FUNCTION_NAMES.items(), strict=True):
        for index, k in enumerate(ks):
            shade = mpl.colormaps["viridis"](0.92 * (1.0 - index / max(1, len(ks) - 1)))
            label = f"k = {k:g}" if math.isfinite(k) else "k = ∞"
            axis.plot(logits, keep_probability(logits, k, function), color=shade, label=label)
        axis.set(title=name, xlabel="logit φ", ylim=(-0.03, 1.03))
    axes[0, 0].set_ylabel("keep probability g(kφ)")
    axes[0, -1].legend(loc="lower right")
    return save(figure, path)


@styled
def learning_curves(path: Path, rows: Rows, title: str) -> Path:
    """Draw the score, open units per group, parameters and k over epochs, the stages shaded (the paper's Fig. 3).

    With a budget, its bound is drawn beside the expected cost.

    Args:
        path: of the PNG.
        rows: measurements, one row per epoch.
        title: of the figure.

    Returns:
        The path.
    """
    bounded = any(row.get("bound") for row in rows)
    heights = (3, 3, 3, 3, 1) if bounded else (3, 3, 3, 1)
    figure, axes = canvas(len(heights), 1, 8.0, 9.4 if bounded else 7.4, sharex=True, height_ratios=heights)
    epochs = [row["epoch"] + 1 for row in rows]
    quality, units, params, *priced, sharpness = axes[:, 0]
    score = score_of(rows[0])
    for key, label, colour in zip(score.keys, ("test", "validation"), (COLOURS[0], "0.6"), strict=True):
        quality.plot(epochs, [score.factor * row[key] for row in rows], label=label, color=colour, lw=1.2)
    quality.set(ylabel=score.label)
    if score is ACCURACY:
        worst = min(row["accuracy"] for row in rows)
        quality.set(ylim=(100 * max(0.0, worst - 0.02), 100.3))
    for name, colour in zip(rows[0]["units"], _colours(len(rows[0]["units"])), strict=True):
        left = [row["units"].get(name) or math.nan for row in rows]  # a group disappears with its branch
        units.step(epochs, left, where="mid", label=name, color=colour)
    many = len(rows[0]["units"]) > len(COLOURS)
    units.set(ylabel="open units" + "\n(dark: first layers)" * many, yscale="log")
    params.step(epochs, [row["params"] for row in rows], where="mid", color="0.25")
    params.set(ylabel="parameters", yscale="log")
    for cost in priced:
        cost.plot(epochs, [row["cost"] for row in rows], color="0.25", label="expected cost")
        bounds = [row["bound"] or math.nan for row in rows]
        cost.plot(epochs, bounds, color=COLOURS[1], ls="--", label="bound of the budget")
        cost.set(ylabel="cost", yscale="log")
    ks = [float(row["k"]) for row in rows]
    finite = [k for k in ks if math.isfinite(k)]
    top = 1.3 * max([1.0, *finite])  # infinity is drawn here
    sharpness.step(epochs, [min(k, top) for k in ks], where="mid", color="0.25")
    sharpness.set(ylabel="k", ylim=(0, 1.15 * top), xlabel="epoch", xlim=(0.5, epochs[-1] + 0.5))
    levels = sorted({*finite}) if len({*finite}) <= 2 else [min(finite), max(finite)]
    sharpness.set_yticks([*levels, top], [*(f"{k:g}" for k in levels), "∞"])
    for axis in (units, params, *priced):
        axis.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    for axis in axes[:, 0]:
        shade_stages(axis, rows, label=axis is quality)
    quality.legend(loc="lower right" if score is ACCURACY else "upper right", ncols=2)
    for cost in priced:
        cost.legend(loc="upper right")
    figure.suptitle(title, fontsize=10)
    if not many:
        units.legend(loc="upper right", ncols=2)
    return save(figure, path)


def stages_of(rows: Rows) -> list[tuple[str, int, int]]:
    """Find the stages of a run.

    Args:
        rows: measurements, one row per epoch.

    Returns:
        `(name, first row, row after the last)` of each stage.
    """
    spans: list[tuple[str, int, int]] = []
    for index, row in enumerate(rows):
        if spans and spans[-1][0] == row["stage"]:
            spans[-1] = (row["stage"], spans[-1][1], index + 1)
        else:
            spans.append((row["stage"], index, index + 1))
    return spans


def shade_stages(axis: Axes, rows: Rows, *, label: bool) -> None:
    """Shade the background of each stage in its own colour.

    Args:
        axis: to shade; its x axis counts epochs from 1.
        rows: measurements, one row per epoch.
        label: write the names of the stages above.
    """
    for index, (name, start, stop) in enumerate(stages_of(rows)):
        axis.axvspan(start + 0.5, stop + 0.5, color=STAGE_SHADES[index % len(STAGE_SHADES)], zorder=0, lw=0)
        if label:
            # just above the axis, clear of curves and legend
            above = axis.get_xaxis_transform()
            axis.text((start + stop + 1) / 2, 1.01, name, transform=above, ha="center", va="bottom", color="0.35")


@styled
def keep_probabilities(path: Path, rows: Rows, title: str, moments: int = 4) -> Path | None:
    """Draw histograms of the keep probabilities at some epochs of the plastic stages, one row per group.

    A bar at the left of 0 counts the units that have been removed since the run's largest size.

    Args:
        path: of the PNG.
        rows: measurements, one row per epoch.
        title: of the figure.
        moments: the most epochs to show.

    Returns:
        The path, or None if the run has no epoch of finite k.
    """
    plastic = [row for row in rows if math.isfinite(float(row["k"]))]
    if not plastic:
        return None
    # much happens early: the moments are even on a logarithmic scale
    chosen = sorted({round(index) for index in np.geomspace(1, len(plastic), moments)})
    groups = list(plastic[0]["keep"])
    figure, axes = canvas(
        len(groups), len(chosen), 2.4 * len(chosen) + 0.6, 1.9 * len(groups) + 0.5, sharex=True, sharey="row"
    )
    for position, (line, group) in enumerate(zip(axes, groups, strict=True)):
        largest = max(sum(row["keep"][group]) for row in plastic)
        for axis, moment in zip(line, chosen, strict=True):
            row = plastic[moment - 1]
            counts = np.asarray(row["keep"][group])
            edges = np.linspace(0.0, 1.0, len(counts) + 1)
            axis.bar(edges[:-1], counts, width=edges[1], align="edge", color=COLOURS[0])
            absent = largest - counts.sum()
            axis.bar(GONE, absent, width=0.12, color="0.75", hatch="////", edgecolor="white", lw=0)
            axis.set_xlim(GONE - 0.1, 1.03)
            if position == 0:
                axis.set_title(f"epoch {row['epoch'] + 1}")
            if position == len(groups) - 1:
                axis.set_xticks([GONE, 0.0, 0.5, 1.0], ["gone", "0", "½", "1"])
                axis.set_xlabel("keep probability")
        line[0].set_ylabel(f"{group}\nunits")
    figure.suptitle(title, fontsize=10)
    return save(figure, path)


def _colours(count: int) -> list[Any]:
    """Return distinct colours while there are enough, else a gradient from first to last."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    return [mpl.colormaps["viridis"](index / (count - 1)) for index in range(count)]
