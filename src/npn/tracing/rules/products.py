"""Rules for products of three tensors, embeddings, sampling, folding, Fourier transforms, complex numbers."""

from dataclasses import replace
from typing import Any, cast

import torch

from npn.structure import MIXES
from npn.tracing.labels import Part, Value, canonical, contract, fixed_input, merge, reduce, restrict
from npn.tracing.rules.call import Call, Rules, unknown
from npn.tracing.rules.elementwise import pointwise
from npn.tracing.rules.indexing import collapsed, freeze_indices, mixed_along

RULES = Rules()


@RULES.of("_trilinear")
def trilinear(call: Call) -> Any:
    """`nn.Bilinear`: one weight reads two tensors, each along an axis of its own."""
    operands = [
        value.viewed(_unsqueezed(value.shape, axes)) for value, axes in zip(call.args[:3], call.args[3:6], strict=True)
    ]
    axes = list(call.args[6])
    weights = [v for v in operands if v.weight]
    data = [v for v in operands if not v.weight]
    if len(weights) != 1:
        return unknown(call, f"a product of three tensors with {len(weights)} weights at {call.where}")
    together = merge(call.ledger, data, [max(s) for s in zip(*(v.shape for v in data), strict=True)], call.where)
    kept = []
    for part in weights[0].parts:
        if part.axes & set(axes) and not any(part.axes & p.axes for p in together.parts):
            call.ledger.freeze(part.labels, fixed_input(together, call.where))
        else:
            kept.append(part)
    ordered = tuple(sorted(together.parts, key=lambda p: min(p.axes, default=-1)))
    weight = replace(weights[0], parts=tuple(sorted(kept, key=lambda p: min(p.axes, default=-1))))
    for part in ordered:  # a size of the data that no column follows
        if part.axes & set(axes) and not any(part.axes & p.axes for p in kept):
            call.ledger.freeze(part.labels, f"read along a fixed axis at {call.where}")
    ordered = tuple(p for p in ordered if not p.axes & set(axes) or any(p.axes & k.axes for k in kept))
    return contract(call.ledger, replace(together, parts=ordered), weight, axes, call.where)


def _unsqueezed(shape: tuple[int, ...], axes: list[int]) -> list[int]:
    sizes = list(shape)
    for axis in sorted(axes):
        sizes.insert(axis, 1)
    return sizes


@RULES.of("embedding")
def embedding(call: Call) -> Value:
    """A table: its rows are fixed, its columns are produced."""
    table, index = call.args[:2]
    freeze_indices(call, index)
    parts = []
    for part in table.parts:
        part = restrict(call.ledger, part, [0], f"rows of the embedding at {call.where}")
        if 1 in part.axes:
            call.ledger.mark(part.labels, call.ledger.produces)
            labels = part.labels[0].reshape(*[1] * len(index.shape), -1)
            parts.append(Part(labels.expand(call.shapes[0])))
    return Value(call.shapes[0], tuple(parts))


