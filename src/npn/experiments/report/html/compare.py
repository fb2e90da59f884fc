"""The page that compares runs: frontier, table, curves, differences in settings."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from os.path import commonpath
from typing import Any
from urllib.parse import quote

from npn.experiments.report.html.charts import Chart, chart, colours, line, sentence
from npn.experiments.report.html.page import page
from npn.experiments.report.html.run import Run, number
from npn.experiments.report.html.single import chart_boxes
from npn.experiments.report.html.text import MISSING, duration, quantity, rating, section, setting, table

SIZES: dict[str, tuple[str, Callable[[Run], Any]]] = {
    "params": ("parameters", lambda run: run.last.get("params")),
    "macs": ("MACs per example", lambda run: run.last.get("macs")),
    "training": ("MACs of the training", lambda run: run.training_macs),
    "seconds": ("seconds", lambda run: run.last.get("seconds")),
}


def comparison_page(runs: Sequence[Run], links: Sequence[str | None]) -> str:
    """Make the page that compares runs.

    Args:
        runs: at least two, finished or not.
        links: path of each run's own page, relative to this one, if it has one.

    Returns:
        HTML.
    """
    labels, kinds, score = _labels(runs), _kinds(runs), runs[0].score
    shades, of = _colours(labels, kinds)
    charts = [_frontier(runs, labels, kinds), *_curves(runs, labels, shades)]
    unfinished = sum(not run.finished for run in runs)
    experiments = sorted({str(run.experiment) for run in runs if run.experiment})
    lead = f"<p class=lead>{escape(', '.join(experiments))}</p>"
    if unfinished:
        lead += f"<p class=note>Not finished: {unfinished} of the runs. Their last epoch counts.</p>"
    if len(experiments) > 1:
        lead += "<p class=note>These runs are of several experiments: their scores are of different data.</p>"
    choices = "".join(f'<option value="{key}">{escape(title)}</option>' for key, (title, _) in SIZES.items())
    over = f"<p class=choice><label for=over>Size:</label> <select id=over>{choices}</select></p>"
    sections = [
        section(
            "summary", f"{sentence(score.name)} against size", over + chart_boxes(charts[:1], wide=True),
            f"Test {score.label}. The dashed line joins the runs that no other run beats in both.",
        ),
        section("runs", "Runs", _table(runs, labels, kinds, links)),
        section("curves", "Curves", _key(of) + chart_boxes(charts[1:])),
        *_settings(runs, labels),
    ]  # fmt: skip
    return page(f"{len(runs)} runs compared", lead, sections, {"charts": charts})


def frontier(points: Sequence[tuple[float, float]], rises: bool = True) -> list[tuple[float, float]]:
    """Return the points that no other point beats in both: smaller and better.

    Args:
        points: (size, score).
        rises: a higher score is better.

    Returns:
        By size; each is better than the one before.

    Example:
        >>> frontier([(3, 0.9), (1, 0.5), (2, 0.4), (4, 0.9)])
        [(1, 0.5), (3, 0.9)]
        >>> frontier([(1, 2.0), (2, 1.5), (3, 1.7)], rises=False)
        [(1, 2.0), (2, 1.5)]
    """
    sign = 1 if rises else -1
    best: list[tuple[float, float]] = []
    for size, score in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not best or sign * score > sign * best[-1][1]:
            best.append((size, score))
    return best


def _labels(runs: Sequence[Run]) -> list[str]:
    """Names of the folders, or paths from the folder that they share where names repeat."""
    named = [run.name for run in runs]
    if len(set(named)) == len(named):
        return named
    paths = [run.path.resolve() for run in runs]
    shared = commonpath(paths)
    return [str(path.relative_to(shared)) for path in paths]


def _kinds(runs: Sequence[Run]) -> list[str]:
    """Kind of each run: its mode, and its experiment where there are several."""
    several = len({run.experiment for run in runs if run.experiment}) > 1
    return [" ".join(part for part in (several and run.experiment, run.mode) if part) or "run" for run in runs]


def _colours(labels: Sequence[str], kinds: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Colour of each run, and what the colours stand for: kinds, or single runs where all are of one kind."""
    names = kinds if len(set(kinds)) > 1 else labels
    of = dict(zip(dict.fromkeys(names), colours(len(set(names))), strict=True))
    return [of[name] for name in names], of


def _key(of: Mapping[str, str]) -> str:
    """Legend of colours."""
    items = "".join(
        f'<li><span class=swatch style="background:{f"var({colour})" if colour.startswith("--") else colour}"></span>'
        f"{escape(name)}</li>"
        for name, colour in of.items()
    )
    return f'<ul class=legend aria-label="Colours">{items}</ul>'


