"""Tables as plain text and as HTML."""

import textwrap
from collections.abc import Sequence
from html import escape

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, header, rows


def text_table(table: Table, width: int) -> str:
    """Write a table as text; columns after the first whose header ends in ">" are flush right.

    Args:
        table: title, header and rows of cells.
        width: of a line, in characters; the last column is folded to it where at least 20 characters are left for it.

    Example:
        >>> print(text_table(("sizes", ["name", "units>"], [["fc1", "12"], ["fc2", "3"]]), 40))
        sizes
        name  units
        ----  -----
        fc1      12
        fc2       3
    """
    title, header, rows = table
    right = [name.endswith(">") for name in header]
    lines = [[name.removesuffix(">") for name in header], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    left = width - sum(widths[:-1]) - 2 * (len(widths) - 1)
    widths[-1] = min(widths[-1], max(20, left))

    def written(cells: Sequence[str]) -> list[str]:
        folded = textwrap.wrap(cells[-1], widths[-1]) or [""]
        first = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(cells, widths, right, strict=True)][:-1]
        last = [part.rjust(widths[-1]) if right[-1] else part for part in folded]
        indent = "".ljust(sum(widths[:-1]) + 2 * (len(widths) - 1))
        return ["  ".join([*first, last[0]]).rstrip(), *(f"{indent}{part}".rstrip() for part in last[1:])]

    rule = "  ".join("-" * w for w in widths)
    body = [line for cells in rows for line in written(cells)]
    return "\n".join([title, *written(lines[0]), rule, *body])


def html_table(table: Table) -> str:
    """Write a table as HTML, with every text escaped, in the colours of the page.

    Args:
        table: title, header and rows of cells; see `text_table`.

    Example:
        >>> html_table(("a < b", ["n>"], [["1"]]))[:38]
        '<table><caption style="text-align:left'
        >>> "a &lt; b" in html_table(("a < b", ["n>"], [["1"]]))
        True
    """
    title, header, rows = table
    sides = ["right" if name.endswith(">") else "left" for name in header]

    def line(cells: Sequence[str], tag: str) -> str:
        inside = (
            f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>' for cell, side in zip(cells, sides, strict=True)
        )
        return f"<tr>{''.join(inside)}</tr>"

    head = line([name.removesuffix(">") for name in header], "th")
    body = "".join(line(cells, "td") for cells in rows)
    caption = f'<caption style="text-align:left">{escape(title)}</caption>'
    return f"<table>{caption}<thead>{head}</thead><tbody>{body}</tbody></table>"


def html_details(summary: str, inside: str) -> str:
    """Write HTML that a click opens.

    Args:
        summary: text of the closed state; escaped.
        inside: HTML.
    """
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"