@RULES.of("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> list[Value]:
    """Rows of a table, summed: rows are fixed, columns are produced."""
    table, index = call.args[:2]
    for value in (v for v in call.values if v is not table and v is not index):
        for part in value.parts:
            call.ledger.freeze(part.labels, f"used as an index or a weight of the bag at {call.where}")
    flat = Value((call.shapes[0][0],))
    freeze_indices(call, index)
    out = cast(Value, embedding(replace(call, args=(table, flat), kwargs={})))
    return [out, *(Value(shape) for shape in call.shapes[1:])]


@RULES.of("col2im")
def fold(call: Call) -> Value:
    """Patches laid back onto a map: rows are (channel, position in the window)."""
    value: Value = call.args[0]
    window = call.args[2][0] * call.args[2][1]
    *batch, rows, patches = value.shape
    spread = (*batch, rows // window, window, patches)
    split = Value(spread, tuple(replace(p, labels=canonical(p.labels.reshape(spread))) for p in value.parts))
    at = len(batch)
    kept = reduce(call.ledger, split, [at + 1, at + 2], True, f"fold adds up the window of a channel at {call.where}")
    shape = call.shapes[0]
    return Value(shape, tuple(replace(p, labels=p.labels.expand(shape), opaque=True) for p in kept.parts))


@RULES.of("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def grid_sampler(call: Call) -> Value:
    """Positions are sampled where a grid says, alike in all channels."""
    value, grid = call.args[:2]
    rank = len(value.shape)
    for part in grid.parts:
        if part.axes - {0}:
            call.ledger.freeze(part.labels, f"it says where to sample at {call.where}")
    return cast(Value, mixed_along(call, value, range(2, rank), f"a unit for each position is sampled at {call.where}"))


@RULES.of("max_unpool2d", "max_unpool3d")
def unpool(call: Call) -> Value:
    """Positions move inside a channel; the places are the channel's own."""
    value, index = call.args[:2]
    space = range(len(value.shape) - (2 if call.name == "max_unpool2d" else 3), len(value.shape))
    flat = [collapsed(call, v, list(space), call.mixes) for v in (value, index)]
    out = merge(call.ledger, [flat[0], replace(flat[1], free=True, const=None)], flat[0].shape, call.where)
    return Value(call.shapes[0], tuple(replace(p, labels=p.labels.expand(call.shapes[0])) for p in out.parts))


@RULES.of("_fft_r2c", "_fft_c2c", "_fft_c2r")
def fourier(call: Call) -> Value:
    """Every frequency along the transformed axes depends on all positions; other axes are untouched."""
    reason = f"the Fourier transform {call.name} at {call.where} {MIXES}"
    return cast(Value, mixed_along(call, call.args[0], call.args[1], reason))


@RULES.of("view_as_complex")
def as_complex(call: Call) -> Value:
    """The last axis is real and imaginary part, and no axis of units."""
    value: Value = call.args[0]
    return reduce(call.ledger, value, [len(value.shape) - 1], False, f"real and imaginary part at {call.where}")


@RULES.of("view_as_real")
def as_real(call: Call) -> Value:
    """Real and imaginary part of a unit belong to it."""
    value: Value = call.args[0]
    shape = call.shapes[0]
    parts = tuple(replace(p, labels=p.labels.unsqueeze(-1).expand(shape)) for p in value.parts)
    return Value(shape, parts, free=value.neutral)


@RULES.of("complex")
def from_pair(call: Call) -> Any:
    """Elementwise; zero where both parts are."""
    return merge(call.ledger, call.args[:2], call.shapes[0], call.where, zero="all")


@RULES.of("_conj", "_neg_view", "resolve_conj", "resolve_neg", "_conj_physical", "conj_physical", "real", "imag")
def conjugate(call: Call) -> Any:
    """Elementwise, and zero where the operand is."""
    return merge(call.ledger, call.args[:1], call.shapes[0], call.where, zero="any")


@RULES.of("bucketize")
def bucketize(call: Call) -> Any:
    """Elementwise, by boundaries that are the same for all."""
    for part in call.args[1].parts:
        call.ledger.freeze(part.labels, f"boundaries of bucketize at {call.where}")
    return pointwise(replace(call, args=call.args[:1], kwargs={}))


@RULES.of("searchsorted")
def searchsorted(call: Call) -> Any:
    """As `bucketize`, if one line of boundaries serves all."""
    boundaries, value = call.args[:2]
    if not isinstance(value, Value) or len(boundaries.shape) > 1:
        return unknown(call, f"boundaries of searchsorted at {call.where} are others along an axis")
    return bucketize(replace(call, args=(value, boundaries)))


@RULES.of("mse_loss", "smooth_l1_loss", "huber_loss")
def distances(call: Call) -> Any:
    """The distance of two values, element by element or as a mean."""
    reduction = call.arg(2, "reduction", 1)
    both = list(call.args[:2])
    if reduction == 0:
        return merge(call.ledger, both, call.shapes[0], call.where)
    if reduction != 1:
        return unknown(call, call.mixes)
    shape = torch.broadcast_shapes(*(value.shape for value in both))
    every = list(range(len(shape)))
    return reduce(call.ledger, merge(call.ledger, both, shape, call.where), every, False, call.mixes)


@RULES.of("fake_quantize_per_channel_affine_cachemask")
def quantized_by_channel(call: Call) -> Any:
    """Elementwise, by scales and zero points that lie along an axis."""
    value, axis = call.args[0], call.args[3]
    shape = [size if a == axis else 1 for a, size in enumerate(value.shape)]
    return pointwise(replace(call, args=(value, *(along.viewed(shape) for along in call.args[1:3])), kwargs={}))


@RULES.of("kthvalue")
def kth_value(call: Call) -> list[Value]:
    """One value of all along an axis."""
    value: Value = call.args[0]
    dim = call.arg(2, "dim", -1) % len(value.shape)
    return [reduce(call.ledger, value, [dim], len(call.shapes[0]) == len(value.shape), call.mixes)] * 2


@RULES.of("renorm")
def renorm(call: Call) -> Value:
    """A norm of each slice along an axis, over all other axes."""
    value: Value = call.args[0]
    dim = call.args[2] % len(value.shape)
    others = [a for a in range(len(value.shape)) if a != dim]
    parts = tuple(replace(restrict(call.ledger, p, others, call.mixes), opaque=True) for p in value.parts)
    return replace(value, parts=parts)


@RULES.of("_cdist_forward", "_euclidean_dist", "_pdist_forward")
def distance(call: Call) -> Any:
    """A distance is over all features, as a norm is; rows of points that are parameters keep their number."""
    return unknown(call, f"the distance {call.name} at {call.where} {MIXES}")


@RULES.of("flex_attention")
def flex_attention(call: Call) -> Any:
    """Its score function is a graph of its own, which may tell the heads apart."""
    instead = "F.scaled_dot_product_attention does not and lets them go"
    return unknown(call, f"flex_attention may score each head in its own way ({instead}) at {call.where}")
