"""Sizes of a GPT: heads, units, parameters and MACs, of what is open; and plain nets of any number of MACs."""

from collections.abc import Sequence
from typing import Any

import npn
from npn.experiments.engine.branches import closed_branches
from npn.experiments.language.model import BYTES, GPT, HEAD, MLP, Attention

BRANCHES = ("blocks.*.attention", "blocks.*.mlp")  # paths of the branches, which have gates of their own


def opened(plastic: npn.Plasticity) -> list[tuple[int, int]]:
    """Count the open heads and MLP units of each block, 0 of a branch that is closed or removed.

    Args:
        plastic: the attached model.
    """
    model = plastic.model
    assert isinstance(model, GPT)
    sizes, closed = plastic.sizes(), set(closed_branches(plastic))
    found = []
    for i, (attention, mlp) in enumerate((block.attention, block.mlp) for block in model.blocks):
        heads = hidden = 0
        if isinstance(attention, Attention) and f"blocks.{i}.attention" not in closed:
            heads = sizes.get(f"blocks.{i}.attention.query", attention.query.out_features // HEAD)
        if isinstance(mlp, MLP) and f"blocks.{i}.mlp" not in closed:
            hidden = sizes.get(f"blocks.{i}.mlp.up", mlp.up.out_features)
        found.append((heads, hidden))
    return found


def measure(plastic: npn.Plasticity, context: int) -> dict[str, Any]:
    """Report the size by open units, for one window.

    Args:
        plastic: the attached model.
        context: bytes of the window.

    Returns:
        `params`: weights without biases and norms; `params_with_biases`: all; `macs`: those of the window, as
        `npn.count_macs` counts, attention's products in full; `architecture`: heads and, in brackets, MLP units of
        each block; `blocks`: number of blocks of which anything is open.
    """
    model, blocks = plastic.model, opened(plastic)
    assert isinstance(model, GPT)
    width = model.embedding.embedding_dim
    normed = sum(parameter.numel() for parameter in model.norm.parameters())
    weights = BYTES * width + sum(4 * width * HEAD * heads + 2 * width * hidden for heads, hidden in blocks)
    if model.positions is not None:
        weights += model.positions.weight.numel()
    biases = normed + sum(normed * (heads > 0) + (normed + width + hidden) * (hidden > 0) for heads, hidden in blocks)
    return {
        "params": weights,
        "params_with_biases": weights + biases,
        "macs": macs(width, blocks, context),
        "architecture": " ".join(f"{heads}({hidden})" for heads, hidden in blocks),
        "blocks": sum(heads + hidden > 0 for heads, hidden in blocks),
    }


def macs(width: int, blocks: Sequence[tuple[int, int]], context: int) -> int:
    """Count the multiply-adds of one window of T bytes: equal to `npn.count_macs`, without a forward pass.

        T (256 D + sum of 4 D H h + 2 T H h + 2 D m)

    Args:
        width: of the stream, D.
        blocks: heads h, of width H, and MLP units m of each block.
        context: T.

    Example:
        >>> macs(32, [(1, 128)], context=8)
        167936
    """
    inside = sum(4 * width * HEAD * heads + 2 * context * HEAD * heads + 2 * width * hidden for heads, hidden in blocks)
    return context * (BYTES * width + inside)


def plain(width: int, layers: int, context: int, most: float) -> tuple[int, int]:
    """Find the sizes of a plain net: equal blocks, of about the same share of heads and of MLP units.

    Args:
        width: of the stream.
        layers: number of blocks.
        context: bytes of a window.
        most: multiply-adds of a window that it may have.

    Returns:
        Heads, and MLP units that use up the rest.

    Example:
        >>> full = macs(160, [(5, 640)] * 6, context=256)
        >>> plain(160, 6, 256, full), plain(160, 6, 256, full / 2)
        ((5, 640), (2, 366))
    """
    full = width // HEAD
    whole = macs(width, [(full, 4 * width)] * layers, context)
    stream = macs(width, [], context)
    heads = max(1, round(full * min(1.0, (most - stream) / (whole - stream))))
    left = most - macs(width, [(heads, 0)] * layers, context)
    return heads, max(1, min(4 * width, int(left / (2 * context * width * layers))))
