"""Network slimming: an L1 price on BatchNorm's scales, then a global cut."""

import math
from typing import final

import torch
from torch import Tensor

from npn._utils.validation import positive, share
from npn.entries import UnitEntries, batchnorm_entries
from npn.functional.topology import rounded_down
from npn.methods.method import Method
from npn.plasticity import Plasticity


@final
class Slimming(Method):
    """Price the scales of BatchNorm, ``weight sum_j |gamma_j|``, and cut the units whose scale is small.

    The subgradient ``weight sign(gamma_j)`` is added to the gradients of the scales of units that may go, and to no
    other; it is 0 at gamma_j = 0. No unit goes before `cut`, which finds one threshold for the whole network. From
    then on evaluation, `compact` and `export` drop every unit at or below it. Fine-tune the exported model.

    Deviations from the authors' code: the best unit of each group stays, where the code can cut a whole layer; units
    that several BatchNorms scale count with the mean of them.

    Args:
        plastic: the handle of the model, at k = inf.
        weight: s, price per unit of |gamma|: 1e-4 for VGG, 1e-5 for ResNet-164 and DenseNet.

    Raises:
        ConfigurationError: an argument is outside its range, or a group has no BatchNorm with a scale.

    Example:
        >>> import npn
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = nn.init.uniform_(model[1].weight)
        >>> x = torch.randn(16, 4)
        >>> method = npn.methods.Slimming(npn.attach(model, x), weight=1e-4)
        >>> loss = method.backward(lambda: model(x).square().mean())
        >>> method.cut(0.5)
        >>> method.compact().changes
        {'0': (8, 4)}

    References:
        Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.
    """

    whole_units = True
    saved = ("threshold",)

    def __init__(self, plastic: Plasticity, *, weight: float = 1e-4) -> None:
        super().__init__(plastic)
        self.weight, self.threshold = positive("weight", weight), -math.inf
        self._entries = self._find_entries()
        self._begin()

    def scales(self) -> Tensor:
        """Mean |gamma| of the BatchNorms on each unit, (units,), differentiable."""
        if not self._entries.belong_to(self.plastic.structure, self.plastic.gates.device):
            self._entries = self._find_entries()
        return self._entries.sums(torch.abs) / self._entries.counts

    def penalty(self) -> Tensor:
        """``weight sum |gamma|`` over all scales of units that may go."""
        return self.weight * (self.scales() * self._entries.counts).sum()

    def cut(self, fraction: float) -> None:
        """Set the threshold so that this fraction of all present units lies below it.

        Args:
            fraction: in [0, 1]; 0 keeps every unit.

        Raises:
            ConfigurationError: it is outside its range.
        """
        count = rounded_down(share("fraction", fraction) * len(self.plastic.gates))
        scales = self.scales().detach().sort().values
        self.threshold = float(scales[count - 1]) if count else -math.inf
        self.plastic.gates.decide()

    @torch.no_grad()
    def chosen(self) -> tuple[Tensor, Tensor]:
        """Units whose scale is above the threshold; the score is the scale."""
        scales = self.scales()
        return scales > self.threshold, scales

    def _find_entries(self) -> UnitEntries:
        plastic = self.plastic
        return batchnorm_entries(
            plastic.model, plastic.structure, plastic.gates.device, "Slimming", "skip= when attaching"
        )
