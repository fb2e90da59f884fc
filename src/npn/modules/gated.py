"""A layer whose input is multiplied by gates that depend on the input; in plain PyTorch after export."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from npn.modules.select import HOOKS

_CONVOLUTIONS: tuple[tuple[type[nn.Module], Any], ...] = (
    (nn.Conv1d, F.conv1d),
    (nn.Conv2d, F.conv2d),
    (nn.Conv3d, F.conv3d),
)


class InputGate(nn.Module):
    """Where the units of a group lie in a layer's input: their means, and the input times one gate per unit.

    Args:
        columns: int64 (columns,), unit that each column of the layer's weight reads; `units` where it reads another.
        units: number of units.
        dim: of the input that holds the columns: 1 for convolutions, -1 for linear layers.
    """

    columns: Tensor
    counts: Tensor

    def __init__(self, columns: Tensor, units: int, dim: int) -> None:
        super().__init__()
        self.units, self.dim = units, dim
        self.register_buffer("columns", columns)
        self.register_buffer("counts", torch.bincount(columns, minlength=units + 1)[:units].float())

    def mean(self, x: Tensor) -> Tensor:
        """(batch, units): mean of the input over positions, and over the columns that read a unit."""
        pooled = x.flatten(2).mean(2) if self.dim == 1 else x.reshape(x.shape[0], -1, x.shape[-1]).mean(1)
        sums = torch.zeros_like(pooled[:, :1]).repeat(1, self.units + 1).index_add(1, self.columns, pooled)
        return sums[:, : self.units] / self.counts.to(pooled.dtype)

    def times(self, x: Tensor, gate: Tensor) -> Tensor:
        """The input times the gate (batch, units) of the unit that each column reads."""
        factor = F.pad(gate, (0, 1), value=1.0).index_select(1, self.columns).to(x.dtype)
        if self.dim == 1:
            return (x.flatten(2) * factor.unsqueeze(2)).reshape(x.shape)
        return (x.reshape(x.shape[0], -1, x.shape[-1]) * factor.unsqueeze(1)).reshape(x.shape)


class _GatedLayer(InputGate):
    """A layer with ``x g``, ``g = clip(scale xbar + shift, 0, 1)``, or 0 where that is at most `least`."""

    scale: Tensor
    shift: Tensor
    least: Tensor

    def __init__(self, layer: nn.Module, gate: InputGate, scale: Tensor, shift: Tensor, least: Tensor) -> None:
        super().__init__(gate.columns, gate.units, gate.dim)
        for name, value in (("scale", scale), ("shift", shift), ("least", least)):
            self.register_buffer(name, value.detach().clone())
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(layer, name))
        self.options: tuple[Any, ...] = ()
        self.apply_to: Any = F.linear
        for kind, function in _CONVOLUTIONS:
            if isinstance(layer, kind):
                self.options, self.apply_to = (layer.stride, layer.padding, layer.dilation), function

    def forward(self, input: Tensor) -> Tensor:
        gate = (self.scale * self.mean(input) + self.shift).clamp(0, 1)
        gate = gate * (gate > self.least)
        output: Tensor = self.apply_to(self.times(input, gate), self.weight, self.bias, *self.options)
        return output


def gated_layer(layer: nn.Module, gate: InputGate, scale: Tensor, shift: Tensor, least: Tensor) -> fx.GraphModule:
    """A layer that gates its own input, ``g = clip(scale xbar + shift, 0, 1)``, in plain PyTorch.

    Args:
        layer: a linear or convolution layer; the result has its parameters under the same names, and its hooks.
        gate: where the units lie in the input, whose mean over positions and columns is xbar.
        scale, shift: (units,).
        least: (units,); g is 0 where it is at most that.

    Returns:
        A graph module with the buffers `scale`, `shift`, `least`, `columns` and `counts`.
    """
    plain = fx.symbolic_trace(_GatedLayer(layer, gate, scale, shift, least))
    plain.train(layer.training)
    for kind in HOOKS:
        setattr(plain, kind, getattr(layer, kind))
    return plain