def _frontier(runs: Sequence[Run], labels: Sequence[str], kinds: Sequence[str]) -> Chart:
    drawn = chart("frontier", f"Test {runs[0].score.label}", [], hovermode="closest", showlegend=True)
    choices = {key: _over(runs, labels, kinds, title, size) for key, (title, size) in SIZES.items()}
    first = next(iter(choices.values()))
    layout = drawn["layout"] | {"xaxis": first["xaxis"]}
    return {**drawn, "data": first["data"], "layout": layout, "choices": choices, "alone": True}


def _over(
    runs: Sequence[Run], labels: Sequence[str], kinds: Sequence[str], title: str, size: Callable[[Run], Any]
) -> Chart:
    score = runs[0].score
    points = [
        (kind, label, number(size(run)), number(run.last.get(score.key)), run.last.get("architecture", ""))
        for run, label, kind in zip(runs, labels, kinds, strict=True)
    ]
    known = [(kind, label, x, y, made) for kind, label, x, y, made in points if x is not None and y is not None]
    best = frontier([(x, y) for _, _, x, y, _ in known], score.rises)
    data: list[Chart] = [
        {
            "type": "scatter", "mode": "lines", "name": "frontier", "hoverinfo": "skip",
            "x": [x for x, _ in best], "y": [score.factor * y for _, y in best],
            "line": {"color": "--quiet", "width": 1.2, "dash": "dash"},
        }
    ]  # fmt: skip
    names = list(dict.fromkeys(kinds))
    for kind, colour in zip(names, colours(len(names)), strict=True):
        own = [point for point in known if point[0] == kind]
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": kind, "marker": {"color": colour, "size": 9},
                "x": [point[2] for point in own], "y": [score.factor * point[3] for point in own],
                "text": [f"{escape(point[1])}<br>{escape(str(point[4]))}" for point in own],
                "hovertemplate": f"%{{text}}<br>%{{y:.{score.digits}f}}, %{{x:,.4~s}} {title}<extra></extra>",
            }
        )  # fmt: skip
    return {"data": data, "xaxis": {"type": "log", "title": {"text": title}}}


def _curves(runs: Sequence[Run], labels: Sequence[str], shades: Sequence[str]) -> list[Chart]:
    charts = []
    score = runs[0].score
    kept = ((score.key, f"Test {score.label}", False, score.factor), ("params", "Parameters", True, 1))
    for key, title, log, factor in kept:
        lines = [
            line(run.rows, key, label, shade, factor=factor, step=log)
            for run, label, shade in zip(runs, labels, shades, strict=True)
        ]
        for each in filter(None, lines):
            each["hovertemplate"] = "epoch %{x}: %{y:,.5~g}<extra>%{fullData.name}</extra>"
            each["line"]["width"] = 1.3
        charts.append(chart(key, title, lines, log=log, hovermode="closest", showlegend=False))
    return charts


def _table(runs: Sequence[Run], labels: Sequence[str], kinds: Sequence[str], links: Sequence[str | None]) -> str:
    def figures(run: Run) -> list[tuple[Any, str]]:
        last = run.last
        written: list[tuple[Any, Callable[[Any], str]]] = [
            *((last.get(key), partial(rating, run.score)) for key in run.score.keys),
            (last.get("params"), quantity),
            (last.get("macs"), quantity), (run.training_macs, quantity), (last.get("seconds"), duration),
            (len(run.rows) or None, quantity),
        ]  # fmt: skip
        return [("" if number(value) is None else value, escape(write(value))) for value, write in written]

    rows = [
        [
            (label, escape(label) if link is None else f'<a href="{escape(quote(link))}">{escape(label)}</a>'),
            f"{kind}{'' if run.finished else ', not finished'}",
            str(run.last.get("architecture", MISSING)),
            setting(run.options.get("seed")),
            *figures(run),
        ]
        for run, label, kind, link in zip(runs, labels, kinds, links, strict=True)
    ]
    header = ("run", "kind", "architecture", "seed", "test", "validation", "parameters", "MACs", "training MACs")
    return table("Runs", (*header, "time", "epochs"), rows, words=3, sortable=True)


def _settings(runs: Sequence[Run], labels: Sequence[str]) -> list[str]:
    keys = list(dict.fromkeys(key for run in runs for key in run.options))
    values = {key: [setting(run.options.get(key)) for run in runs] for key in keys}
    differ = [key for key in keys if len(set(values[key])) > 1]
    rows = [[label, *(values[key][index] for key in differ)] for index, label in enumerate(labels)]
    alike = [(key, values[key][0]) for key in keys if key not in differ]
    different = (
        table("Settings that differ", ("run", *differ), rows, words=len(differ) + 1) if differ else "<p>None.</p>"
    )
    same = table("Settings that all share", ("setting", "value"), alike, words=2)
    return [section("settings", "Settings that differ", different), section("shared", "Settings that all share", same)]
