"""The two moons, moving: decision boundary and units over a run."""

from pathlib import Path

from matplotlib.axes import Axes

from npn.experiments.data.moons import moons
from npn.experiments.engine import moving
from npn.experiments.engine.recipe import Outcome
from npn.experiments.moons.figures import draw_boundary
from npn.experiments.report.animation import Frame


def animate(path: Path, outcome: Outcome) -> list[Path]:
    """Write the moving picture of a run, with the decision boundary; see `npn.experiments.engine.moving.animate`.

    Args:
        path: folder of the run.
        outcome: of the run, with frames.

    Returns:
        The files.
    """
    test = moons(outcome.result["seed"]).test

    def picture(axis: Axes, frame: Frame) -> None:
        draw_boundary(axis, frame["confidence"], test)

    return moving.animate(path, outcome, picture, "two moons")
