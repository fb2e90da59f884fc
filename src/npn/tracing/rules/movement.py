"""Rules for ops that only move elements: they run on the labels themselves."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from npn._utils import cpu
from npn.tracing.labels import Part, Value, canonical, merge, squeeze_constant
from npn.tracing.labels.places import moved_alike, repeats, restrided
from npn.tracing.rules.call import Call, Rules, unknown

RULES = Rules()
_IN_ORDER = frozenset((  # elements stay in the order that they have in memory
    "view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "unsqueeze", "squeeze", "expand",
))  # fmt: skip
_WHOLE = 1 << 22  # elements of which each one is followed


@RULES.of(
    "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "unsqueeze", "squeeze", "select",
    "slice", "narrow", "expand", "flip", "roll", "repeat", "split", "split_with_sizes", "chunk", "unbind", "unfold",
    "pixel_shuffle", "pixel_unshuffle", "movedim", "im2col", "reflection_pad1d", "reflection_pad2d",
    "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
    "channel_shuffle", "rot90", "view_copy", "unsafe_split", "unsafe_chunk",
)  # fmt: skip
def movement(call: Call) -> Any:
    """Data movement: run the op itself on the labels, exactly."""
    value, rest = call.args[0], call.args[1:]
    moved = [_run(call, part.labels, rest) for part in value.parts]
    many = isinstance(call.node.meta["val"], (tuple, list))
    for part in value.parts if call.name not in _IN_ORDER else ():
        check_places(call, part, lambda index: _all(_run(call, index, rest)))
    results = []
    again = call.name in ("expand", "repeat")
    for i, shape in enumerate(call.shapes):
        pairs = [(p, canonical(out[i] if many else out)) for p, out in zip(value.parts, moved, strict=True)]
        parts = tuple(replace(p, labels=labels, repeated=p.repeated + again) for p, labels in pairs)
        kept = tuple(p for p in parts if bool(squeeze_constant(p.labels).any()))
        results.append(Value(shape, kept, free=value.free, own=value.weight or value.own))
    if call.name == "expand" or value.loose:
        found = repeats(value.shape, value.loose, lambda index: _all(_run(call, index, rest)))
        results = [replace(result, loose=loose) for result, loose in zip(results, found, strict=True)]
    if call.name in ("view", "_unsafe_view"):
        results = [replace(results[0], unmerged=value)]
    return results if many else results[0]


def check_places(call: Call, part: Part, move: Callable[[Tensor], list[Tensor]], whole: bool = False) -> None:
    """Freeze units of which an op takes other places than of others of the same axis; see `places.moved_alike`."""
    if not moved_alike(part.labels, move, call.ledger.owners, whole):
        reason = f"{call.name} takes other places of some units than of others at {call.where}"
        call.ledger.freeze(part.labels, f"{reason}; index units along an axis of their own, or use torch.diagonal")


def _all(results: Any) -> list[Tensor]:
    return list(results) if isinstance(results, (list, tuple)) else [results]


def _run(call: Call, labels: Tensor, rest: Sequence[Any]) -> Any:
    if call.name in ("transpose", "t", "squeeze", "unsqueeze"):
        return getattr(labels, call.name)(*rest)
    if call.name in ("view", "_unsafe_view", "view_copy", "_reshape_alias"):
        return labels.reshape(tuple(rest[0]))
    if "_pad" in call.name or call.name == "im2col":  # not implemented for integers
        return call.node.target(labels.double(), *rest, **call.kwargs).long()  # type: ignore[operator]
    return call.node.target(labels, *rest, **call.kwargs)  # type: ignore[operator]


@RULES.of("as_strided")
def as_strided(call: Call) -> Any:
    """Any walk through memory: the labels are laid out as the value is."""
    value, like = call.args[0], call.node.args[0].meta["val"]  # type: ignore[union-attr]
    moved = [restrided(part.labels, like, *call.args[1:]) for part in value.parts]
    if any(labels is None for labels in moved):
        return unknown(call, f"as_strided reads beside its input at {call.where}")
    if any(part.labels.numel() > _WHOLE for part in value.parts):
        return unknown(call, f"as_strided of {like.numel()} elements is not followed at {call.where}")
    for part in value.parts:
        check_places(
            call, part, lambda index: [t for t in [restrided(index, like, *call.args[1:])] if t is not None], True
        )
    pairs = zip(value.parts, moved, strict=True)
    parts = tuple(replace(part, labels=canonical(labels)) for part, labels in pairs if labels is not None)
    return Value(call.shapes[0], parts, free=value.free)


@RULES.of("constant_pad_nd")
def constant_pad(call: Call) -> Value:
    """Padding has no unit."""
    value, pad = call.args[0], call.args[1]
    parts = tuple(replace(p, labels=canonical(torch.constant_pad_nd(p.labels, pad, 0))) for p in value.parts)
    return Value(call.shapes[0], parts, free=value.neutral)


@RULES.of("cat", "stack")
def concatenate(call: Call) -> Value:
    """Units along the axis stand side by side; units across it meet, as in a sum."""
    shape, dim = call.shapes[0], call.arg(1, "dim", 0) % len(call.shapes[0])
    values: list[Value] = list(call.args[0])
    if call.name == "cat":  # what is empty has no units, and may have a shape of its own
        values = [v for v in values if v.shape != (0,) and v.shape[dim] > 0] or [v for v in values if v.shape != (0,)]
    else:
        values = [v.viewed((*v.shape[:dim], 1, *v.shape[dim:])) for v in values]
    weight = all(v.weight or v.neutral for v in values)
    table = all(v.neutral or (v.parts and v.table) for v in values)
    repeated = max(v.repeated for v in values)
    lines = _side_by_side(values, dim)
    across: list[Value] = []
    for i, value in enumerate(values):
        beside = {id(line[i]) for line in lines}
        one = [1 if a == dim else s for a, s in enumerate(value.shape)]
        rest = [p for p in value.parts if id(p) not in beside and p.axes]
        narrow = tuple(replace(p, labels=p.labels.narrow(dim, 0, 1)) for p in rest)
        uniform = value.const is not None and not value.fixed(dim)
        const = value.const.narrow(dim, 0, 1) if uniform and value.const is not None else None
        across.append(Value(tuple(one), narrow, value.free, const))
        for part in value.parts:
            if not part.axes and id(part) not in beside:
                call.ledger.freeze(part.labels, f"one unit stands beside others at {call.where}")
    flat = [1 if a == dim else s for a, s in enumerate(shape)]
    crossing = merge(call.ledger, across, flat, call.where, zero="all")
    parts = [Part(p.labels.expand(shape), weight, p.opaque, table, repeated) for p in crossing.parts]
    blank = cpu.zeros(1, dtype=torch.long)
    for line in lines:
        pieces = [blank.expand(v.shape) if part is None else part.labels for v, part in zip(values, line, strict=True)]
        keep = {a for p in pieces for a in range(len(shape)) if p.stride(a) != 0 and p.shape[a] > 1} | {dim}
        pieces = [squeeze_constant(p, keep) for p in pieces]
        labels = canonical(torch.cat([p.contiguous() for p in pieces], dim).expand(shape))
        parts.append(Part(labels, weight, any(p is not None and p.opaque for p in line), table, repeated))
    return Value(shape, tuple(parts), free=all(v.neutral for v in values))


def _side_by_side(values: Sequence[Value], dim: int) -> list[list[Part | None]]:
    """For each kind of units that varies along the axis in some operand, its part in every operand, or None.

    Units that vary along the axis in one operand and not in another, as where a table has made one unit of some
    features of each head, are of one kind if they share another axis.
    """
    sides = [[p for p in v.parts if dim in p.axes or (not p.axes and v.shape[dim] == 1)] for v in values]
    lines = [[side[i] if i < len(side) else None for side in sides] for i in range(max(len(side) for side in sides))]
    for line in lines:
        axes = {a for part in line if part is not None for a in part.axes} - {dim}
        for i, value in enumerate(values):
            taken = {id(other[i]) for other in lines}
            fits = [p for p in value.parts if p.axes & axes and id(p) not in taken]
            if line[i] is None and len(fits) == 1:
                line[i] = fits[0]
    return lines
