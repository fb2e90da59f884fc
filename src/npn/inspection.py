"""Report the parts of a model that can be resized, those that cannot with reasons, and the cost of each part."""

import contextlib
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import torch
from torch import nn

from npn._utils.display import Table, html_table, text_table
from npn._utils.naming import joined, pattern
from npn.counting import count_macs, count_params
from npn.gates.costing import CostModel
from npn.masking.calls import attached_parts
from npn.structure import MIXES, Group
from npn.tracing import trace

_MIXES = re.compile(rf"(\w+) {MIXES} at (\S+)")  # see `tracing.rules.Call.mixes`


@dataclass(frozen=True)
class GroupRow:
    """One group of units.

    Attributes:
        name: module that produces the units.
        units: number of units.
        params, macs: cost of the whole group; two groups share the weights between them, so these do not add up.
        produced_by, read_by: `tensor[axis]` of every slot.
        follows: integer attributes that change with the size.
    """

    name: str
    units: int
    params: int
    macs: int
    produced_by: tuple[str, ...]
    read_by: tuple[str, ...]
    follows: tuple[str, ...]


@dataclass(frozen=True)
class FrozenRow:
    """One dimension that keeps its size.

    Attributes:
        name: `tensor[axis]` of the first slot it occupies.
        size: number of entries along it.
        reason: cause, op and source line.
        places: `tensor[axis]` of every slot.
    """

    name: str
    size: int
    reason: str
    places: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """Result of `inspect`.

    Attributes:
        groups: units that can be resized.
        frozen: dimensions that cannot be resized.
        params, macs: cost of the whole model; MACs for all the given inputs.
        seconds: duration of tracing.
    """

    groups: tuple[GroupRow, ...]
    frozen: tuple[FrozenRow, ...]
    params: int
    macs: int
    seconds: float

    @property
    def norm(self) -> str | None:
        """The op that keeps most channels by making one unit of them, as a norm over all channels does, in a line."""
        kept: dict[str, tuple[int, list[str]]] = {}
        for row in self.frozen:
            found = _MIXES.search(row.reason)
            if found:
                total, lines = kept.get(found[1], (0, []))
                kept[found[1]] = (total + row.size, [*lines, found[2]])
        if not kept:
            return None
        op, (total, lines) = max(kept.items(), key=lambda item: item[1][0])
        places = list(dict.fromkeys(lines))
        rest = f" and {len(places) - 1} more" if len(places) > 1 else ""
        return f"{op} at {places[0]}{rest} is over all channels of a stream, which keeps {total:,} of them"

    def table(self, title: str = "", *, everything: bool = False, width: int | None = None) -> str:
        """Write the groups, and the frozen dimensions with reasons, as text.

        Args:
            title: put before the size of the model.
            everything: a line for each group; else, layers that differ in a number of their name alone share one.
            width: of a line, in characters; None for that of the terminal.

        Example:
            >>> block = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
            >>> found = inspect(nn.Sequential(block(), block(), block()), torch.zeros(1, 4), only="*.0")
            >>> print("\\n".join(found.table(width=100).splitlines()[:4]))
            228 parameters, 192 MACs
            group  units  parameters    MACs  read by          follows
            -----  -----  ----------  ------  ---------------  -------
            0-2.0  3 x 8      3 x 72  3 x 64  0-2.2.weight[1]
        """
        return listing(self, title, everything, width or shutil.get_terminal_size().columns)

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return "".join(html_table(table) for table in tables(self, "", False)) + f"<p>{escape(end(self))}</p>"

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain values, for JSON."""
        return asdict(self)


def listing(found: Inspection, title: str, everything: bool, width: int) -> str:
    """Write a report as text, see `Inspection.table`."""
    return "\n\n".join([*(text_table(table, width) for table in tables(found, title, everything)), end(found)])


def end(found: Inspection) -> str:
    """Write the lines below the tables."""
    counts = f"{len(found.groups)} groups, {len(found.frozen)} frozen dimensions, traced in {found.seconds:.1f} s"
    return counts if found.norm is None else f"{found.norm}\n{counts}"


def tables(found: Inspection, title: str, everything: bool) -> tuple[Table, Table]:
    """Make the cells of both tables: groups, frozen dimensions; see `Inspection.table`."""
    alike: dict[Any, list[GroupRow]] = {}
    for i, row in enumerate(found.groups):
        names = tuple(map(pattern, (row.name, *row.read_by, *row.follows)))
        key = i if everything else (names, len(row.read_by), row.units, row.params, row.macs)
        alike.setdefault(key, []).append(row)
    kept: dict[Any, list[FrozenRow]] = {}
    for i, line in enumerate(found.frozen):
        kept.setdefault(i if everything else (pattern(line.name), line.size, line.reason), []).append(line)
    size = f"{found.params:,} parameters, {found.macs:,} MACs"
    groups = [
        [
            joined([row.name for row in rows]),
            *(times(len(rows), number) for number in (rows[0].units, rows[0].params, rows[0].macs)),
            few([joined(names) for names in zip(*(row.read_by for row in rows), strict=True)]),
            few([joined(names) for names in zip(*(row.follows for row in rows), strict=True)]),
        ]
        for rows in alike.values()
    ]
    frozen = [
        [joined([line.name for line in lines]), times(len(lines), lines[0].size), lines[0].reason]
        for lines in kept.values()
    ]
    return (
        (
            f"{title}: {size}" if title else size,
            ["group", "units>", "parameters>", "MACs>", "read by", "follows"],
            groups,
        ),
        ("keeps its size", ["dimension", "size>", "reason"], frozen),
    )


def times(count: int, number: int) -> str:
    """Write a number that so many layers share.

    Args:
        count: of the layers.
        number: of each of them.

    Example:
        >>> times(12, 3072), times(1, 3072)
        ('12 x 3,072', '3,072')
    """
    return f"{count} x {number:,}" if count > 1 else f"{number:,}"


def few(names: Sequence[str], most: int = 2) -> str:
    """Join the first names, and add the number of the others; `as_dict` has them all.

    Args:
        names: to join.
        most: number of names to join.

    Example:
        >>> few(["a", "b", "c", "d", "e"])
        'a, b and 3 more'
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def inspect(
    model: nn.Module,
    example_inputs: Any,
    *,
    only: str | Iterable[str] | None = None,
    skip: str | Iterable[str] | None = None,
    streams: bool = False,
) -> Inspection:
    """Trace a model and compute the cost of its groups; the model is unchanged afterwards.

    Args:
        model: any module whose forward pass can be traced.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        only, skip: patterns of group names, as for `npn.attach`.
        streams: whether channels under a norm count as resizable, as for `npn.attach`.

    Returns:
        The report.

    Raises:
        TraceError: tracing cannot follow the forward pass.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> row = inspect(model, torch.zeros(1, 4)).groups[0]
        >>> row.name, row.units, row.params, row.macs
        ('0', 8, 56, 48)
    """
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        for call in attached_parts(model).values():  # gates that it has already are left out
            stack.enter_context(call.weights.step())
        structure = trace(model, example_inputs, only=only, skip=skip, streams=streams)
    seconds = time.perf_counter() - start
    costs = CostModel(model, structure, torch.device("cpu"))

    def carried(kind: str, group: Group) -> int:
        return round(costs.at(kind, {}) - costs.at(kind, {group.name: 0.0}))

    groups = tuple(
        GroupRow(
            group.name,
            group.size,
            carried("params", group),
            carried("macs", group),
            tuple(f"{s.tensor}[{s.axis}]" for s in group.slots if not s.reads),
            tuple(f"{s.tensor}[{s.axis}]" for s in group.slots if s.reads),
            tuple(f"{path}.{name}".lstrip(".") for path, name, _ in group.attributes),
        )
        for group in structure.groups
    )
    frozen = tuple(
        FrozenRow(f.name, f.size, f.reason, tuple(f"{tensor}[{axis}]" for tensor, axis in f.slots))
        for f in structure.frozen
    )
    return Inspection(groups, frozen, count_params(model), count_macs(model, example_inputs), round(seconds, 3))
