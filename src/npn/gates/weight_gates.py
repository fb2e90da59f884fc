"""The gates of the single weights of one parameter: one logit per weight."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from npn.errors import ConfigurationError
from npn.gates.gate import Gate, Sharpness


class WeightGates(Gate):
    """Stochastic gates of the weights of one parameter: weight w_i is read as z_i w_i, z_i ~ Bernoulli(g(k phi_i)).

    Args:
        name: name of the parameter.
        shape: shape of the parameter.
        sharpness: the model's sharpness, shared with all other gates.
        device: device of the tensors.

    Attributes:
        name: the argument.
        logits: phi, a parameter in the shape of the weights.
        grace, shut: as in `Gate`, in the shape of the weights.
        removed: bool, in the shape of the weights: removed by `npn.Plasticity.compact`. The weight is zero, its keep
            probability is 0 and its logit does not move, until it is opened again.
    """

    _names = ("logits", "grace", "shut", "removed")

    def __init__(
        self, name: str, shape: Sequence[int], sharpness: Sharpness, device: torch.device | None = None
    ) -> None:
        super().__init__(shape, sharpness, device)
        self.name = name
        self.removed = torch.zeros_like(self.shut)

    def keep_probability(self) -> Tensor:
        """pi = g(k phi), in the shape of the weights, differentiable in the logits; 0 where removed."""
        return super().keep_probability().masked_fill(self.removed, 0)

    @property
    def open_by_rule(self) -> Tensor:
        """See `Gate.open_by_rule`; removed weights are closed."""
        return super().open_by_rule & ~self.removed

    @property
    def mask(self) -> Tensor:
        """The deterministic mask 1[pi > 1/2], bool, in the shape of the weights; 1[phi > 0] at k = 0 and k = inf.

        The weight with the largest logit counts as open even if its gate is closed, so that a layer is never empty.
        """
        with torch.no_grad():
            logits = self.logits.detach().masked_fill(self.removed, -math.inf)
            mask = self.open_by_rule
            return mask.view(-1).index_fill(0, logits.argmax(), True).view_as(mask)

    @property
    def deciding(self) -> tuple[Tensor, ...]:
        """The tensors that decide which weights are `present`."""
        return self.logits, self.grace, self.removed

    def gone(self, below: float) -> Tensor:
        """Find the weights to remove, see `Gate.gone`, and those that are removed already.

        Args:
            below: keep probability.

        Returns:
            bool, in the shape of the weights.
        """
        return super().gone(below) | self.removed

    def set(self, index: Tensor, probability: float, grace: int = 0) -> None:
        """Set the keep probability of weights by hand; opening a removed weight lets it start from zero.

        Args:
            index: int64 (weights,), positions in the flattened parameter.
            probability: their new keep probability at the last finite k; below 1/2 marks them as closed by hand.
            grace: training steps for which the weights are held open.
        """
        super().set(index, probability, grace)
        self.removed.view(-1)[index] &= probability < 0.5

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all tensors, by name: flags as bits, and grace periods only of the weights that have one."""
        held = self.grace.reshape(-1).nonzero().reshape(-1)
        return {
            "logits": self.logits.detach().clone(),
            "held": held,
            "grace": self.grace.reshape(-1)[held],
            "shut": packed(self.shut),
            "removed": packed(self.removed),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy the values of tensors of the same shape.

        Args:
            state: the result of `state_dict`.
        """
        with torch.no_grad():
            self.logits.copy_(state["logits"])
            self.grace.zero_().view(-1)[state["held"].to(self.grace.device)] = state["grace"].to(self.grace.device)
            self.shut.copy_(unpacked(state["shut"], self.shut.shape))
            self.removed.copy_(unpacked(state["removed"], self.removed.shape))

    def __repr__(self) -> str:
        return f"WeightGates({self.name!r}, shape={tuple(self.logits.shape)}, open={int(self.mask.sum())})"


def packed(mask: Tensor) -> Tensor:
    """Pack a mask into bits.

    Args:
        mask: bool, any shape.

    Returns:
        uint8 (ceil(entries / 8),) on the CPU, the first entry in the highest bit of the first byte.

    Example:
        >>> packed(torch.tensor([True, False, True]))
        tensor([160], dtype=torch.uint8)
    """
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1)))


def unpacked(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Unpack the result of `packed`.

    Args:
        bits: uint8, one bit per entry.
        shape: shape of the mask.

    Returns:
        bool, in this shape, on the CPU.

    Raises:
        ConfigurationError: there are not as many bits as the shape has entries.

    Example:
        >>> unpacked(torch.tensor([160], dtype=torch.uint8), (3,))
        tensor([ True, False,  True])
    """
    count = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.shape != (-(-count // 8),):
        raise ConfigurationError(
            f"a mask of shape {tuple(shape)} takes {-(-count // 8)} bytes, got {tuple(bits.shape)} {bits.dtype}"
        )
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=count).astype(bool)).view(tuple(shape))
