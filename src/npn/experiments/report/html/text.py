"""Numbers, times and sizes as people read them, and pieces of HTML; whatever comes from a run is escaped."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from npn.experiments.report.html.run import number
from npn.experiments.report.scores import Score

UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))
MISSING = "–"


def quantity(value: Any) -> str:
    """Write a count: in full below ten million, else with a unit.

    Args:
        value: the count; anything but a finite number is missing.

    Example:
        >>> quantity(5040), quantity(5_019_586_110_000), quantity(None)
        ('5,040', '5.02 T', '–')
    """
    value = number(value)
    if value is None:
        return MISSING
    for size, unit in UNITS:
        if abs(value) >= max(size, 1e7):
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def share(value: Any) -> str:
    """Write a share as a percentage with at least two digits that count.

    Args:
        value: 1 is all; anything but a finite number is missing.

    Example:
        >>> share(0.9911), share(0.00341), share(1.0), share(12.5)
        ('99.11%', '0.34%', '100%', '1,250%')
    """
    value = number(value)
    if value is None:
        return MISSING
    percent = f"{100 * value:,.0f}" if abs(value) >= 10 else f"{100 * value:.2f}"
    return f"{percent.removesuffix('.00')}%"


def rating(score: Score, value: Any) -> str:
    """Write how good a network is; the unit of a loss stands elsewhere.

    Args:
        score: kind of the number.
        value: the number; anything but a finite number is missing.

    Example:
        >>> from npn.experiments.report.scores import ACCURACY, BITS
        >>> rating(ACCURACY, 0.9911), rating(BITS, 2.0), rating(BITS, None)
        ('99.11%', '2.000', '–')
    """
    value = number(value)
    return MISSING if value is None else score.text(value).removesuffix(f" {score.unit}")


def duration(seconds: Any) -> str:
    """Write a time.

    Args:
        seconds: its length; anything but a finite number is missing.

    Example:
        >>> duration(3.21), duration(439.6), duration(7260)
        ('3.2 s', '7 min 20 s', '2 h 1 min')
    """
    seconds = number(seconds)
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def setting(value: Any) -> str:
    """Write the value of a setting.

    Args:
        value: as JSON has it.

    Example:
        >>> setting(None), setting(True), setting(5320.0), setting({"rate": 0.1})
        ('–', 'yes', '5320', '{"rate": 0.1}')
    """
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def card(title: str, value: str, notes: Iterable[str] = ()) -> str:
    """Make a summary card.

    Args:
        title: what it shows.
        value: the figure.
        notes: lines below.
    """
    lines = "".join(f"<p>{escape(note)}</p>" for note in notes if note)
    long = " class=long" if len(value) > 14 else ""
    return f"<article class=card><h3>{escape(title)}</h3><strong{long}>{escape(value)}</strong>{lines}</article>"


def section(key: str, title: str, content: str, lead: str = "") -> str:
    """Make a section of the page.

    Args:
        key: its anchor.
        title: above it.
        content: HTML.
        lead: a sentence below the title.
    """
    lead = f"<p class=lead>{escape(lead)}</p>" if lead else ""
    heading = f'<h2 id="{key}-title">{escape(title)}</h2>'
    return f'<section id="{key}" aria-labelledby="{key}-title">{heading}{lead}{content}</section>'


def table(
    label: str, header: Sequence[str], rows: Iterable[Sequence[Any]], *, words: int = 1, sortable: bool = False
) -> str:
    """Make a table that scrolls sideways where it is too wide, by keyboard as well.

    Args:
        label: says what it holds.
        header: titles of the columns.
        rows: cells, each a text or `(sort key, HTML)`.
        words: number of columns, from the left, that hold words; the others hold numbers.
        sortable: a click on a title sorts.
    """

    def cell(index: int, value: Any) -> str:
        key, content = value if isinstance(value, tuple) else (None, escape(str(value)))
        kind = "" if index < words else " class=n"
        order = "" if key is None else f' data-key="{escape(str(key))}"'
        tag, scope = ("th", " scope=row") if index == 0 else ("td", "")
        return f"<{tag}{scope}{kind}{order}>{content}</{tag}>"

    def title(index: int, text: str) -> str:
        content = f"<button type=button>{escape(text)}</button>" if sortable else escape(text)
        return f"<th scope=col{'' if index < words else ' class=n'}>{content}</th>"

    head = "".join(title(index, text) for index, text in enumerate(header))
    body = "".join(f"<tr>{''.join(cell(i, value) for i, value in enumerate(row))}</tr>" for row in rows)
    kind = " class=sortable" if sortable else " class=pairs" if len(header) == 2 else ""
    return (
        f'<div class=scroll tabindex=0 role=region aria-label="{escape(label)}">'
        f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
