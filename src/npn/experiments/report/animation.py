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
from npn.experiments.report.scores import score_of

Frame = Mapping[str, Tensor]
KEEP = "keep/"  # before the name of a group
PER_SECOND = 10
HELD = 15  # frames that show the last state
SIZE, DPI = (7.2, 3.3), 90  # inches
DOTS = 20  # units per line
MOST_DOTS = 400  # units; more are bars, one per group
BLUE = (0.0, 0.447, 0.698)


@figures.styled
def animation(
    path: Path,
    frames: Sequence[Frame],
    rows: Sequence[Mapping[str, Any]],
    title: str,
    picture: Callable[[Axes, Frame], object],
) -> list[Path]:
    """Write a GIF, and an MP4 where ffmpeg is installed; the picture is left, every unit is a dot at the right.

    A dot is as dark as its unit is likely to be kept; a ring is a unit that is gone, or not there yet. More than 400
    units are bars, one per group, with a darker part for those that are likely to be kept.

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
                draw_units = _dots if sum(most.values()) <= MOST_DOTS else _bars
                draw_units(right, {name.removeprefix(KEEP): (frame[name], most[name]) for name in groups})
                score = score_of(row)
                about = f"epoch {row['epoch'] + 1}, {row['stage']}: {row['params']:,} parameters, "
                figure.suptitle(f"{title}\n{about}{score.text(row[score.key])}", fontsize=9.5, x=0.02, ha="left")
                writer.grab_frame()
    return files


def progress(rows: Sequence[Mapping[str, Any]]) -> Callable[[Axes, Frame], None]:
    """Make a picture of accuracy, or what a run has in its place, over the parameters that are left, up to a frame.

    Args:
        rows: measurements of every epoch.
    """
    score = score_of(rows[0])
    sizes = [row["params"] for row in rows]
    values = [score.factor * row[score.key] for row in rows]

    def picture(axis: Axes, frame: Frame) -> None:
        now = int(frame["epoch"])
        axis.set_position((0.1, 0.16, 0.5, 0.64))
        axis.plot(sizes[: now + 1], values[: now + 1], "-", color="0.7", linewidth=1)
        axis.plot(sizes[now], values[now], "o", color=BLUE)
        axis.set(xscale="log", xlabel="parameters", ylabel=f"test {score.label}")
        axis.set(xlim=(0.8 * min(sizes), 1.25 * max(sizes)), ylim=_around(values))

    return picture


def _around(values: Sequence[float]) -> tuple[float, float]:
    margin = 0.05 * (max(values) - min(values)) or 1.0
    return min(values) - margin, max(values) + margin


def _bars(axis: Axes, groups: Mapping[str, tuple[Tensor, int]]) -> None:
    """One bar per group: its most units, those that are there, and those that are likely to be kept."""
    for place, (keep, most) in enumerate(groups.values()):
        axis.barh(place, 1.0, color="0.92", height=0.5)
        axis.barh(place, len(keep) / most, color=(*BLUE, 0.35), height=0.5)
        axis.barh(place, float((keep > 0.5).sum()) / most, color=BLUE, height=0.5)
        if len(groups) <= 12:
            axis.text(0.0, place - 0.3, f"{list(groups)[place]}: {len(keep)} of {most}", fontsize=7, va="bottom")
    axis.set(xlim=(0, 1), ylim=(max(len(groups), 6) - 0.3, -1.0))
    axis.axis("off")


def _dots(axis: Axes, groups: Mapping[str, tuple[Tensor, int]]) -> None:
    """One dot per unit, group below group."""
    top = 0.0
    for name, (keep, most) in groups.items():
        axis.text(-0.5, top, f"{name}: {len(keep)} of {most}", fontsize=8, va="bottom")
        places = np.arange(most)
        x, y = places % DOTS, top + 1 + places // DOTS
        shades = np.zeros((most, 4))
        shades[:, :3] = BLUE
        shades[: len(keep), 3] = keep.numpy()
        axis.scatter(x, y, s=22, c=shades, edgecolors="0.8", linewidths=0.5)
        top = y.max() + 2.5
    axis.set(xlim=(-1, DOTS), ylim=(max(top, 12.0), -1.5))
    axis.axis("off")
