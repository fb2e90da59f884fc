"""Scores that the weights alone give: their norms, and the scales of BatchNorms."""

import torch
from torch import Tensor, nn

from npn.entries import UnitEntries, all_places, batchnorm_entries
from npn.structure import Structure

_CPU = torch.device("cpu")  # where float64 is at hand


def group_norms(model: nn.Module, structure: Structure) -> Tensor:
    """L2 norm of all weights of each unit: the rows that produce it and the columns that read it.

    Weights are parameters with two axes or more, depthwise kernels among them; biases and scales of normalisation do
    not count. A weight on which a unit lies along both axes counts for its row and for its column. Of a branch, all
    weights inside it; of an input column, that column.

    Args:
        model: the model.
        structure: its units.

    Returns:
        float64 (gates,) on the CPU, in the order of `structure.parts`.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    entries = UnitEntries(model, structure, all_places(structure, names), _CPU)
    return entries.sums(lambda weight: _magnitude(weight).square(), torch.float64).sqrt()


def batchnorm_scales(model: nn.Module, structure: Structure) -> Tensor:
    """Mean |gamma| of the BatchNorms on each unit; of a branch, of those that its gate multiplies.

    Args:
        model: the model.
        structure: its units.

    Returns:
        float64 (gates,) on the CPU, in the order of `structure.parts`.

    Raises:
        ConfigurationError: a group has no BatchNorm with a scale.

    References:
        Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.
    """
    advice = "skip= when attaching or pruning, or take another criterion"
    entries = batchnorm_entries(model, structure, _CPU, "bn_scale", advice)
    return entries.sums(_magnitude, torch.float64) / entries.counts


def _magnitude(weight: Tensor) -> Tensor:
    """|w|, float64 on the CPU."""
    return weight.detach().abs().cpu().double()
