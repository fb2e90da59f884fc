"""What each ATen op does to units. Data movement runs the very op on the labels; the rest is merge, mix or contract.

Keys are ATen names without overload. Ops tagged pointwise need no rule; an op with neither freezes what it touches.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from npn._utils import cpu
from npn.structure import MIXES
from npn.tracing.labels import KERNEL, Ledger, Part, canonical, squeeze_constant
from npn.tracing.nonlinear import NONLINEAR, mark_nonlinear
from npn.tracing.places import moved_alike, repeats, restrided
from npn.tracing.values import OPAQUE, Value, contract, fixed_input, merge, reduce, restrict, with_repeats


@dataclass(frozen=True)
class Call:
    """One op call: its graph node, its arguments with nodes replaced by `Value`s, and where the user wrote it."""

    ledger: Ledger
    node: Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str
    where: str

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the results."""
        out = self.node.meta.get("val")
        return [tuple(t.shape) for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)]

    @functools.cached_property
    def values(self) -> list[Value]:
        """Every value among the arguments."""
        leaves = tree_leaves((self.args, self.kwargs), is_leaf=lambda v: isinstance(v, Value))
        return [leaf for leaf in leaves if isinstance(leaf, Value)]

    def plain(self, free: bool = False, cause: str = "") -> Any:
        """The result without units."""
        results: list[Value | None] = [Value(shape, free=free, cause=cause) for shape in self.shapes]
        return results if isinstance(self.node.meta.get("val"), (tuple, list)) else (results or [None])[0]

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or keyword."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    @property
    def mixes(self) -> str:
        """The reason when this op makes one unit of an axis."""
        return f"{self.name} {MIXES} at {self.where}"


Rule = Callable[[Call], Any]
RULES: dict[str, Rule] = {}

# zero in, zero out: a weight made by these is masked by masking its parameters
ZERO_PRESERVING = NONLINEAR | {"mul", "neg", "clone", "_to_copy", "detach", "alias", "lift_fresh_copy"}
_IN_ORDER = frozenset((  # elements stay in the order that they have in memory
    "view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "unsqueeze", "squeeze", "expand",
))  # fmt: skip
_WHOLE = 1 << 22  # elements of which each one is followed
LINEAR_REDUCTIONS = frozenset(["sum", "linalg_vector_norm", "norm"])


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under ATen names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def pointwise(call: Call) -> Any:
    """Elementwise op: unite what meets. In a quotient only the numerator may be a masked weight."""
    values = [v for v in [*call.args, *call.kwargs.values()] if isinstance(v, Value)]
    power = call.name == "pow" and isinstance(call.args[1], (int, float)) and call.args[1] >= 1
    mark_nonlinear(call.ledger, call.name, values, nonlinear=power or call.name in NONLINEAR)
    zero = "any" if power or call.name in ZERO_PRESERVING else "never"
    if call.name == "div":
        zero = "any"
        for part in (p for divisor in values[1:] if divisor.weight for p in divisor.parts):
            call.ledger.divide(part.labels, call.where)
    elif call.name in ("add", "sub", "where"):
        terms = values[1:] if call.name == "where" else values
        zero = "all" if len(terms) == 2 else "never"
        if call.name == "where" and len(terms) == 2 and not values[0].neutral:
            zero = "never"
        values = [*terms, *values[: len(values) - len(terms)]]
    results = [with_repeats(merge(call.ledger, values, shape, call.where, zero), values) for shape in call.shapes]
    return results[0] if len(results) == 1 else results


