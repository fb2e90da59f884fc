"""Rules for reading and writing at positions that an index gives: gather, scatter, index_put, triangles, diagonals.

An index over rows moves rows, and every unit stays in its column. Along the axis of the units, or where the index
differs from unit to unit, the positions are those of the present size, so the units keep it.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, cast

import torch
from torch.fx import Node

from npn._utils import cpu
from npn.tracing.capture.lines import op_name
from npn.tracing.labels import Value, merge, reduce, restrict
from npn.tracing.rules.call import Call, Rules
from npn.tracing.rules.mixing import refit
from npn.tracing.rules.movement import movement

RULES = Rules()
_SAME = ("clone", "_to_copy", "detach", "alias", "lift_fresh_copy", "contiguous")


def collapsed(call: Call, value: Value, axes: Sequence[int], reason: str) -> Value:
    """The value with size 1 along some axes, where units must not live.

    Args:
        call: the op.
        value: the operand.
        axes: the axes.
        reason: of units that vary along these axes only.
    """
    gone = {a % len(value.shape) for a in axes}
    short = reduce(call.ledger, value, sorted(gone), True, reason)
    if value.const is None:
        return replace(short, free=value.free)
    const = value.const
    if any(value.fixed(a) for a in range(len(value.shape)) if a not in gone):
        return replace(short, free=False)
    for axis in gone:
        const = const.narrow(axis, 0, 1)
    return replace(short, free=False, const=const if torch.equal(const.expand(value.shape), value.const) else const + 1)


def mixed_along(call: Call, value: Value, axes: Sequence[int], reason: str) -> Any:
    """The op mixes positions along some axes, and treats all others alike.

    Args:
        call: the op.
        value: the operand, of the rank of the results.
        axes: the axes.
        reason: of units that vary along these axes only.
    """
    parts = collapsed(call, value, axes, reason).parts
    results = [
        Value(s, tuple(replace(p, labels=p.labels.expand(s), opaque=True) for p in parts), free=value.neutral)
        for s in call.shapes
    ]
    return results[0] if len(results) == 1 else results


def freeze_indices(call: Call, *indices: Value) -> None:
    """Units whose values say where to read or write keep their number.

    Args:
        call: the op.
        indices: its indices and masks.
    """
    for part in (part for index in indices for part in index.parts):
        call.ledger.freeze(part.labels, _index_at(call))


def _index_at(call: Call) -> str:
    return f"used as an index at {call.where}"


def uniform(value: Value, node: Any, axis: int) -> bool:
    """Whether an index is the same all along an axis: by its elements, or since the code expands it there.

    Args:
        value: the index.
        node: its node in the graph.
        axis: the axis.
    """
    if value.free or value.const is not None or value.shape[axis] == 1:
        return not value.fixed(axis)
    while isinstance(node, Node) and node.op == "call_function" and isinstance(node.meta["val"], torch.Tensor):
        if node.meta["val"].layout is not torch.strided:
            return False
        if node.meta["val"].stride(axis) == 0:
            return True
        name, source = op_name(node), node.args[0]
        if name == "repeat" and isinstance(source, Node):
            inner = source.meta["val"].shape
            before = axis - (len(node.meta["val"].shape) - len(inner))
            return before < 0 or inner[before] == 1
        if name not in _SAME and not _of_each_element(node):
            return False
        node = source
    return False


def _of_each_element(node: Node) -> bool:
    """Whether an op computes each element of its result from the same one of its only tensor, as `remainder(x, 5)`."""
    tags = getattr(node.target, "tags", ())
    alone = len(node.all_input_nodes) == 1 and node.all_input_nodes[0] is node.args[0]
    return alone and torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


def _positions(call: Call, value: Value, node: Any, dim: int) -> tuple[Value | None, set[int]]:
    """What an index says of axes other than `dim`: an operand that its units meet, and the axes where it differs."""
    differs = {a for a in range(len(value.shape)) if a != dim and not uniform(value, node, a)}
    if not value.parts:
        return None, differs
    own = collapsed(call, value, [dim], _index_at(call))
    return own, differs - {a for part in own.parts for a in part.axes}


@RULES.of("gather", "take_along_dim")
def gather(call: Call) -> Value:
    """Read along one axis at positions of an index that has the shape of the result."""
    position = (2, 1) if call.name == "gather" else (1, 2)
    value, dim = call.args[0], call.arg(position[1], "dim")
    index: Value = call.arg(position[0], "index" if call.name == "gather" else "indices")
    dim = dim % len(value.shape)
    node = call.node.args[position[0]] if len(call.node.args) > position[0] else None
    shape = call.shapes[0]
    own, differs = _positions(call, index, node, dim)
    differs |= {a for a in range(len(shape)) if a != dim and value.shape[a] != shape[a]}
    reason = f"picked at positions that differ from unit to unit at {call.where}"
    value = replace(value, parts=tuple(restrict(call.ledger, p, differs, reason) for p in value.parts))
    if index.const is not None and call.name == "gather":
        return cast(Value, movement(replace(call, args=(value, dim, index.const), kwargs={})))
    values = [collapsed(call, value, [dim, *differs], f"picked by the input at {call.where}")]
    out = merge(call.ledger, [*values, *([own] if own else [])], [1 if a == dim else s for a, s in enumerate(shape)],
                call.where, zero="all")  # fmt: skip
    return Value(shape, tuple(replace(p, labels=p.labels.expand(shape)) for p in out.parts), free=out.free)


@RULES.of("scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill", "index_reduce")
def write_along(call: Call) -> Value:
    """Write rows, or add to them, along one axis: what was there and what is written meet column by column."""
    base, dim, index = call.args[0], call.args[1] % max(len(call.args[0].shape), 1), call.args[2]
    source = call.args[3]
    shape = base.shape
    source = (
        source if isinstance(source, Value) else Value((1,) * len(shape), const=cpu.full((1,) * len(shape), source))
    )
    if len(source.shape) != len(shape):
        source = source.viewed((1,) * len(shape))
    own, differs = None, set[int]()
    if call.name.startswith("scatter"):
        own, differs = _positions(call, index, call.node.args[2], dim)
        differs |= {a for a in range(len(shape)) if a != dim and index.shape[a] != shape[a]}
    else:
        freeze_indices(call, index)
    return _met(call, base, source, [dim], differs, own)


@RULES.of("index_put", "_unsafe_index_put", "_index_put_impl")
def index_put(call: Call) -> Value:
    """Write at positions of several indices or a mask: the axes that they stand for are rows."""
    base, given, source = call.args[:3]
    axes: list[int] = []
    at, tensors = 0, []
    for index in given:
        wide = len(index.shape) if isinstance(index, Value) and _is_mask(call, index) else 1
        if index is not None:
            axes += range(at, at + wide)
            tensors.append(index)
        at += wide
    freeze_indices(call, *tensors)
    rest = [a for a in range(len(base.shape)) if a not in axes]
    picked = len(torch.broadcast_shapes(*(i.shape for i in tensors if not _is_mask(call, i))) or (1,)) if tensors else 0
    rank, front = picked + len(rest), axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0
    reason = _along_units(call)
    source = collapsed(call, source.aligned(rank), range(front, front + picked), reason)
    source = source.viewed([s for a, s in enumerate(source.shape) if not front <= a < front + picked])
    spread = [1] * len(base.shape)
    for axis, size in zip(rest, source.shape, strict=True):
        spread[axis] = size
    return _met(call, base, source.viewed(spread), axes, set(), None)


def _is_mask(call: Call, index: Value) -> bool:
    given = zip(call.args[1], cast(Sequence[Any], call.node.args[1]), strict=True)
    return any(value is index and node.meta["val"].dtype == torch.bool for value, node in given if value is not None)


def _along_units(call: Call) -> str:
    return (
        f"{call.name} writes at positions of an index, which are those of the present size, at {call.where}; "
        "x[:, index] or torch.cat instead can follow the size"
    )


def _met(call: Call, base: Value, source: Value, axes: list[int], differs: set[int], own: Value | None) -> Value:
    """Base and source without the axes of the index, merged."""
    shape = base.shape
    pair = []
    for value in (base, source):
        differ = f"{call.name} writes at positions that differ from unit to unit at {call.where}"
        parts = tuple(restrict(call.ledger, p, differs, differ) for p in value.parts)
        pair.append(collapsed(call, replace(value, parts=parts), [*axes, *differs], _along_units(call)))
    flat = [1 if a in axes or a in differs else s for a, s in enumerate(shape)]
    own = own and collapsed(call, own, [*differs], _along_units(call))  # it does not vary there
    out = merge(call.ledger, [*pair, *([own] if own else [])], flat, call.where, zero="all")
    return Value(shape, tuple(replace(p, labels=p.labels.expand(shape)) for p in out.parts), free=out.free)


@RULES.of("index")
def read_at(call: Call) -> Value:
    """Several indices at once pick pairs of positions, as a diagonal does."""
    call = replace(call, args=(call.args[0], _positions_of_masks(call), *call.args[2:]))
    value: Value = call.args[0]
    given = [(a, i) for a, i in enumerate(call.args[1]) if isinstance(i, Value)]
    paired: set[int] = set()
    for (a, i), (b, j) in combinations(given, 2):
        rank = max(len(i.shape), len(j.shape))
        x, y = i.aligned(rank), j.aligned(rank)
        if any(x.fixed(axis) and y.fixed(axis) for axis in range(rank)):
            paired |= {a, b}
    reason = f"picked together with another axis at {call.where}"
    parts = tuple(restrict(call.ledger, part, paired, reason) for part in value.parts)
    return cast(Value, pick(replace(call, args=(replace(value, parts=parts), *call.args[1:]))))


@RULES.of("index_select")  # and of "index", see `read_at`
def pick(call: Call) -> Value:
    """Constant indices move data; indices that depend on the input pick along fixed axes only."""
    value, indices = call.args[0], call.arg(1 if call.name == "index" else 2, "index")
    wanted = indices if isinstance(indices, (list, tuple)) else [indices]
    tensors = [i for i in wanted if isinstance(i, Value)]
    freeze_indices(call, *tensors)
    constant = all(i.const is not None for i in tensors)
    if constant:
        rest = [[i.const if isinstance(i, Value) else i for i in wanted]] if call.name == "index" else None
        concrete: tuple[Any, ...] = tuple(rest) if rest else (call.args[1], tensors[0].const)
        constant_pick: Value = movement(replace(call, args=(value, *concrete)))
        return constant_pick
    axes = [a for a, i in enumerate(wanted) if i is not None] if call.name == "index" else [call.args[1]]
    axes = [a % len(value.shape) for a in axes]
    reason = f"picked by the input at {call.where}"
    value = replace(value, parts=tuple(restrict(call.ledger, part, axes, reason) for part in value.parts))
    if call.name != "index":
        return Value(call.shapes[0], tuple(refit(p, call.shapes[0]) for p in value.parts))
    zero = [i if i is None else cpu.zeros(i.shape, dtype=torch.long) if i.const is None else i.const for i in wanted]
    if value.const is not None and not any(value.fixed(axis) for axis in axes):  # the same wherever the input picks
        return Value(call.shapes[0], const=call.node.target(value.const, zero))  # type: ignore[operator]
    picked: Value = movement(replace(call, args=(value, zero)))
    return picked


def _positions_of_masks(call: Call) -> list[Any]:
    """The indices of a read; in place of a mask the places where it holds: one index for each of its axes."""
    given: list[Any] = list(call.args[1])
    masks = [i for i in given if isinstance(i, Value) and i.const is None and _is_mask(call, i)]
    if not masks:
        return given
    freeze_indices(call, *masks)
    wide = [len(i.shape) if any(i is mask for mask in masks) else 1 for i in given]
    used = [a for a, i in enumerate(i for i, n in zip(given, wide, strict=True) for _ in range(n)) if i is not None]
    front = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    picked = max(len(i.shape) if n == 1 else 1 for i, n in zip(given, wide, strict=True) if isinstance(i, Value))
    places = Value((call.shapes[0][front + picked - 1],))
    return [
        each
        for i, n in zip(given, wide, strict=True)
        for each in ([places] * n if any(i is mask for mask in masks) else [i])
    ]


@RULES.of("tril", "triu")
def triangle(call: Call) -> Value:
    """Zero on one side of the diagonal: which entries these are depends on the place of a row and a column."""
    value: Value = call.args[0]
    rank = len(value.shape)
    reason = f"the triangle of {call.name} has a place for each unit at {call.where}"
    return replace(value, parts=tuple(restrict(call.ledger, p, [rank - 2, rank - 1], reason) for p in value.parts))


@RULES.of("diagonal")
def diagonal(call: Call) -> Value:
    """Rows and columns meet: they come and go together, or not at all."""
    value: Value = call.args[0]
    rank = len(value.shape)
    offset, *dims = (call.arg(i, n, d) for i, n, d in ((1, "offset", 0), (2, "dim1", 0), (3, "dim2", 1)))
    first, second = (d % rank for d in dims)
    rows, columns = ([p for p in value.parts if axis in p.axes] for axis in (first, second))
    if offset == 0 and len(rows) == len(columns) == 1 and rows[0] is not columns[0]:
        for a, b in zip(rows, columns, strict=True):
            one, other = (p.labels.diagonal(0, first, second) for p in (a, b))
            call.ledger.unite(one, other)
    else:
        reason = f"the diagonal pairs rows and columns at {call.where}"
        value = replace(value, parts=tuple(restrict(call.ledger, p, [first, second], reason) for p in value.parts))
    return cast(Value, movement(replace(call, args=(value, *call.args[1:]))))


@RULES.of("masked_scatter")
def masked_scatter(call: Call) -> Value:
    """Elements in order into the places of a mask: where the mask is the same for whole rows, columns stay."""
    base, mask, source = call.args[:3]
    freeze_indices(call, mask)
    rank, node = len(base.shape), call.node.args[1]
    wide = mask.aligned(rank)
    last = bool(rank and source.shape) and base.shape[-1] == source.shape[-1]
    whole = last and (wide.shape[-1] == 1 or uniform(mask, node, len(mask.shape) - 1))
    reason = f"filled in order, element by element, at {call.where}; give the mask one entry per row"
    drop = range(len(source.shape) - 1 if whole else len(source.shape))
    flat = collapsed(call, source, drop, reason)
    flat = flat.viewed((1,) * (rank - 1) + (flat.shape[-1] if whole else 1,))
    return _met(call, base, flat, list(range(rank - 1 if whole else rank)), set(), None)


@RULES.of("segment_reduce")
def segment_reduce(call: Call) -> Value:
    """Reduce rows in segments."""
    dim = call.arg(2, "axis", 0)
    return cast(Value, mixed_along(call, call.args[0], [dim], call.mixes))
