"""Markdown tables, and the spread of several seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return count, mean, standard deviation of a sample (0 for a single value), minimum and maximum.

    Args:
        values: at least one.
    """
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "max": max(values),
    }


def paired(differences: Sequence[float]) -> dict[str, Any]:
    """Return the mean of paired differences, its standard error, and half the width of its 95% interval by Student's t.

        error = s / sqrt(n),    half_width = t(0.975, n - 1) error

    Args:
        differences: n of them, at least one.

    Returns:
        `pairs`, n; `mean`; `error` and `half_width`, None for a single pair; `above` and `below`, the numbers of
        differences above and below 0.

    Example:
        >>> found = paired([1.0, 2.0, 3.0])
        >>> found["mean"], round(found["error"], 3), round(found["half_width"], 3), found["above"]
        (2.0, 0.577, 2.484, 3)
    """
    count, error, half = len(differences), None, None
    if count > 1:
        from scipy import stats  # only reports need it, not training

        error = statistics.stdev(differences) / math.sqrt(count)
        half = float(stats.t.ppf(0.975, count - 1)) * error
    return {
        "pairs": count,
        "mean": statistics.fmean(differences),
        "error": error,
        "half_width": half,
        "above": sum(each > 0 for each in differences),
        "below": sum(each < 0 for each in differences),
    }


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """Merge several seeds of one experiment and mode into one entry: their spread, and each seed's numbers.

    Args:
        results: contents of `result.json`, at least one.
    """
    keys = ("accuracy", "params", "seconds")
    return {
        "runs": len(results),
        **{key: spread([result[key] for result in results]) for key in keys},
        "seeds": [
            {key: result[key] for key in ("seed", *keys, "params_with_biases", "macs", "architecture")}
            for result in results
        ],
    }


def percent(share: float, digits: int = 2) -> str:
    """Write a share as a percentage.

    Args:
        share: 1 is all.
        digits: decimals.

    Example:
        >>> percent(0.994)
        '99.40%'
    """
    return f"{100 * share:.{digits}f}%"


def percent_spread(accuracy: Mapping[str, float], bold: bool = True) -> str:
    """Write the mean of shares as a percentage, with their standard deviation if there is more than one.

    Args:
        accuracy: as `spread` gives it.
        bold: emphasise the mean.

    Example:
        >>> percent_spread({"mean": 0.99, "std": 0.001})
        '**99.00%** ± 0.10'
    """
    return _spread(percent(accuracy["mean"]), f"{100 * accuracy['std']:.2f}", accuracy, bold)


def number_spread(values: Mapping[str, float], digits: int = 0, bold: bool = False) -> str:
    """Write a mean, with its standard deviation if there is more than one value.

    Args:
        values: as `spread` gives it.
        digits: decimals.
        bold: emphasise the mean.

    Example:
        >>> number_spread({"mean": 1250.4, "std": 12.0}), number_spread(spread([7.0]), 1)
        ('1,250 ± 12', '7.0')
    """
    return _spread(f"{values['mean']:,.{digits}f}", f"{values['std']:,.{digits}f}", values, bold)


def _spread(mean: str, deviation: str, values: Mapping[str, float], bold: bool) -> str:
    mark = "**" if bold else ""
    return f"{mark}{mean}{mark}" + ("" if values.get("n") == 1 else f" ± {deviation}")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a table in Markdown; all columns but the first are right-aligned.

    Args:
        header: one title per column.
        rows: one cell per column each.

    Example:
        >>> print(markdown_table(["mode", "params"], [["expand", 24]]))
        | mode | params |
        | --- | ---: |
        | expand | 24 |
    """
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def seeds_table(modes: Mapping[str, Mapping[str, Any]]) -> str:
    """Write every seed of every mode, and the mean of each mode with its standard deviation, in Markdown.

    Args:
        modes: mode -> entry, as `summarise` gives it.
    """
    rows: list[list[object]] = []
    for mode, entry in modes.items():
        for seed in entry["seeds"]:
            accuracy, seconds = percent(seed["accuracy"]), f"{seed['seconds']:.1f}"
            rows.append([mode, seed["seed"], accuracy, seed["params"], seed["architecture"], seconds])
        params, seconds = entry["params"], entry["seconds"]
        rows.append(
            [
                f"**{mode}**",
                f"n = {entry['runs']}",
                percent_spread(entry["accuracy"]),
                number_spread(params, 1, bold=True),
                "",
                number_spread(seconds, 1),
            ]
        )
    return markdown_table(["mode", "seed", "test accuracy", "parameters", "architecture", "seconds"], rows)


def ratio(first: float, second: float) -> float:
    """Return how many times the larger of two sizes exceeds the smaller, at least 1.

    Args:
        first: one size.
        second: the other size.
    """
    return math.inf if min(first, second) <= 0 else max(first, second) / min(first, second)
