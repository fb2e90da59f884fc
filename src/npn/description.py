"""What a handle looks like: in one line, and as HTML in a notebook."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import nn

from npn._utils.display import html_details, html_table
from npn.counting import count_params
from npn.gates import Gates, UnitGroup
from npn.penalty import CostTerm
from npn.structure import Frozen

SHOWN = 8  # groups in the line
ROWS = 100  # groups, and frozen dimensions, in a table


class Described(Protocol):
    """What is read of a handle."""

    penalty: CostTerm
    gates: Gates

    @property
    def model(self) -> nn.Module: ...
    @property
    def k(self) -> float: ...
    @property
    def groups(self) -> Sequence[UnitGroup]: ...
    @property
    def frozen(self) -> Sequence[Frozen]: ...
    def sizes(self) -> Mapping[str, int]: ...


def line(plastic: Described, params: int, at_attach: int) -> str:
    """Describe a handle in one line.

    Args:
        plastic: the handle.
        params: present number of parameters.
        at_attach: number of parameters when it was made.
    """
    about = f"{params:,} of {at_attach:,} at attach"
    about += f", unstructured={plastic.gates.weights}" if plastic.gates.weights else ""
    groups = dict(list(plastic.sizes().items())[:SHOWN])
    more = f" and {len(plastic.groups) - len(groups)} more" if len(plastic.groups) > len(groups) else ""
    return f"Plasticity(k={plastic.k:g}, params={about}, groups={groups}{more}, penalty={plastic.penalty!r})"


def html(plastic: Described, at_attach: int) -> str:
    """Write a handle as HTML: a row per group, and the frozen dimensions with reasons below.

    Args:
        plastic: the handle.
        at_attach: number of parameters when it was made.
    """
    sizes = plastic.sizes()
    rows = [
        [group.name, f"{group.size:,}", f"{sizes[group.name]:,}", f"{float(pi.mean()):.2f}" if len(pi) else ""]
        for group in plastic.groups[:ROWS]
        for pi in [group.gate.keep_probability().detach()]
    ]
    params = f"{count_params(plastic.model):,} of {at_attach:,} parameters at attach"
    title = f"Plasticity: k = {plastic.k:g}, {params}, {plastic.penalty!r}"
    header = ["group", "units>", "open>", "mean keep probability>"]
    page = html_table((title, header, rows)) + _more(len(plastic.groups))
    if plastic.frozen:
        reasons = [[f.name, f"{f.size:,}", f.reason] for f in plastic.frozen[:ROWS]]
        table = html_table(("", ["dimension", "size>", "reason"], reasons)) + _more(len(plastic.frozen))
        page += html_details(f"{len(plastic.frozen)} dimensions keep their size", table)
    return page


def _more(count: int) -> str:
    return f"<p>and {count - ROWS:,} more</p>" if count > ROWS else ""