@rule(
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


@rule("as_strided")
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


@rule("constant_pad_nd")
def constant_pad(call: Call) -> Value:
    """Padding has no unit."""
    value, pad = call.args[0], call.args[1]
    parts = tuple(replace(p, labels=canonical(torch.constant_pad_nd(p.labels, pad, 0))) for p in value.parts)
    return Value(call.shapes[0], parts, free=value.neutral)


@rule("cat", "stack")
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


@rule("convolution")
def convolution(call: Call) -> Value:
    """Convolution of any rank, transposed or not, with groups."""
    x, w, bias, _, _, _, transposed, _, groups = call.args[:9]
    rank = len(x.shape) - 2
    if groups > 1 and ((x.weight and not x.repeated) or not (w.weight or (w.neutral and not w.fixed(0)))):
        blocked: Value = unknown(call, f"a grouped kernel is computed from data at {call.where}")
        return blocked
    space = list(range(2, 2 + rank))
    x = reduce(call.ledger, x, space, True, call.mixes)  # kernels mix positions: units must not live there
    n, channels = x.shape[:2]
    i_axis, o_axis = (0, 1) if transposed else (1, 0)
    if groups == 1:
        # product space: (batch, out, in, *kernel)
        data = x.viewed((n, 1, channels, *[1] * rank))
        weight = Value(w.shape, tuple(_swap(p) if transposed else p for p in w.parts))
        weight = replace(weight, shape=tuple(w.shape[i] for i in (o_axis, i_axis)) + w.shape[2:])
        weight = _drop_kernel(call, weight).viewed((1, *weight.shape[:2], *[1] * rank))
        out = contract(call.ledger, data, weight, [2, *range(3, 3 + rank)], call.where)
    else:
        out = _grouped(call, x, w, int(groups), bool(transposed))
    shape = call.shapes[0]
    out = out.viewed((*out.shape, *[1] * rank))
    bias = bias.viewed((1, *bias.shape, *[1] * rank)) if isinstance(bias, Value) else None
    return merge(call.ledger, [out] if bias is None else [out, bias], shape, call.where)


def unknown(call: Call, reason: str) -> Any:
    """Nothing is known of this op: all its operands keep their size."""
    for value in call.values:
        for part in value.parts:
            call.ledger.freeze(part.labels, reason)
    return call.plain(cause=reason)


def _swap(part: Part) -> Part:
    return replace(part, labels=part.labels.transpose(0, 1))


def _drop_kernel(call: Call, weight: Value) -> Value:
    """Only rows and columns of a kernel are units; its window is fixed."""
    kernel = list(range(2, len(weight.shape)))
    parts = []
    for part in weight.parts:
        if part.axes <= set(kernel):
            call.ledger.freeze(part.labels, KERNEL)
            continue
        labels = restrict(call.ledger, part, kernel, KERNEL).labels
        for axis in kernel:
            labels = labels.narrow(axis, 0, 1)
        parts.append(replace(part, labels=labels))
    return Value((*weight.shape[:2], *[1] * len(kernel)), tuple(parts))


def _grouped(call: Call, x: Value, w: Value, groups: int, transposed: bool) -> Value:
    """Grouped convolution: a unit is one offset within every group; depthwise, it is the group."""
    ledger, (n, channels), inner = call.ledger, x.shape[:2], x.shape[1] // groups
    for part in x.parts:
        if 0 in part.axes:
            ledger.freeze(part.labels, f"units lie along the batch of a grouped convolution at {call.where}")
    weight = _drop_kernel(call, w).viewed(w.shape[:2])
    if transposed:  # (in, out / groups) -> rows are (group, out), columns (group, in)
        outer = w.shape[1]
        row = [p.labels[0].reshape(1, outer).expand(groups, outer) for p in weight.parts if 1 in p.axes]
        column = [p.labels[:, 0].reshape(groups, inner) for p in weight.parts if 0 in p.axes]
    else:
        outer = w.shape[0] // groups
        row = [p.labels[:, 0].reshape(groups, outer) for p in weight.parts if 0 in p.axes]
        column = [p.labels[0].reshape(1, inner).expand(groups, inner) for p in weight.parts if 1 in p.axes]
    feed = [p.labels.reshape(n, channels)[0].reshape(groups, inner) for p in x.parts if 1 in p.axes]
    for labels in feed[1:]:
        ledger.freeze(labels, f"two kinds of units share the channels at {call.where}")
    if inner == 1:  # depthwise: the kernel is data that lies along the channels
        lines = (row if not transposed else column) or [cpu.zeros(groups, 1, dtype=torch.long)]
        if transposed and row:
            ledger.freeze(row[0], f"several maps of one channel at {call.where}")
        for labels in feed:
            ledger.unite(labels, lines[0])
        if not feed:
            ledger.freeze(lines[0], fixed_input(x, call.where))
        labels = torch.where(lines[0] > 0, lines[0], feed[0] if feed else 0).expand(groups, outer)
    else:
        opaque = any(p.opaque and (0 if transposed else 1) in p.axes for p in weight.parts)
        for labels in column:
            ledger.unite(labels, labels[:1])
            if opaque:
                ledger.freeze(labels, f"{OPAQUE} at {call.where}")
            if feed:
                ledger.unite(feed[0], labels)
                ledger.mark(labels, ledger.reads)
            else:
                ledger.freeze(labels, fixed_input(x, call.where))
        if feed and not column:
            ledger.freeze(feed[0], f"read along a fixed axis at {call.where}")
        if not row:
            return Value((n, groups * outer))
        labels = row[0]
        ledger.unite(labels, labels[:1])
        ledger.mark(labels, ledger.produces)
    out = canonical(labels.reshape(1, groups * outer).expand(n, groups * outer))
    return Value((n, groups * outer), (Part(out),))


@rule("embedding")
def embedding(call: Call) -> Value:
    """A table: its rows are fixed, its columns are produced."""
    table, index = call.args[:2]
    for part in index.parts:
        call.ledger.freeze(part.labels, f"used as an index at {call.where}")
    parts = []
    for part in table.parts:
        part = restrict(call.ledger, part, [0], f"rows of the embedding at {call.where}")
        if 1 in part.axes:
            call.ledger.mark(part.labels, call.ledger.produces)
            labels = part.labels[0].reshape(*[1] * len(index.shape), -1)
            parts.append(Part(labels.expand(call.shapes[0])))
    return Value(call.shapes[0], tuple(parts))


_MOVES = (movement, as_strided, constant_pad, concatenate)
MOVEMENT = frozenset(["diagonal", *(name for name, function in RULES.items() if function in _MOVES)])
