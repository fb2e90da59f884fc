"""One pass under a mask: the factors of the weights, and dL/dz from the gradients that arrive at them."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from npn._utils.collectives import size, sum_
from npn._utils.shards import local, replicas
from npn.errors import ConfigurationError
from npn.masking.messages import NO_SHARD_GRADIENT, UNUSED
from npn.masking.table import MaskTable


class MaskedPass:
    """A pass of a model under one mask.

    Args:
        table: the masked weights.
        mask: (gates,), 0 where closed.
        collecting: whether gradients of the weights are added up, from which `mask_gradient` follows.
        sharded: whether `fully_shard` has split the weights over processes.
        norms: whether norms are computed over the open units, of which the mask gets a gradient, too.

    Attributes:
        table: the argument.
        factors: those of each stack, see `MaskTable.factors`.
        masks: those of each weight.
        leaf: the mask that these norms get; None if there are none.
    """

    def __init__(
        self, table: MaskTable, mask: Tensor, collecting: bool = False, sharded: bool = False, norms: bool = False
    ) -> None:
        self.table, self._mask, self._collecting, self._sharded = table, mask, collecting, sharded
        self._arrived: list[Tensor | None] = [None] * len(table.parameters)
        with torch.inference_mode(False), torch.no_grad():
            self.leaf = mask.detach().clone().requires_grad_(collecting) if norms else None
            self.factors = table.factors(mask)
            self.masks = table.unstacked(self.factors)

    def collect(self, i: int, gradient: Tensor) -> None:
        """Add the gradient with respect to a masked weight to those that have arrived, if they are collected.

        Args:
            i: number of the weight.
            gradient: of it; a reentrant checkpoint delivers it in several parts.
        """
        if self._collecting:
            before = self._arrived[i]
            self._arrived[i] = gradient if before is None else before + gradient

    @contextlib.contextmanager
    def not_collecting(self) -> Iterator[None]:
        """Exclude gradients computed inside the context from dL/dz."""
        before, self._collecting = self._collecting, False
        try:
            yield
        finally:
            self._collecting = before

    def take_gradients(self, earlier: Sequence[Tensor | None]) -> None:
        """Mask the gradients of the pass, which `fully_shard` has given to the shards, and add them to earlier ones.

        Args:
            earlier: gradient of each weight before the pass.
        """
        for i, (parameter, before) in enumerate(zip(self.table.parameters, earlier, strict=True)):
            if parameter.grad is not None:
                part = local(parameter.grad)
                self.collect(i, part / replicas(parameter))  # all processes are summed over later
                for factor in self.masks[i]:
                    part.mul_(factor)
                if before is not None:
                    local(before).add_(part)
            if before is not None:
                parameter.grad = before

    def mask_gradient(self) -> Tensor:
        """dL/dz after the pass: weight times gradient, summed over the weights that read a unit.

        Returns:
            float32 (gates,).

        Raises:
            ConfigurationError: no gradient has arrived.
        """
        table, leaf = self.table, None if self.leaf is None else self.leaf.grad
        if self._arrived and all(gradient is None for gradient in self._arrived):
            if self._sharded:
                raise ConfigurationError(NO_SHARD_GRADIENT)
            if leaf is None:
                raise ConfigurationError(UNUSED)
        with torch.no_grad():
            parts = zip(table.members(table.values), table.members(self._arrived), table.copies, strict=True)
            for (stack, values), (_, gradients), out in parts:  # the masked copies are no longer read
                stack.product(out, values, gradients)
            gradient = table.gradient(table.copies, self.factors, self._mask)
            if leaf is not None:
                gradient[: table.units] += leaf[: table.units] / (size() if self._sharded else 1)
            if self._sharded:  # each process has the gradients of its rows, which are means over all processes
                sum_(gradient)
            return gradient
