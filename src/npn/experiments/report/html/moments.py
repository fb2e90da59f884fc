"""The architecture and the gates at some epochs of a run, for a slider to walk through."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from npn.experiments.report.console import sharpness
from npn.experiments.report.html.run import Row, names, number, stages
from npn.experiments.report.html.text import quantity
from npn.experiments.report.scores import score_of

MOST = 80


def moments(rows: Sequence[Row]) -> dict[str, Any]:
    """Choose epochs, evenly and at the ends of stages, and collect what the slider shows.

    Args:
        rows: measurements, one row per epoch.

    Returns:
        `captions` and `epochs`, one per moment; `layers`: per layer its `name`, units at each moment (`units`),
        at the `start` and at `most`; `keep`: layer -> histograms; `absent`: layer -> units that are gone;
        `jumps`: moment and label of the end of each stage.
    """
    chosen = _chosen(rows)
    layers = [_layer(rows, chosen, key, name, unit) for key, unit in KINDS.items() for name in names(rows, key)]
    keep = {name: [list((rows[i].get("keep") or {}).get(name) or []) for i in chosen] for name in _gated(rows)}
    largest = {name: max(sum((row.get("keep") or {}).get(name) or [0]) for row in rows) for name in keep}
    return {
        "epochs": [_epoch(rows, i) for i in chosen],
        "captions": [_caption(rows[i], _epoch(rows, i), len(rows)) for i in chosen],
        "layers": layers,
        "keep": keep,
        "absent": {name: [largest[name] - sum(counts) for counts in keep[name]] for name in keep},
        "jumps": [[chosen.index(stop - 1), f"end of {name}"] for name, _, stop, _ in stages(rows)],
    }


KINDS = {"units": "units", "layers": "weights"}  # entry of a row -> what it counts


def _layer(rows: Sequence[Row], chosen: Sequence[int], key: str, name: str, unit: str) -> dict[str, Any]:
    counts = [number((row.get(key) or {}).get(name)) or 0 for row in rows]
    return {
        "name": name,
        "unit": unit,
        "start": counts[0],
        "most": max(counts),
        "units": [counts[i] for i in chosen],
    }


def _gated(rows: Sequence[Row]) -> list[str]:
    """Layers whose gates have ever been elsewhere than at 1: histograms of the others say nothing."""
    found = names(rows, "keep")
    moved = {name for row in rows for name, counts in (row.get("keep") or {}).items() if any(counts[:-1])}
    return [name for name in found if name in moved]


def _chosen(rows: Sequence[Row]) -> list[int]:
    """Positions of the rows to show."""
    even = {round(i * (len(rows) - 1) / (MOST - 1)) for i in range(MOST)}
    ends = {position for _, start, stop, _ in stages(rows) for position in (start - 1, stop - 1)}
    return sorted(even | ends)


def _epoch(rows: Sequence[Row], index: int) -> int:
    return int(rows[index].get("epoch", index)) + 1


def _caption(row: Mapping[str, Any], epoch: int, epochs: int) -> str:
    k, score = row.get("k", math.inf), score_of(row)
    value = number(row.get(score.key))
    parts = [
        f"epoch {epoch} of {epochs}",
        f"{row.get('stage', '')} ({sharpness(k)})",
        *([] if value is None else [score.phrase(value)]),
        f"{quantity(row.get('params'))} parameters",
    ]
    return " · ".join(parts)
