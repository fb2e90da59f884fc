"""Scores that the weights alone give: their norms, and the scales of BatchNorms."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from npn._utils import cpu
from npn.errors import ConfigurationError
from npn.structure import Branches, Columns, Group, Slot, Structure


def group_norms(model: nn.Module, structure: Structure) -> Tensor:
    """L2 norm of all weights of each unit: the rows that produce it and the columns that read it.

    Weights are parameters with two axes or more, depthwise kernels among them; biases and scales of normalisation do
    not count. A weight on which a unit lies along both axes counts for its row and for its column. Of a branch, all
    weights inside it; of an input column, that column.

    Args:
        model: the model.
        structure: its units.

    Returns:
        (gates,), in the order of `structure.parts`.
    """
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}
    squares = []
    for part in structure.parts:
        total = cpu.zeros(part.size, dtype=torch.float64)
        if isinstance(part, Branches):
            for name, weight in weights.items():
                if (home := part.home(name)) < part.size:
                    total[home] += _energy(weight).sum()
        for slot in part.slots:
            if slot.tensor in weights:
                weight = weights[slot.tensor]
                energy = _energy(weight).sum([axis for axis in range(weight.dim()) if axis != slot.axis])
                total += _by_unit(energy, slot, structure).sum(1)
        squares.append(total)
    return torch.cat(squares).sqrt()


def batchnorm_scales(model: nn.Module, structure: Structure) -> Tensor:
    """Mean |gamma| of the BatchNorms on each unit; of a branch, of those that its gate multiplies.

    Args:
        model: the model.
        structure: its units.

    Returns:
        (gates,), in the order of `structure.parts`.

    Raises:
        ConfigurationError: a group has no BatchNorm with a scale.

    References:
        Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.
    """
    owned = {id(module.weight) for module in model.modules() if isinstance(module, _BatchNorm) and module.affine}
    scales = {n: p.detach().abs().double().cpu() for n, p in model.named_parameters() if id(p) in owned}
    found = {part.name: _mean_scale(part, scales, structure) for part in structure.parts}
    without = [repr(name) for name, mean in found.items() if mean is None]
    if without:
        raise ConfigurationError(
            f"bn_scale needs a BatchNorm with a scale on every unit, but there is none in {', '.join(without)}; leave "
            "that out with skip= when attaching or pruning, or take another criterion"
        )
    return torch.cat([mean for mean in found.values() if mean is not None])


def _mean_scale(part: Group | Branches | Columns, scales: dict[str, Tensor], structure: Structure) -> Tensor | None:
    """(size,), or None where some unit has no scale."""
    if isinstance(part, Branches):
        inside = [[scales[name] for name in names if name in scales] for names in part.scales]
        return torch.stack([torch.cat(each).mean() for each in inside]) if all(inside) else None
    entries = [_by_unit(scales[slot.tensor], slot, structure) for slot in part.slots if slot.tensor in scales]
    return torch.cat(entries, dim=1).mean(1) if entries else None


def _energy(weight: Tensor) -> Tensor:
    """Squares of a weight's entries."""
    return weight.abs().cpu().double().square()


def _by_unit(along: Tensor, slot: Slot, structure: Structure) -> Tensor:
    """(units, entries): values along a tensor's axis, where the units lie; 0 for input columns that are gone."""
    for columns in structure.columns:
        if columns.key == slot.key:
            full = along.new_zeros(structure.shapes[slot.tensor][slot.axis])
            full[columns.kept] = along
            along = full
    return along[slot.index]
