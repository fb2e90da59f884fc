"""Report the parts of a model that can be resized, those that cannot with reasons, and the cost of each part."""

import contextlib
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from npn.counting import count_macs, count_params
from npn.gates.costing import CostModel
from npn.masking.calls import attached_parts
from npn.structure import Group
from npn.tracing import trace

_MIXES = re.compile(r"(\w+) mixes every unit of the axis at (\S+)")  # see `tracing.rules.Call.mixes`


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

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain values, for JSON."""
        return asdict(self)


def inspect(
    model: nn.Module,
    example_inputs: Any,
    *,
    only: str | Iterable[str] | None = None,
    skip: str | Iterable[str] | None = None,
) -> Inspection:
    """Trace a model and compute the cost of its groups; the model is unchanged afterwards.

    Args:
        model: any module whose forward pass can be traced.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        only, skip: patterns of group names, as for `npn.attach`.

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
        structure = trace(model, example_inputs, only=only, skip=skip)
    seconds = time.perf_counter() - start
    costs = CostModel(model, structure, [g.name for g in structure.groups], torch.device("cpu"))

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
