"""Convolution of any rank, transposed or not, in groups or not."""

from dataclasses import replace

import torch

from npn._utils import cpu
from npn.tracing.labels import KERNEL, OPAQUE, Part, Value, canonical, contract, fixed_input, merge, reduce, restrict
from npn.tracing.rules.call import Call, Rules, unknown

RULES = Rules()


@RULES.of("convolution")
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
