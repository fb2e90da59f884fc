"""The moving picture of a run whose experiment has none of its own."""

from pathlib import Path

from npn.experiments.engine.recipe import Outcome


def animate(path: Path, outcome: Outcome) -> list[Path]:
    """Write `animation.gif`, and `animation.mp4` where ffmpeg is installed, into the folder of a run.

    Args:
        path: folder of the run.
        outcome: of the run, with frames.

    Returns:
        The files.
    """
    from npn.experiments.report.animation import animation, progress  # matplotlib, which training does not need

    result = outcome.result
    title = f"{result['experiment']}, {result['mode']}, seed {result['seed']}"
    return animation(path / "animation", outcome.frames, outcome.rows, title, progress(outcome.rows))
