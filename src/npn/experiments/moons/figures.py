"""Figures of the two moons: decision boundaries, and sizes of several runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from npn._utils.models import evaluating
from npn.experiments.data.moons import moons
from npn.experiments.data.splits import Split
from npn.experiments.engine.recipe import Outcome
from npn.experiments.report import figures
from npn.experiments.report.tables import percent

GRID = 161  # points per side of the picture of the decision boundary
EXTENT = (-1.6, 2.6, -1.15, 1.65)  # the part of the plane in it: left, right, bottom, top


def confidence(model: nn.Module, device: torch.device) -> Tensor:
    """Compute the probability of class 1 on a grid over EXTENT.

    Args:
        model: maps points (B, 2) to logits (B, 2).
        device: of the model.

    Returns:
        (GRID, GRID), rows from bottom to top.
    """
    left, right, bottom, top = EXTENT
    x, y = torch.linspace(left, right, GRID), torch.linspace(bottom, top, GRID)
    points = torch.cartesian_prod(y, x).flip(1).to(device)
    with evaluating(model), torch.no_grad():
        probability = model(points).softmax(1)[:, 1]
    shaped: Tensor = probability.reshape(GRID, GRID).cpu()
    return shaped


@figures.styled
def boundaries(path: Path, outcomes: Sequence[Outcome]) -> Path:
    """Draw decision boundary and confidence at the end of each stage, one row per run (the paper's Fig. 2).

    Args:
        path: of the PNG.
        outcomes: one per row.

    Returns:
        The path.
    """
    columns = len(outcomes[0].snapshots)
    figure, axes = figures.canvas(
        len(outcomes), columns, 3.3 * columns, 2.2 * len(outcomes) + 0.35, sharex=True, sharey=True
    )
    picture: Any = None
    for line, outcome in zip(axes, outcomes, strict=True):
        test = moons(outcome.result["seed"]).test
        for axis, entry in zip(line, outcome.result["stages"], strict=True):
            picture = draw_boundary(axis, outcome.snapshots[entry["stage"]]["confidence"], test)
            size = f"{entry['architecture']}, {entry['params']:,} parameters"
            axis.set_title(f"{entry['stage']}: {size}, {percent(entry['accuracy'], 1)}", fontsize=8.5)
        line[0].set_ylabel(outcome.result["mode"], fontsize=10)
    figure.colorbar(picture, ax=axes, shrink=0.85, pad=0.01, label="probability of class 1", ticks=np.linspace(0, 1, 6))
    return figures.save(figure, path)


def draw_boundary(axis: Axes, probability: Tensor, test: Split) -> Any:
    """Draw confidence, decision boundary and test points.

    Args:
        axis: to draw into.
        probability: from `confidence`.
        test: points and classes.

    Returns:
        The filled contours.
    """
    left, right, bottom, top = EXTENT
    x, y = np.linspace(left, right, GRID), np.linspace(bottom, top, GRID)
    levels = np.linspace(0.0, 1.0, 11)
    filled = axis.contourf(x, y, probability, levels=levels, cmap="RdBu_r", alpha=0.75)
    axis.contour(x, y, probability, levels=levels[1:-1], colors="0.35", linewidths=0.35)
    axis.contour(x, y, probability, levels=[0.5], colors="black", linewidths=1.6)
    for label, colour in ((0, "#08306b"), (1, "#67000d")):
        points = test.x[test.y == label]
        axis.scatter(points[:, 0], points[:, 1], s=3.5, color=colour, linewidths=0)
    axis.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    return filled


@figures.styled
def sizes(path: Path, outcomes: Mapping[str, Sequence[Outcome]], paper: Mapping[str, Mapping[str, float]]) -> Path:
    """Draw accuracy over size beside the paper's points, and the parameters of every run over its epochs.

    Args:
        path: of the PNG.
        outcomes: mode -> one per seed.
        paper: mode -> `params` and `accuracy` in the paper.

    Returns:
        The path.
    """
    figure, axes = figures.canvas(1, 2, 9.6, 3.4)
    points, curves = axes[0]
    for colour, (mode, runs) in zip(figures.COLOURS, outcomes.items(), strict=False):
        found = [(run.result["params"], 100 * run.result["accuracy"]) for run in runs]
        points.scatter(
            *zip(*found, strict=True), color=colour, s=22, label=f"{mode}, one seed", alpha=0.8, linewidths=0
        )
        theirs = paper[mode]
        label = f"{mode}, paper"
        points.scatter(theirs["params"], 100 * theirs["accuracy"], color=colour, s=55, marker="*", label=label)
        for run in runs:
            epochs = np.asarray([row["epoch"] + 1 for row in run.rows])
            name = mode if run is runs[0] else None
            curves.step(epochs, [row["params"] for row in run.rows], where="mid", color=colour, lw=0.9, label=name)
    points.set(xscale="log", xlabel="parameters", ylabel="test accuracy in %")
    points.legend(loc="lower center", fontsize=8)
    longest = max(len(run.rows) for runs in outcomes.values() for run in runs)
    curves.set(yscale="log", xlabel="epoch", ylabel="parameters", xlim=(0.5, longest + 0.5))
    figures.shade_stages(curves, next(iter(outcomes.values()))[0].rows, label=True)
    curves.legend(loc="upper right")
    return figures.save(figure, path)
