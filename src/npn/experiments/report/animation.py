"""Moving pictures of a run: what the network computes, and its units living and dying."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.animation import AbstractMovieWriter, FFMpegWriter, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from npn.experiments.report import figures
from npn.experiments.report.tables import percent

Frame = Mapping[str, Tensor]
KEEP = "keep/"  # before the name of a group
PER_SECOND = 10
HELD = 15  # frames that show the last state
SIZE, DPI = (7.2, 3.3), 90  # inches
DOTS = 20  # units per line


@figures.styled
def animation(
    path: Path,
    frames: Sequence[Frame],
    rows: Sequence[Mapping[str, Any]],
    title: str,
    picture: Callable[[Axes, Frame], object],
) -> list[Path]:
    """Write a GIF, and an MP4 where ffmpeg is installed; the picture is left, every unit is a dot at the right.

    A dot is as dark as its unit is likely to be kept; a ring is a unit that is gone, or not there yet.

    Args:
        path: of the files, without ending.
        frames: of one run, in order: `epoch`, the keep probabilities of each group in falling order as
            `keep/GROUP`, and what the picture is drawn from.
        rows: measurements of every epoch.
        title: of the run.
        picture: draws a frame into empty axes.

    Returns:
        The files.
    """
    writers: dict[str, AbstractMovieWriter] = {"gif": PillowWriter(fps=PER_SECOND)}
    if FFMpegWriter.isAvailable():
        writers["mp4"] = FFMpegWriter(fps=PER_SECOND)
    figure = Figure(figsize=SIZE)
    left, right = figure.add_axes((0.02, 0.04, 0.6, 0.8)), figure.add_axes((0.64, 0.04, 0.35, 0.8))
    groups = [name for name in frames[0] if name.startswith(KEEP)]
    most = {name: max(len(frame[name]) for frame in frames) for name in groups}
    files = []
    for ending, writer in writers.items():
        files.append(path.with_suffix(f".{ending}"))
        with writer.saving(figure, str(files[-1]), DPI):
            for frame in [*frames, *[frames[-1]] * HELD]:
                row = rows[int(frame["epoch"])]
                for axis in (left, right):
                    axis.clear()
                picture(left, frame)
                _units(right, {name.removeprefix(KEEP): (frame[name], most[name]) for name in groups})
                about = f"epoch {row['epoch'] + 1}, {row['stage']}: {row['params']:,} parameters, "
                figure.suptitle(f"{title}\n{about}{percent(row['accuracy'], 1)}", fontsize=9.5, x=0.02, ha="left")
                writer.grab_frame()
    return files


def _units(axis: Axes, groups: Mapping[str, tuple[Tensor, int]]) -> None:
    """One dot per unit, group below group."""
    top = 0.0
    for name, (keep, most) in groups.items():
        axis.text(-0.5, top, f"{name}: {len(keep)} of {most}", fontsize=8, va="bottom")
        places = np.arange(most)
        x, y = places % DOTS, top + 1 + places // DOTS
        shades = np.zeros((most, 4))
        shades[:, :3] = (0.0, 0.447, 0.698)
        shades[: len(keep), 3] = keep.numpy()
        axis.scatter(x, y, s=22, c=shades, edgecolors="0.8", linewidths=0.5)
        top = y.max() + 2.5
    axis.set(xlim=(-1, DOTS), ylim=(max(top, 12.0), -1.5))
    axis.axis("off")
