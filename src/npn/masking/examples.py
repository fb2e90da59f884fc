"""One mask per example: multiply the input of each layer that reads gated units, instead of its weights.

At k = 0 this is dropout. It lowers the variance of the two-loss estimators by the batch size, at the cost of one
multiplication per activation. Layers are recognised by their calls of `torch.nn.functional`: linear and convolutions.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from npn.errors import ConfigurationError
from npn.functional import effective_gates
from npn.masking.messages import CHECKPOINTS
from npn.masking.table import MaskTable

_LAYERS = (F.linear, torch.conv1d, torch.conv2d, torch.conv3d)
_TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)


class ExampleMasks(TorchFunctionMode):
    """Multiply the input of every layer that reads gated units by one mask per example.

    Args:
        table: the weights that read gated units.
        mask: batch size -> masks (batch, units); called once.

    Attributes:
        mask: (batch, units), the masks; None before the first layer.
        met: (id of the weight, axis) of each layer called so far.
        without_grad: whether a layer was called that records no graph.
    """

    def __init__(self, table: MaskTable, mask: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.unit_of_column = table.unit_of_column
        pieces = iter(table.index.split(table.sizes))
        self.columns = {
            id(p): {a: next(pieces) for a in axes} for p, axes in zip(table.parameters, table.axes, strict=True)
        }
        self.names = dict(zip(map(id, table.parameters), table.names, strict=True))
        self.make = mask
        self.mask: Tensor | None = None
        self.met: set[tuple[int, int]] = set()
        self.without_grad = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _LAYERS or func in _TRANSPOSED:
            weight = args[1] if len(args) > 1 else kwargs.get("weight")
            columns = self.columns.get(id(weight))
            axis = 0 if func in _TRANSPOSED else 1
            if columns is not None and axis in columns:
                self.met.add((id(weight), axis))
                self.without_grad |= not torch.is_grad_enabled()
                x = args[0] if args else kwargs["input"]
                x = x * self._factor(func, x, columns[axis])
                return func(x, *args[1:], **{name: value for name, value in kwargs.items() if name != "input"})
        return func(*args, **kwargs)

    def _factor(self, func: Any, x: Tensor, columns: Tensor) -> Tensor:
        """The masks of a layer's input, shaped to broadcast on it."""
        if self.mask is None:
            self.mask = self.make(x.shape[0])
        if len(self.mask) != x.shape[0]:
            raise ConfigurationError(
                f"masks are drawn for {len(self.mask)} examples, but a layer got a batch of {x.shape[0]}; "
                'masks="example" needs one batch size throughout'
            )
        mask = effective_gates(self.mask, self.unit_of_column)
        padded = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        factor = padded.index_select(1, columns).to(x.dtype)
        if func is F.linear:
            return factor.view(len(factor), *[1] * (x.dim() - 2), -1)
        factor = factor.repeat(1, x.shape[1] // factor.shape[1])  # grouped: one factor per offset in a group
        return factor.view(*factor.shape, *[1] * (x.dim() - 2))

    def check_checkpoints(self, loss: Tensor) -> None:
        """Raise if the loss was computed through a reentrant activation checkpoint, which would escape the masks.

        Args:
            loss: any shape.

        Raises:
            ConfigurationError: it was.
        """
        if self.without_grad and _has_checkpoints(loss):
            raise ConfigurationError(CHECKPOINTS)

    def check(self) -> None:
        """Raise unless every weight that reads gated units was read by a linear or convolution layer.

        Raises:
            ConfigurationError: a weight was not; the message names the first one.
        """
        for key, name in self.names.items():
            if any((key, axis) not in self.met for axis in self.columns[key]):
                raise ConfigurationError(
                    f'masks="example" multiplies the inputs of linear and convolution layers, but {name} is read in '
                    'another way; use masks="batch", or leave its group out with skip='
                )


def _has_checkpoints(losses: Tensor) -> bool:
    """Whether the graph contains a reentrant activation checkpoint."""
    seen, left = set(), [losses.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        left += [following for following, _ in node.next_functions]
    return False
