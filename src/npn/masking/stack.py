"""Masked weights of one shape, stacked so that one operator serves all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNED = 64  # entries; kernels may ask for addresses in multiples of up to 128 bytes


@dataclass(frozen=True)
class Stack:
    """Weights of one shape, strides and dtype that are masked along the same axes: one operator serves all of them.

    Attributes:
        count: number of weights.
        like: a tensor on no device with their shape, strides and dtype.
        axes: along which they are masked.
        sizes: lengths of these axes.
        single: place of the gates of the single weights of its only member, if it has them.
    """

    count: int
    like: Tensor
    axes: list[int | None]
    sizes: list[int]
    single: slice | None

    def empty(self, device: torch.device) -> Tensor:
        """Make room for one copy of each weight, (weights, *shape of a weight); each starts at an aligned address.

        Args:
            device: of the weights.
        """
        row = -(-self.like.numel() // ALIGNED) * ALIGNED
        memory = torch.empty(self.count * row, dtype=self.like.dtype, device=device)
        return memory.as_strided((self.count, *self.like.shape), (row, *self.like.stride()))

    def factors(self, gates: Tensor, single: Tensor) -> list[Tensor]:
        """Turn gates into factors that broadcast on the stacked weights.

        Args:
            gates: (weights * sum of sizes,), gates of all entries of all axes, weight by weight.
            single: gates of all single weights.

        Returns:
            One factor per axis, then one in the shape of the weights if their single weights have gates.
        """
        pieces = gates.view(self.count, sum(self.sizes)).split(self.sizes, 1) if self.axes else ()
        shapes = [[-1 if a == axis else 1 for a in range(self.like.dim())] for axis in self.axes]
        found = [piece.view(self.count, *shape) for piece, shape in zip(pieces, shapes, strict=True)]
        if self.single is not None:
            found.append(single[self.single].view(1, *self.like.shape))
        return [factor.to(self.like.dtype) for factor in found]

    def masked(self, out: Tensor, values: list[Tensor], factors: Sequence[Tensor]) -> None:
        """Multiply weights by their factors.

        Args:
            out: the result of `empty`, to be overwritten.
            values: the weights.
            factors: see `factors`.
        """
        if self.count == 1:  # one pass over the memory, where copies take two
            torch.mul(values[0].unsqueeze(0), factors[0], out=out)
            factors = factors[1:]
        else:
            torch._foreach_copy_(out.unbind(), values)
        for factor in factors:
            out.mul_(factor)

    def mask_in_place(self, out: Tensor, values: list[Tensor], factors: Sequence[Tensor]) -> None:
        """Multiply weights by their factors where they lie, after a copy of them was made.

        Args:
            out: the result of `empty`, to be overwritten by the copy.
            values: the weights.
            factors: see `factors`.
        """
        torch._foreach_copy_(out.unbind(), values)
        for factor in factors:
            torch._foreach_mul_(values, factor.unbind())

    def product(self, out: Tensor, values: list[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Multiply weights by the gradients with respect to their masked copies; 0 where there is none.

        Args:
            out: the result of `empty`, to be overwritten.
            values: the weights.
            gradients: of each of them.
        """
        found = [gradient for gradient in gradients if gradient is not None]
        if len(found) < self.count:
            out.zero_()
        rows = [row for row, gradient in zip(out.unbind(), gradients, strict=True) if gradient is not None]
        values = [value for value, gradient in zip(values, gradients, strict=True) if gradient is not None]
        # the gradient of a complex weight w is conjugate: d loss / d factor is the real part of w conj(G)
        found = [gradient.conj() if gradient.is_complex() else gradient for gradient in found]
        if self.count == len(found) == 1:
            torch.mul(values[0], found[0], out=rows[0])
        elif found:
            torch._foreach_copy_(rows, found)
            torch._foreach_mul_(rows, values)

    def gradients(self, product: Tensor, factors: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """d loss / d gates of the entries of all axes, and of the single weights.

        Args:
            product: stacked, weight times gradient with respect to the masked weight.
            factors: see `factors`.

        Returns:
            float32 in the shape of the two arguments of `factors`; None if single weights have no gates.
        """
        product, factors = _real(product), [_real(factor) for factor in factors]
        terms = []
        for j in range(len(factors)):
            term = product
            for factor in (*factors[:j], *factors[j + 1 :]):
                term = term * factor
            terms.append(term)
        sums = [_summed(term, axis) for term, axis in zip(terms, self.axes, strict=False)]
        units = sums[0] if len(sums) == 1 else torch.cat([product.new_zeros(self.count, 0).float(), *sums], 1)
        return units.flatten(), None if self.single is None else terms[-1].float().flatten()


def _real(tensor: Tensor) -> Tensor:
    return tensor.real if tensor.is_complex() else tensor


def _summed(stacked: Tensor, axis: int | None) -> Tensor:
    """Sum over all axes of the weights but one, in float32: (weights, size)."""
    rest = [a for a in range(1, stacked.dim()) if a - 1 != axis]
    found = stacked.sum(rest, dtype=torch.float32) if rest else stacked.float()
    return found.flatten(1) if found.dim() > 1 else found[:, None]
