"""One logit per unit: the gates of one group."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from npn.errors import ConfigurationError
from npn.functional import GateFunction, Sigmoid, keep_probability, logits_for

OPEN, CLOSED = 0.95, 0.05  # where gates start (Li & Ji, IJCNN 2021)


@dataclass
class Sharpness:
    """The sharpness k and gate function that all gates of one model share.

    Attributes:
        k: >= 0, `math.inf` is the deterministic mode.
        scale: the last k with 0 < k < inf, in whose units the logits are; 1 before there was any.
        function: g.
    """

    k: float = math.inf
    scale: float = 1.0
    function: GateFunction = field(default_factory=Sigmoid)

    def logit(self, probability: float) -> float:
        """phi with g(scale phi) = probability."""
        return float(logits_for(torch.tensor(probability, dtype=torch.float64), self.scale, self.function))


class Gate:
    """Stochastic gates of one group: z_j ~ Bernoulli(pi_j), pi_j = g(k phi_j).

    Attributes:
        logits: phi, a parameter of shape (size,).
        grace: int64 (size,), training steps at a finite k for which a new unit is still held open and costs nothing.
        shut: bool (size,), closed by hand and not reopened since.

    References:
        Li and Ji, "Neural Plasticity Networks", IJCNN 2021.
    """

    def __init__(self, size: int, sharpness: Sharpness, device: torch.device | None = None) -> None:
        self.logits = nn.Parameter(torch.full((size,), sharpness.logit(OPEN), device=device))
        self.grace = torch.zeros(size, dtype=torch.long, device=device)
        self.shut = torch.zeros(size, dtype=torch.bool, device=device)
        self.sharpness = sharpness

    def keep_probability(self) -> Tensor:
        """pi = g(k phi), shape (size,), differentiable in the logits; 1[phi > 0] at k = inf."""
        return keep_probability(self.logits, self.sharpness.k, self.sharpness.function)

    @property
    def mask(self) -> Tensor:
        """The deterministic mask 1[pi > 1/2], bool (size,); at k = 0 its limit 1[phi > 0].

        The likeliest unit counts as open even where its gate is closed: a layer is never empty.
        """
        with torch.no_grad():
            if isinstance(self.sharpness.function, Sigmoid) or self.sharpness.k in (0.0, math.inf):
                mask = self.logits > 0
            else:
                mask = self.keep_probability() > 0.5
            return mask.index_fill(0, self.logits.argmax(), True)

    @property
    def present(self) -> Tensor:
        """Units that take part, bool (size,): open by the deterministic mask, or held open in a grace period."""
        return self.mask | (self.grace > 0)

    @property
    def closed(self) -> Tensor:
        """Numbers of the units that take no part, int64."""
        return (~self.present).nonzero().reshape(-1)

    def indices(self, units: Sequence[int] | Tensor) -> Tensor:
        """Numbers of units, int64, from a sequence of them or a mask over all.

        Raises:
            ConfigurationError: something else, or a number that no unit has.
        """
        size, device = len(self.logits), self.logits.device
        try:
            given = torch.as_tensor(units if isinstance(units, Tensor) else list(units), device=device).reshape(-1)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"units must be a list or tensor of numbers, got {units!r}") from error
        if given.dtype == torch.bool and len(given) == size:
            given = given.nonzero().reshape(-1)
        if len(given) and (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool):
            raise ConfigurationError(
                f"units must be whole numbers, or a mask with one bool for each of the {size} units, got {units!r}"
            )
        if len(given) and not (int(given.min()) >= 0 and int(given.max()) < size):
            raise ConfigurationError(f"there are units 0 to {size - 1}, got {given.tolist()}")
        return given.long()

    def set(self, index: Tensor, probability: float, grace: int = 0) -> None:
        """Give units a keep probability by hand."""
        with torch.no_grad():
            self.logits[index] = self.sharpness.logit(probability)
            self.shut[index] = probability < 0.5
            self.grace[index] = grace

    def to(self, device: torch.device) -> None:
        """Move all tensors."""
        self.logits.data = self.logits.data.to(device)
        self.grace, self.shut = self.grace.to(device), self.shut.to(device)

    def clear_reopened(self) -> None:
        """Clear the manual-close flag of units that have reopened."""
        self.shut.logical_and_(~self.mask)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that has one entry per unit, the logits first."""
        return (self.logits, self.grace, self.shut)

    def gone(self, below: float) -> Tensor:
        """Units to remove, bool (size,): closed and less likely than `below`, or closed by hand; not in grace."""
        with torch.no_grad():
            return ((self.keep_probability() < below) | self.shut) & ~self.present

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all tensors."""
        names = ("logits", "grace", "shut")
        return {name: tensor.detach().clone() for name, tensor in zip(names, self.tensors, strict=True)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over values of the same size."""
        with torch.no_grad():
            for name in self.state_dict():
                getattr(self, name).copy_(state[name])
