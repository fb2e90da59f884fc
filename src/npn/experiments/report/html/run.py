"""What a page shows of a run: settings, measurements and result, each of which may be missing."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npn.experiments.report.scores import Score, score_of

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A run, finished or not.

    Attributes:
        path: its folder.
        options: settings that it began with.
        rows: measurements, one row per epoch that has ended.
        result: content of `result.json`; empty unless the run is finished.
        experiment: name of its experiment; None where only the result would say it.
        tensors: of the exported model: name -> (shape, entries that are not zero).
        dense: the run of the full net that it is compared with, if any.
    """

    path: Path
    options: Mapping[str, Any]
    rows: Sequence[Row]
    result: Mapping[str, Any] = field(default_factory=dict)
    experiment: str | None = None
    tensors: Mapping[str, tuple[tuple[int, ...], int]] = field(default_factory=dict)
    dense: "Run | None" = None

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @property
    def finished(self) -> bool:
        """Whether the run has ended."""
        return bool(self.result)

    @property
    def first(self) -> Row:
        """Measurements after the first epoch."""
        return self.rows[0] if self.rows else {}

    @property
    def last(self) -> Row:
        """Measurements at the end: the result, or those of the last epoch."""
        return {**(self.rows[-1] if self.rows else {}), **self.result}

    @property
    def score(self) -> Score:
        """Kind of number that says how good the network is."""
        return score_of(self.last)

    @property
    def mode(self) -> str:
        """How the run was trained."""
        return str(self.last.get("mode") or self.options.get("mode") or "")

    @property
    def training_macs(self) -> int | None:
        """Multiply-adds of the training so far, or None where they were not counted."""
        if "training_macs" in self.result:
            return int(self.result["training_macs"])
        counted = [row["training_macs"] for row in self.rows if "training_macs" in row]
        return sum(counted) if counted else None


def series(rows: Sequence[Row], key: str, factor: float = 1.0) -> list[float | None]:
    """Return one number of every row; None where it is missing or not finite.

    Args:
        rows: measurements, one row per epoch.
        key: name of the number; "keep/x" is "x" within "keep".
        factor: to multiply with.
    """
    return [None if value is None else factor * value for value in map(lambda row: number(_within(row, key)), rows)]


def number(value: Any) -> float | None:
    """Return a finite number, or None for everything else.

    Args:
        value: anything.

    Example:
        >>> number(7), number(float("nan")), number("inf"), number(None)
        (7, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def names(rows: Sequence[Row], key: str) -> list[str]:
    """Return the names that occur in a mapping of the rows, in the order of their first occurrence.

    Args:
        rows: measurements, one row per epoch.
        key: of the mapping.

    Example:
        >>> names([{"units": {"a": 1}}, {"units": {"a": 1, "b": 2}}, {}], "units")
        ['a', 'b']
    """
    return list(dict.fromkeys(name for row in rows for name in row.get(key) or {}))


def stages(rows: Sequence[Row]) -> Iterator[tuple[str, int, int, Any]]:
    """Find the stages of a run.

    Args:
        rows: measurements, one row per epoch.

    Yields:
        Name, number of the first epoch and of the last, both from 1, and k.
    """
    start = 0
    for index, row in enumerate(rows):
        if index + 1 == len(rows) or rows[index + 1].get("stage") != row.get("stage"):
            yield str(row.get("stage", "")), start + 1, index + 1, row.get("k", "inf")
            start = index + 1


def _within(row: Row, key: str) -> Any:
    value: Any = row
    for part in key.split("/", 1):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
