"""The moving picture of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from npn.experiments.engine.recipe import Outcome


def animate(
    path: Path, outcome: Outcome, picture: Callable[[Any, Any], object] | None = None, name: str | None = None
) -> list[Path]:
    """Write `animation.gif`, and `animation.mp4` where ffmpeg is installed, into the folder of a run.

    Args:
        path: folder of the run.
        outcome: of the run, with frames.
        picture: draws a frame into empty axes; by default accuracy over size.
        name: of the experiment in the title, if it has another there.

    Returns:
        The files.
    """
    from npn.experiments.report.animation import animation, progress  # matplotlib, which training does not need

    result = outcome.result
    title = f"{name or result['experiment']}, {result['mode']}, seed {result['seed']}"
    return animation(path / "animation", outcome.frames, outcome.rows, title, picture or progress(outcome.rows))
