"""Specifications of plotly's charts: the curves of one run.

A colour that begins with "--" is a property of the page's style, which has one value for light and one for dark.
"""

import math
from collections.abc import Sequence
from typing import Any

from npn.experiments.report.html.run import Row, Run, names, series, stages

SERIES = ("--blue", "--orange", "--green", "--pink", "--sky", "--amber")  # of report/figures.py, for both schemes
QUIET = "--quiet"
FEW = 30  # epochs; so few are drawn with markers

Chart = dict[str, Any]


def curves(run: Run) -> list[Chart]:
    """Return the charts of a run over its epochs: score, loss, size, cost, units of each layer, k.

    Args:
        run: with at least one row.

    Returns:
        For each chart `id`, `title`, `data` and `layout`.
    """
    rows, score = run.rows, run.score
    shades = {"shapes": _shades(rows)}
    lines = [
        chart("score", sentence(score.label), [
            line(rows, score.keys[0], "test", "--blue", factor=score.factor),
            line(rows, score.keys[1], "validation", QUIET, factor=score.factor),
        ]),
        chart("size", "Parameters", [line(rows, "params", "without biases", "--blue", step=True)], log=True),
        chart("cost", "Expected cost" + " and the budget's bound" * any(series(rows, "bound")), [
            line(rows, "cost", "expected cost", "--blue"),
            line(rows, "bound", "bound of the budget", "--orange", dash=True),
        ], log=True),
        chart("units", "Open units of each layer", _by_layer(rows, "units"), log=True),
        chart("weights", "Open single weights of each layer", _by_layer(rows, "layers"), log=True),
        chart("loss", "Loss in nats", [
            line(rows, "loss", "training", "--orange"),
            line(rows, "validation_loss", "validation", QUIET),
        ], log=True),
        _sharpness(rows),
    ]  # fmt: skip
    kept = [each for each in lines if each["data"]]
    for each in kept:
        each["layout"] |= shades
    return kept


def chart(key: str, title: str, data: Sequence[Chart | None], *, log: bool = False, **layout: Any) -> Chart:
    """Return a chart over epochs.

    Args:
        key: of the chart in the page.
        title: above it.
        data: lines; None for one without numbers.
        log: the vertical axis is logarithmic.
        layout: further entries of plotly's layout.
    """
    drawn = [each for each in data if each]
    axis: Chart = {"type": "log", "exponentformat": "SI"} if log else {}
    return {
        "id": key,
        "title": title,
        "data": drawn,
        "layout": {
            "xaxis": {
                "title": {"text": "epoch"}, "unifiedhovertitle": {"text": "epoch %{x}"},
                "spikecolor": "--soft", "spikethickness": 1, "spikedash": "solid",
            },
            "yaxis": axis,
            "showlegend": 1 < len(drawn) <= len(SERIES),
            "hovermode": "x unified" if len(drawn) <= len(SERIES) else "closest",
            "hoverdistance": -1 if len(drawn) <= len(SERIES) else 20,  # however few epochs there are
            **layout,
        },
    }  # fmt: skip


def line(
    rows: Sequence[Row],
    key: str,
    name: str,
    colour: str,
    *,
    factor: float = 1.0,
    step: bool = False,
    dash: bool = False,
) -> Chart | None:
    """Return a line over epochs, or None if no row has its number.

    Args:
        rows: measurements, one row per epoch.
        key: of the number, see `run.series`.
        name: in the legend.
        colour: of the line.
        factor: to multiply with.
        step: the number jumps from epoch to epoch.
        dash: the line is dashed.
    """
    y = series(rows, key, factor)
    if all(value is None for value in y):
        return None
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(rows) <= FEW else "lines",
        "name": name,
        "x": [row.get("epoch", index) + 1 for index, row in enumerate(rows)],
        "y": y,
        "line": {
            "color": colour,
            "width": 1.8,
            "shape": "hvh" if step else "linear",
            "dash": "dash" if dash else "solid",
        },
        "marker": {"size": 5},
        "connectgaps": False,
        "hovertemplate": "%{y:,.5~g}",
    }


def sentence(text: str) -> str:
    """Begin with a capital.

    Args:
        text: to change.
    """
    return text[:1].upper() + text[1:]


def colours(count: int) -> list[str]:
    """Return colours to tell lines apart: distinct ones, or a gradient from first to last where there are many.

    Args:
        count: of the lines.
    """
    if count <= len(SERIES):
        return list(SERIES[:count])
    return [f"hsl({265 - 175 * index / (count - 1):.0f},55%,55%)" for index in range(count)]


def _by_layer(rows: Sequence[Row], key: str) -> list[Chart | None]:
    layers = names(rows, key)
    many = len(layers) > len(SERIES)
    lines = [
        line(rows, f"{key}/{name}", name, colour, step=True)
        for name, colour in zip(layers, colours(len(layers)), strict=True)
    ]
    for each in filter(None, lines):
        each["y"] = [value or None for value in each["y"]]  # no logarithm of 0; a layer may leave with its branch
        if many:
            each["hovertemplate"] = "epoch %{x}: %{y:,}<extra>%{fullData.name}</extra>"
    return lines


def _sharpness(rows: Sequence[Row]) -> Chart:
    """k over epochs, with infinity above all others."""
    ks = [float(row.get("k", "inf")) for row in rows]
    finite = sorted({k for k in ks if math.isfinite(k)})
    if not finite:
        return chart("k", "Sharpness k", [])
    top = 1.3 * max(1.0, finite[-1])
    drawn = line([{**row, "k": min(k, top)} for row, k in zip(rows, ks, strict=True)], "k", "k", "--blue", step=True)
    if drawn:
        drawn["text"] = [f"{k:g}" if math.isfinite(k) else "∞" for k in ks]
        drawn["hovertemplate"] = "%{text}"
    marks = finite if len(finite) <= 2 else [finite[0], finite[-1]]
    ticks = {"tickvals": [*marks, top], "ticktext": [*(f"{k:g}" for k in marks), "∞"], "range": [0, 1.15 * top]}
    return chart("k", "Sharpness k", [drawn], yaxis=ticks)


def _shades(rows: Sequence[Row]) -> list[Chart]:
    return [
        {
            "type": "rect", "layer": "below", "line": {"width": 0}, "fillcolor": f"--stage{index % 3}",
            "xref": "x", "x0": start - 0.5, "x1": stop + 0.5, "yref": "paper", "y0": 0, "y1": 1,
        }
        for index, (_, start, stop, _) in enumerate(stages(rows))
    ]  # fmt: skip
