"""The two moons, moving: decision boundary and units over a run."""

from pathlib import Path

from matplotlib.axes import Axes

from npn.experiments.data.moons import moons
from npn.experiments.engine.recipe import Outcome
from npn.experiments.moons.figures import draw_boundary
from npn.experiments.report.animation import Frame, animation


def animate(path: Path, outcome: Outcome) -> list[Path]:
    """Write `animation.gif`, and `animation.mp4` where ffmpeg is installed, into the folder of a run.

    Args:
        path: folder of the run.
        outcome: of the run, with frames.

    Returns:
        The files.
    """
    result = outcome.result
    test = moons(result["seed"]).test

    def picture(axis: Axes, frame: Frame) -> None:
        draw_boundary(axis, frame["confidence"], test)

    title = f"two moons, {result['mode']}, seed {result['seed']}"
    return animation(path / "animation", outcome.frames, outcome.rows, title, picture)
