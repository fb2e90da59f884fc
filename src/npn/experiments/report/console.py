"""Shows a run on the console: a progress bar on a terminal, and one lasting line per stage."""

import math
from collections.abc import Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any, Self, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from npn.experiments.report.scores import score_of

BLOCKS = "▁▂▃▄▅▆▇█"


@final
class ProgressDisplay:
    """An observer that draws with rich; a context manager, so that the terminal is left clean.

    Args:
        console: to draw on.
        title: name of the run.
    """

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self._sizes: list[float] = []
        self._scores: list[float] = []
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task(title, total=None, status="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """Move the bar.

        Args:
            row: measurements of the epoch.
            epochs: the most that the run can take.
        """
        self._sizes.append(row["params"])
        score = score_of(row)
        self._scores.append(row[score.key])
        curves = f"size {sparkline(self._sizes)}  {score.name} {sparkline(self._scores)}"
        self._progress.update(
            self._task, total=epochs, completed=row["epoch"] + 1, status=f"{status(row)}\n[dim]{curves}[/dim]"
        )

    def stage(self, entry: dict[str, Any]) -> None:
        """Print a line that stays.

        Args:
            entry: summary of the stage.
        """
        score = score_of(entry)
        self.console.print(
            f"[bold]{entry['stage']:<9}[/bold] {entry['epochs']:>4} epochs  {sharpness(entry['k']):<7} "
            f"{score.phrase(entry[score.key])}  {entry['params']:>6,} parameters  {entry['architecture']:<9} "
            f"{entry['seconds']:.1f} s",
            highlight=False,
            soft_wrap=True,
        )


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Draw numbers as a line of blocks, from the lowest to the highest of them.

    Args:
        values: in order of time; more than `width` of them become so many means.
        width: most characters.

    Example:
        >>> sparkline([0, 1, 2, 3, 7]), sparkline([5, 5]), sparkline([1, 1, 3, 3], width=2)
        ('▁▂▃▄█', '▁▁', '▁█')
    """
    count = min(len(values), width)
    edges = [i * len(values) // count for i in range(count + 1)] if count else [0]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round(top * (mean - low) / (high - low)) if high > low else 0] for mean in means)


def sharpness(k: float | str) -> str:
    """Write a sharpness as people write it.

    Args:
        k: a number, or "inf".

    Example:
        >>> sharpness(7.0), sharpness("inf")
        ('k = 7', 'k = ∞')
    """
    return f"k = {float(k):.3g}" if math.isfinite(float(k)) else "k = ∞"


def status(row: dict[str, Any]) -> str:
    """Describe one epoch in a few words.

    Args:
        row: measurements of the epoch.
    """
    score = score_of(row)
    return f"{row['stage']}  {sharpness(row['k'])}  {score.phrase(row[score.key])}  {row['architecture']}"
