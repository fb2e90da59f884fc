"""The page of one run."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from npn.experiments.report.console import sharpness
from npn.experiments.report.html.charts import curves
from npn.experiments.report.html.layers import architecture, gates, layers
from npn.experiments.report.html.moments import moments
from npn.experiments.report.html.page import page
from npn.experiments.report.html.record import pictures, record
from npn.experiments.report.html.run import Run, number, stages
from npn.experiments.report.html.text import MISSING, card, duration, quantity, rating, section, share, table
from npn.experiments.report.scores import Score


def run_page(run: Run) -> str:
    """Make the page of a run, finished or not.

    Args:
        run: to show.

    Returns:
        HTML; it refers to no other file.
    """
    about = [run.last.get("experiment") or run.experiment, run.mode, f"seed {run.options.get('seed', MISSING)}"]
    lead = f"<p class=lead>{escape(' · '.join(str(part) for part in about if part))}</p>{_state(run)}"
    parts = [section("summary", "Summary", f"<div class=cards>{''.join(_cards(run))}</div>{_stages(run)}")]
    data: dict[str, Any] = {"charts": []}
    if run.rows:
        charts = curves(run)
        data = {"charts": charts, "moments": moments(run.rows)}
        parts += [_curves(run, charts), architecture(data["moments"]), gates(data["moments"]), layers(run)]
    return page(run.name, lead, [*parts, *pictures(run), *record(run)], data)


def chart_boxes(charts: Sequence[Mapping[str, Any]], wide: bool = False) -> str:
    """Make the boxes that the scripts draw charts into.

    Args:
        charts: from `charts`.
        wide: one below the other.
    """
    hint = "Arrow keys move along the epochs."
    boxes = "".join(
        f"<figure class=panel><figcaption>{escape(each['title'])}</figcaption>"
        f'<div class=chart id="chart-{each["id"]}" tabindex=0 role=group '
        f'aria-label="{escape(each["title"])}. {hint}"></div></figure>'
        for each in charts
    )
    return f'<div class="grid{" wide" * wide}">{boxes}</div><p class=unseen aria-live=polite id=reading></p>'


def _state(run: Run) -> str:
    if run.finished:
        return ""
    again = f"npn run {run.experiment or 'EXPERIMENT'} --resume --out {shlex.quote(str(run.path))}"
    return (
        f"<p class=note><b>Not finished:</b> {len(run.rows)} epochs so far. "
        f"<code>{escape(again)}</code> goes on from the last checkpoint.</p>"
    )


def _cards(run: Run) -> list[str]:
    last, first, dense = run.last, run.first, run.dense.last if run.dense else {}
    score, was = run.score, first.get("architecture")
    macs, full = last.get("macs"), last.get("macs_at_start", first.get("macs"))
    whole = (last.get("base") or {}).get("macs")  # where the result knows the full net, and the run began with less
    trained, there = run.training_macs, run.dense.training_macs if run.dense else None
    return [
        card(f"Test {score.label.removesuffix(' in %')}", rating(score, last.get(score.key)), [
            f"validation {rating(score, last.get(score.keys[1]))}",
            _difference(score, last.get(score.key), dense.get(score.key)),
        ]),
        card("Parameters", quantity(last.get("params")), [
            _since(last.get("params"), first.get("params")), _against(last.get("params"), dense.get("params")),
            f"{quantity(last['params_with_biases'])} with biases" if "params_with_biases" in last else "",
        ]),
        card("MACs per example", quantity(macs), [
            _since(macs, full), _against(macs, dense.get("macs")),
            "" if dense or whole == full else _against(macs, whole, where="in the full net"),
        ]),
        card("MACs of the training", quantity(trained), [_against(trained, there)]),
        card("Time", duration(last.get("seconds")), [
            f"{len(run.rows):,} epochs", _against(last.get("seconds"), dense.get("seconds"), duration),
        ]),
        card("Architecture", str(last.get("architecture", MISSING)), [
            f"from {was}" if was and was != last.get("architecture") else "",
        ]),
    ]  # fmt: skip


def _since(value: Any, start: Any) -> str:
    """Compare with the start: a share after shrinking, the size there after growing, nothing if it is the same."""
    value, start = number(value), number(start)
    if value is None or not start or value == start:
        return ""
    return f"{share(value / start)} of {quantity(start)} at the start" if value < start else f"from {quantity(start)}"


def _against(value: Any, dense: Any, write: Callable[[Any], str] = quantity, where: str = "in the dense run") -> str:
    """Compare with the dense run."""
    value, dense = number(value), number(dense)
    return f"{share(value / dense)} of {write(dense)} {where}" if value is not None and dense else ""


def _difference(score: Score, value: Any, dense: Any) -> str:
    """Compare the score with the dense run."""
    value, dense = number(value), number(dense)
    if value is None or dense is None:
        return ""
    difference = f"{score.factor * (value - dense):+.{score.digits}f}".replace("-", "−")
    return f"{difference} {score.unit} against the dense run"


def _stages(run: Run) -> str:
    ended, score = run.result.get("stages") or [], run.score
    rows = [
        (
            stage.get("stage", ""), stage.get("architecture", MISSING), stage.get("epochs", MISSING),
            sharpness(stage.get("k", "inf")), *(rating(score, stage.get(key)) for key in score.keys),
            quantity(stage.get("params")), duration(stage.get("seconds")),
        )
        for stage in ended
    ]  # fmt: skip
    header = ("stage", "architecture", "epochs", "sharpness", "test", "validation", "parameters", "time")
    return f"<h3>Stages</h3>{table('Stages of the run', header, rows, words=2)}" if rows else ""


def _curves(run: Run, charts: Sequence[Mapping[str, Any]]) -> str:
    keys = "".join(
        f"<li class=stage{index % 3}>{escape(name)} <span>{_epochs(start, stop)}, {escape(sharpness(k))}</span></li>"
        for index, (name, start, stop, k) in enumerate(stages(run.rows))
    )
    content = f'<ul class=stages aria-label="Stages">{keys}</ul>{chart_boxes(charts)}'
    return section("curves", "Curves", content)


def _epochs(start: int, stop: int) -> str:
    return f"epoch {start}" if start == stop else f"epochs {start}–{stop}"
