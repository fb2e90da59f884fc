"""Rules for ops that mix along axes: reductions, normalisation, softmax, pooling, writing into a slice."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch.fx import Node

from npn._utils import cpu
from npn.tracing.capture.lines import op_name
from npn.tracing.capture.norm_calls import call_of
from npn.tracing.labels import Normed, Part, Value, canonical, contract, merge, reduce, restrict, with_repeats
from npn.tracing.rules.call import Call, Rules, unknown

RULES = Rules()
REDUCTIONS = (
    "sum", "mean", "amax", "amin", "max", "min", "prod", "var", "std", "var_mean", "std_mean", "linalg_vector_norm",
    "norm", "logsumexp", "any", "all", "argmax", "argmin", "median", "aminmax", "count_nonzero", "mode", "nanmean",
)  # fmt: skip
LINEAR_REDUCTIONS = frozenset(["sum", "linalg_vector_norm", "norm"])


def reduced_axes(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], rank: int) -> list[int]:
    """The axes that a reduction names, or all.

    Args:
        name: of the op.
        args, kwargs: its arguments.
        rank: of its operand.
    """
    position = 2 if name in ("linalg_vector_norm", "norm") else 1
    dims = args[position] if len(args) > position else kwargs.get("dim", -1 if name == "mode" else None)
    if isinstance(dims, (bool, float)) or dims is None or dims == []:
        return list(range(rank))
    return sorted(d % rank for d in ([dims] if isinstance(dims, int) else dims)) if rank else []


@RULES.of(*REDUCTIONS)
def reduction(call: Call) -> Any:
    """Reduce over the axes that the call names, or over all."""
    value: Value = call.args[0]
    if len(call.args) > 1 and isinstance(call.args[1], Value):  # the binary max and min
        return merge(call.ledger, list(call.args[:2]), call.shapes[0], call.where)
    rank = len(value.shape)
    axes = reduced_axes(call.name, call.args, call.kwargs, rank)
    shape = call.shapes[0]
    keepdim = len(shape) == rank and rank > 0
    if call.name == "sum" and (product := _contraction(call, value, axes)) is not None:
        return product.viewed(shape)
    order = call.arg(1, "ord", 2) if call.name in ("linalg_vector_norm", "norm") else 2
    least = isinstance(order, (int, float)) and order < 0  # a minimum
    linear = (call.name in LINEAR_REDUCTIONS and not least) or _of_magnitudes(call)
    if call.name in _FOLLOWED and not least:
        left = [followed(call, part, axes) for part in value.parts]
        value = replace(value, parts=tuple(part for part in left if part is not None))
    out = reduce(call.ledger, value, axes, keepdim, call.mixes, linear)
    return out if len(call.shapes) == 1 else [out] * len(call.shapes)


def _contraction(call: Call, value: Value, axes: Sequence[int]) -> Value | None:
    """The sum of what data and a weight give elementwise, if the weight reads units of the data along summed axes."""
    if value.factors is None:
        return None
    data, weight = (factor.aligned(len(value.shape)) for factor in value.factors)
    gone = set(axes)
    if not all(any(part.axes & gone for part in factor.parts) for factor in (data, weight)):
        return None
    return contract(call.ledger, data, weight, sorted(gone), call.where)


def _of_magnitudes(call: Call) -> bool:
    """Whether this is a maximum of what is nowhere negative: zeros in place of closed units leave it as it is."""
    source = call.node.args[0]
    if call.name not in ("amax", "max") or not isinstance(source, Node):
        return False
    even = op_name(source) == "pow" and isinstance(source.args[1], int) and source.args[1] % 2 == 0
    where = [user for user in call.node.users if user.target is operator.getitem and user.args[1] == 1 and user.users]
    return (even or op_name(source) in ("abs", "relu")) and not where


_FOLLOWED = ("sum", "mean", "var", "std", "linalg_vector_norm")


def followed(call: Call, part: Part, axes: Sequence[int]) -> Part | None:
    """Let the units along reduced axes come and go where the call can be computed over the open ones.

    Args:
        call: of the reduction.
        part: what is reduced.
        axes: the reduced axes.

    Returns:
        The part without its units along these axes, None if nothing is left; the part itself if it is not followed.
    """
    where, gone = call_of(call.node), part.axes & set(axes)
    if where is None or (part.weight and not part.repeated) or not gone:
        return part
    call.ledger.normed.append(Normed(part.labels, tuple(axes), where, call.mixes))
    if part.axes <= gone:
        return None
    labels = part.labels
    for axis in gone:
        labels = labels.narrow(axis, 0, 1)
    return replace(part, labels=labels.expand(part.labels.shape))


@RULES.of(
    "_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "cumsum", "cumprod", "logcumsumexp", "sort",
    "argsort", "topk", "cummax", "cummin", "glu",
)  # fmt: skip
def mixed_axis(call: Call) -> Any:
    """The result keeps the axis, but every element of it depends on all others."""
    value: Value = call.args[0]
    position = 2 if call.name == "topk" else 1
    dim = call.arg(position, "dim", -1) % len(value.shape)
    if call.name == "glu":
        return _glu(call, value, dim)
    return _along(call, value, [dim])


def _glu(call: Call, value: Value, dim: int) -> Value:
    half = value.shape[dim] // 2
    halves = [
        Value(
            call.shapes[0],
            tuple(replace(p, labels=canonical(p.labels.narrow(dim, s, half))) for p in value.parts),
        )
        for s in (0, half)
    ]
    return merge(call.ledger, halves, call.shapes[0], call.where)


def _along(call: Call, value: Value, axes: list[int]) -> Any:
    parts = [restrict(call.ledger, part, axes, call.mixes) for part in value.parts]
    results = []
    for shape in call.shapes:
        fit = []
        for part in parts:
            labels = part.labels
            for axis in range(len(shape)):
                if labels.shape[axis] != shape[axis]:
                    labels = labels.narrow(axis, 0, 1)
            fit.append(replace(part, labels=labels.expand(shape), opaque=True))
        results.append(Value(shape, tuple(fit), free=value.neutral))
    return results[0] if len(results) == 1 else results


@RULES.of(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional", "cudnn_batch_norm",
    "_native_batch_norm_legit_no_training", "_batch_norm_with_update", "_batch_norm_with_update_functional",
    "_batch_norm_no_update", "miopen_batch_norm",
)  # fmt: skip
def batch_norm(call: Call) -> list[Value]:
    """Affine parameters and running statistics lie along the channels; nothing else is mixed."""
    x: Value = call.args[0]
    rank = len(x.shape)
    own = [v for v in call.args[1:5] if isinstance(v, Value)]
    x = replace(x, parts=tuple(restrict(call.ledger, p, _others(rank), call.mixes) for p in x.parts))
    out = merge(call.ledger, [x, *(v.viewed((1, *v.shape, *[1] * (rank - 2))) for v in own)], x.shape, call.where)
    # statistics, new and saved, lie along the channels as well
    lines = [p.labels.transpose(0, 1).reshape(x.shape[1], -1)[:, 0] for p in out.parts if 1 in p.axes]
    return [out, *(Value(s, tuple(Part(line) for line in lines if line.shape == s)) for s in call.shapes[1:])]


def _others(rank: int) -> list[int]:
    return [a for a in range(rank) if a != 1]


@RULES.of("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(call: Call) -> Any:
    """Normalises over the last axes: their units become one."""
    x, normalized = call.args[0], call.args[1]
    rank = len(x.shape)
    axes = list(range(rank - len(normalized), rank))
    parts = list[Part]()
    rest = list[Part]()
    for each in x.parts:
        left = followed(call, each, axes)
        alone = left is each  # not followed
        parts.append(restrict(call.ledger, each, axes, call.mixes) if alone else each)
        rest += parts[-1:] if alone else [] if left is None else [left]
    own = [v for v in call.args[2:4] if isinstance(v, Value)]
    out = merge(call.ledger, [replace(x, parts=tuple(parts)), *own], x.shape, call.where)
    rest_of = replace(x, parts=tuple(rest))
    return out if len(call.shapes) == 1 else [out, *(_statistics(rest_of, s) for s in call.shapes[1:])]


def _statistics(x: Value, shape: tuple[int, ...]) -> Value:
    """Mean or deviation of each unit, of a shape with size 1 along the axes that are gone."""
    fit = len(shape) == len(x.shape)
    return Value(shape, tuple(refit(p, shape) for p in x.parts) if fit else ())


@RULES.of("native_group_norm")
def group_norm(call: Call) -> list[Value]:
    """Normalises over each group of channels: the group is the unit. One group of all is a layer norm."""
    x, w, b, _, channels, _, groups, _ = call.args
    parts, means = list[Part](), list[Part]()
    for part in x.parts:
        left = followed(call, part, range(1, len(x.shape))) if groups == 1 else part
        alone = left is part  # not followed
        if not alone:
            parts.append(part)
            means += [] if left is None else [replace(left, labels=left.labels.flatten(1)[:, :1])]
            continue
        shape = (x.shape[0], groups, channels // groups, *x.shape[2:])
        split = replace(part, labels=canonical(part.labels.reshape(shape)))
        kept = restrict(call.ledger, split, range(2, len(shape)), call.mixes)
        means.append(replace(kept, labels=kept.labels.flatten(2)[:, :, 0]))
        parts.append(replace(part, labels=canonical(kept.labels.reshape(x.shape))))
    space = [1] * (len(x.shape) - 2)
    own = [v.viewed((1, *v.shape, *space)) for v in (w, b) if isinstance(v, Value)]
    out = merge(call.ledger, [replace(x, parts=tuple(parts)), *own], x.shape, call.where)
    return [out, *(Value(s, tuple(means)) for s in call.shapes[1:])]


@RULES.of("log_sigmoid_forward")
def log_sigmoid(call: Call) -> list[Value]:
    """Elementwise, with a buffer for its gradient."""
    return [merge(call.ledger, call.args[:1], call.shapes[0], call.where), *(Value(s) for s in call.shapes[1:])]


@RULES.of("_weight_norm_interface")
def weight_norm(call: Call) -> list[Value]:
    """g v / |v|, the norm over every axis but `dim`; along `dim` gates act on g, since zero in v makes 0/0."""
    v, g, dim = call.args[0], call.args[1], call.arg(2, "dim", 0)
    for part in v.parts:
        if dim not in part.axes:
            call.ledger.mix(part.labels, sorted(part.axes), call.mixes)
        else:
            call.ledger.divide(part.labels, call.where)
    return [merge(call.ledger, [g, v], v.shape, call.where, zero="any"), g]


@RULES.of(
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_bilinear2d",
    "upsample_linear1d", "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa",
)  # fmt: skip
def pool(call: Call) -> Any:
    """Pooling and resampling mix positions, never channels."""
    value: Value = call.args[0]
    space = next(int(c) for c in call.name if c.isdigit())
    return _along(call, value, list(range(len(value.shape) - space, len(value.shape))))


def refit(part: Part, shape: tuple[int, ...]) -> Part:
    """The labels of a part, those at the first entry of axes on which a shape has another size, in that shape.

    Args:
        part: of a value with as many axes.
        shape: of a result.
    """
    labels = part.labels
    for axis, size in enumerate(shape):
        if labels.shape[axis] != size:
            labels = labels.narrow(axis, 0, 1)
    return replace(part, labels=labels.expand(shape))


@RULES.of("slice_scatter", "select_scatter", "diagonal_scatter")
def scatter(call: Call) -> Value:
    """Writing one value into a slice of another."""
    base, source = call.args[:2]
    dim = call.arg(2, "dim", 0) % len(base.shape)
    if call.name == "diagonal_scatter":
        return cast(Value, unknown(call, f"written into in place at {call.where}"))
    if call.name == "slice_scatter":
        return written(call, base, source, dim, call.arg(3, "start"), call.arg(4, "end"), call.arg(5, "step", 1))
    at = call.arg(3, "index", 0) % base.shape[dim]
    return written(call, base, source.viewed((*source.shape[:dim], 1, *source.shape[dim:])), dim, at, at + 1, 1)


@RULES.of("copy")
def copied(call: Call) -> Value:
    """What is copied, in the shape of what it is written over."""
    source = call.args[1]
    return with_repeats(merge(call.ledger, [source], call.shapes[0], call.where, zero="any"), [source])


def written(call: Call, base: Value, source: Value, dim: int, start: Any, end: Any, step: Any) -> Value:
    """`base` with `source` in a slice along `dim`: labels are written the same way; across the axis they meet."""
    if not any(dim in p.axes for v in (base, source) for p in v.parts):
        one = [1 if a == dim else s for a, s in enumerate(base.shape)]
        flat = [
            Value(tuple(one), tuple(replace(p, labels=p.labels.narrow(dim, 0, 1)) for p in v.parts), v.neutral)
            for v in (base, source)
        ]
        out = merge(call.ledger, flat, one, call.where)
        return Value(base.shape, tuple(replace(p, labels=p.labels.expand(base.shape)) for p in out.parts))
    parts = []
    left = list(source.parts)
    blank = cpu.zeros((), dtype=torch.long)
    for old in [*base.parts, None]:
        new = [p for p in left if old is None or p.axes & old.axes]
        left = [p for p in left if not any(p is n for n in new)]
        if old is not None and len(new) > 1:
            for part in (old, *new):
                call.ledger.freeze(part.labels, f"written into in place at {call.where}")
            continue
        placed: list[Part | None] = [*new] if old is None else [new[0] if new else None]
        for above in placed:
            under = blank if old is None else old.labels
            over = blank if above is None else above.labels
            labels = torch.slice_scatter(
                under.expand(base.shape).contiguous(), over.expand(source.shape), dim, start, end, step
            )
            parts.append(Part(canonical(labels), opaque=True))
    return Value(base.shape, tuple(parts))
