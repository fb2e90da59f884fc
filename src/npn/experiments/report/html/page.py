"""Puts a page together: styles, scripts, plotly and the data are written into the one file."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

SCRIPTS = ("theme.js", "charts.js", "moments.js", "tables.js")


def page(title: str, lead: str, sections: Sequence[str], data: Mapping[str, Any]) -> str:
    """Make a page.

    Args:
        title: of the page.
        lead: HTML below the title.
        sections: HTML of each, see `text.section`.
        data: what the scripts draw.

    Returns:
        HTML; it refers to no other file.
    """
    return Template(_asset("page.html")).substitute(
        title=escape(title),
        lead=lead,
        style=_asset("page.css"),
        sections="\n".join(sections),
        data=embedded(data),
        library=get_plotlyjs(),
        script="\n".join(map(_asset, SCRIPTS)),
    )


def embedded(data: Any) -> str:
    """Write JSON that can stand within `<script>`: no text in it ends the element, and numbers are finite.

    Args:
        data: as `json.dumps` takes it; numbers that are not finite become null.

    Example:
        >>> embedded({"name": "</script>", "loss": float("nan")})
        '{"name":"\\\\u003c/script\\\\u003e","loss":null}'
    """
    text = json.dumps(_finite(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _asset(name: str) -> str:
    return resources.files("npn.experiments.report.html").joinpath("assets", name).read_text(encoding="utf-8")
