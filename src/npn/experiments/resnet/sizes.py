"""Sizes of residual networks: parameters and MACs by open units, of the full net, and of plain nets of any width."""

import bisect
from typing import Any

import torch

import npn
from npn.experiments.engine.branches import closed_branches
from npn.experiments.resnet.model import WIDTHS, Block, ResNet

LAST = "fc"  # single inputs of the last layer have gates, as in the paper


def measure(plastic: npn.Plasticity) -> dict[str, Any]:
    """Report the size by open units, for one image.

    Args:
        plastic: the attached model.

    Returns:
        `params`: weights without biases and BatchNorm; `params_with_biases`: all parameters; `macs`: those of the
        convolutions and the last layer; `architecture`: for each section the channels of its stream and those inside
        all of its blocks together; `channels`: those inside each block, 0 for a block that is only its shortcut;
        `features`: inputs of the last layer; `blocks`: number of blocks that are more than their shortcut.
    """
    model = plastic.model
    assert isinstance(model, ResNet)
    sizes = plastic.sizes()
    streams, blocks = model.channels(sizes, closed_branches(plastic))
    inner = [middle for _, _, middle, _ in blocks]
    area = 32 * 32
    weights, macs, normalisation = 27 * streams[0], 27 * streams[0] * area, 2 * streams[0]
    for old, new, middle, block in blocks:
        area //= block.stride**2
        own = 9 * (old + new) * middle + (old * new if block.projects else 0)
        weights, macs = weights + own, macs + own * area
        normalisation += 2 * (middle + new * (bool(middle) + block.projects))
    features = sizes[f"{LAST}.columns"]
    last = features * model.fc.out_features
    per = len(inner) // len(WIDTHS)
    totals = [sum(inner[start : start + per]) for start in range(0, len(inner), per)]
    return {
        "params": weights + last,
        "params_with_biases": weights + last + normalisation + model.fc.out_features,
        "macs": macs + last,
        "architecture": " ".join(f"{stream}({total})" for stream, total in zip(streams, totals, strict=True)),
        "channels": inner,
        "features": features,
        "blocks": sum(middle > 0 for middle in inner),
    }


def base(depth: int, classes: int) -> dict[str, dict[str, int]]:
    """Count the full network with either kind of shortcut, since papers differ in the one they compare with.

    Args:
        depth: layers, 6n + 2.
        classes: logits per image.

    Returns:
        "zero_padding" and "projection" -> `params`, `params_with_biases` and `macs`, as `measure` counts.
    """
    sizes = {}
    for name, projection in (("zero_padding", False), ("projection", True)):
        with torch.device("meta"):
            model = ResNet(depth, classes, projection=projection)
        sizes[name] = {
            "params": npn.count_params(model, biases=False),
            "params_with_biases": npn.count_params(model),
            "macs": plain_macs(model),
        }
    return sizes


def plain_width(depth: int, classes: int, macs: float, stream: bool = False) -> float:
    """Find the largest width with at most so many MACs, in 64ths of the full one.

    Args:
        depth: layers, 6n + 2.
        classes: logits per image.
        macs: the most MACs for one image.
        stream: narrow the residual streams, too; their shortcuts are projections then.

    Example:
        >>> plain_width(8, 10, macs=7e6)
        0.53125
    """

    def cost(width: int) -> int:
        with torch.device("meta"):
            return plain_macs(ResNet(depth, classes, projection=stream, width=width / WIDTHS[-1], stream=stream))

    return max(1, bisect.bisect_right(range(1, WIDTHS[-1] + 1), macs, key=cost)) / WIDTHS[-1]


def plain_macs(model: ResNet) -> int:
    """Count the MACs of one image by the shapes of the weights: equal to `npn.count_macs`, without a forward pass.

    Args:
        model: a network without gates.

    Example:
        >>> f"{plain_macs(ResNet(20)):,}"
        '40,551,040'
    """
    area = 32 * 32
    macs = area * model.conv1.weight.numel()
    for block in model.blocks:
        assert isinstance(block, Block)
        area //= block.stride**2
        macs += area * sum(weight.numel() for weight in block.parameters() if weight.dim() == 4)
    return macs + model.fc.weight.numel()
