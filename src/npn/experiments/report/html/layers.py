"""Sections of the page of one run: its architecture and gates over time, and its layers at the end."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from npn.experiments.report.html.run import Run, names, number
from npn.experiments.report.html.text import MISSING, quantity, section, share, table

MANY = 12  # layers; so many share one picture of their gates


def architecture(shown: Mapping[str, Any]) -> str:
    """Make the section with one bar per layer, and a slider over the epochs.

    Args:
        shown: from `moments`.
    """
    jumps = "".join(
        f'<button type=button data-moment="{moment}">{escape(label)}</button>'
        for moment, label in [[0, "first epoch"], *shown["jumps"]]
    )
    bars = "".join(
        f"<li><span class=layer>{escape(layer['name'])}</span><span class=track>"
        "<span class=before></span><span class=now></span></span><span class=count></span></li>"
        for layer in shown["layers"]
    )
    fixed = all(len({layer["start"], layer["most"], *layer["units"]}) == 1 for layer in shown["layers"])
    scales = {"share": "share of the layer's most", "count": "number of units"}
    radios = "".join(
        f"<label><input type=radio name=scale value={value}{' checked' * ((value == 'count') == fixed)}> {text}</label>"
        for value, text in scales.items()
    )
    choice = f"<fieldset class=choice><legend>Length of a bar</legend>{radios}</fieldset>"
    content = (
        f"{_slider(shown, 'architecture-slider', 'Epoch that the architecture is shown at')}"
        f"<div class=bar><div class=jumps>{jumps}</div>{choice}</div>"
        f'<div class=panel><ol class=layers id=layers>{bars}</ol><p class=key><span class="swatch now"></span> open '
        'at this epoch <span class="swatch before"></span> after the first epoch</p></div>'
    )
    return section("architecture", "Architecture", content)


def _slider(shown: Mapping[str, Any], key: str, label: str) -> str:
    last = len(shown["epochs"]) - 1
    return (
        f'<div class=slider><label for="{key}">{escape(label)}</label>'
        f'<input type=range id="{key}" class=moment min=0 max={last} value={last} step=1>'
        f'<output for="{key}" class=caption></output></div>'
    )


def gates(shown: Mapping[str, Any]) -> str:
    """Make the section with a histogram of keep probabilities per layer, and a slider.

    Args:
        shown: from `moments`.
    """
    if not shown["keep"]:
        return section("gates", "Gates", "<p>No gate has moved: every epoch so far was one of k = ∞.</p>")
    slider = _slider(shown, "gates-slider", "Epoch that the gates are shown at")
    if len(shown["keep"]) > MANY:
        height = 22 * len(shown["keep"]) + 60
        label = "Share of each layer's units by keep probability"
        box = f'<div class=chart id=all-gates style="height:{height}px" role=img aria-label="{label}"></div>'
        lead = "Units of each layer by keep probability; the stronger the colour, the more. Grey: those that are gone."
        return section("gates", "Gates", f"{slider}<figure class=panel>{box}</figure>", lead)
    boxes = "".join(
        f"<figure class=panel><figcaption>{escape(name)}</figcaption>"
        f'<div class="chart histogram" id="gate-{index}" role=img aria-label="Gates of {escape(name)}"></div>'
        "</figure>"
        for index, name in enumerate(shown["keep"])
    )
    lead = "Units by keep probability; the grey bar counts those that are gone."
    return section("gates", "Gates", f'{slider}<div class="grid small">{boxes}</div>', lead)


def layers(run: Run) -> str:
    """Make the section with a table of layers and one of the exported model's tensors.

    Args:
        run: with at least one row.
    """
    rows: list[Sequence[Any]] = []
    for key, unit in (("units", "units"), ("layers", "weights")):
        for name in names(run.rows, key):
            counts = [number((row.get(key) or {}).get(name)) or 0 for row in run.rows]
            keep = (run.rows[-1].get("keep") or {}).get(name) if key == "units" else None
            between = sum(keep[1:-1]) if keep else MISSING
            rows.append(
                (name, unit, *map(quantity, (counts[0], max(counts), counts[-1])),
                 share(counts[-1] / max(counts) if max(counts) else None), between)
            )  # fmt: skip
    header = ("layer", "counts", "first epoch", "most", "last epoch", "of the most", "undecided")
    content = table("Units of each layer", header, rows, words=2)
    if run.tensors:
        content += f"<h3>Tensors of the exported model</h3>{_tensors(run)}"
    return section("layers", "Layers", content, "Undecided: keep probability from 5% to 95% after the last epoch.")


def _tensors(run: Run) -> str:
    total = sum(math.prod(shape) for shape, _ in run.tensors.values())
    rows = [
        (
            name,
            " × ".join(map(str, shape)) or "scalar",
            quantity(math.prod(shape)),
            quantity(left),
            share(math.prod(shape) / total),
        )
        for name, (shape, left) in run.tensors.items()
    ]
    return table("Tensors of the exported model", ("tensor", "shape", "entries", "not zero", "of all"), rows, words=2)
