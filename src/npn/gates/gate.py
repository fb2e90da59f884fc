"""The gates of one group: one logit per unit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from npn._utils import cpu
from npn.errors import ConfigurationError
from npn.functional import GateFunction, Sigmoid, keep_probability, logits_for

OPEN, CLOSED = 0.95, 0.05  # initial keep probabilities (Li & Ji, IJCNN 2021)


@dataclass
class Sharpness:
    """The sharpness k and the gate function, shared by all gates of a model.

    Attributes:
        k: >= 0; `math.inf` is the deterministic mode.
        scale: the last k with 0 < k < inf, which fixes the unit of the logits; 1 before there was one.
        function: the gate function g.
    """

    k: float = math.inf
    scale: float = 1.0
    function: GateFunction = field(default_factory=Sigmoid)

    def logit(self, probability: float) -> float:
        """The logit phi with g(scale phi) = probability.

        Args:
            probability: in (0, 1).
        """
        return float(logits_for(cpu.tensor(probability, dtype=torch.float64), self.scale, self.function))


def check_function(function: GateFunction) -> None:
    """Raise unless a gate that is open has a logit above 0, and one that is closed below: k = inf cuts at 0.

    Args:
        function: the gate function g.

    Raises:
        ConfigurationError: g puts one of them on the other side.
    """
    opened, closed = (Sharpness(function=function).logit(probability) for probability in (OPEN, CLOSED))
    if not opened > 0 > closed:
        raise ConfigurationError(
            f"function must reach {OPEN} at a logit above 0 and {CLOSED} below, since k = inf cuts at 0, got "
            f"{function} with logits of {opened:.3g} and {closed:.3g}; shift it less"
        )


class Gate:
    """Stochastic gates of one group: z_j ~ Bernoulli(pi_j), pi_j = g(k phi_j).

    Args:
        size: number of units, or the shape of the tensor whose weights have one gate each.
        sharpness: the model's sharpness, shared with all other gates.
        device: device of the tensors.

    Attributes:
        logits: phi, parameter (size,).
        grace: int64 (size,), training steps at a finite k for which a new unit is still held open and not penalised.
        shut: bool (size,), whether the unit was closed by hand and has not reopened since.
        warming: int64 (size,), optimizer steps for which the unit's weights still move by a share of each step; empty
            for single weights.
        warmup: int64 (size,), how many such steps there are in all; 0 for none.
        sharpness: the argument.

    References:
        Li and Ji, "Neural Plasticity Networks", IJCNN 2021.
    """

    _names: tuple[str, ...] = ("logits", "grace", "shut", "warming", "warmup")

    def __init__(self, size: int | Sequence[int], sharpness: Sharpness, device: torch.device | None = None) -> None:
        shape = (size,) if isinstance(size, int) else tuple(size)
        self.logits = nn.Parameter(torch.full(shape, sharpness.logit(OPEN), dtype=torch.float32, device=device))
        self.grace = torch.zeros(shape, dtype=torch.long, device=device)
        self.shut = torch.zeros(shape, dtype=torch.bool, device=device)
        self.warming = torch.zeros(shape if isinstance(size, int) else 0, dtype=torch.long, device=device)
        self.warmup = torch.zeros_like(self.warming)
        self.sharpness = sharpness

    def keep_probability(self) -> Tensor:
        """pi = g(k phi), (size,), differentiable in the logits; 1[phi > 0] at k = inf."""
        return keep_probability(self.logits, self.sharpness.k, self.sharpness.function)

    @property
    def cut_at_zero(self) -> bool:
        """Whether the deterministic mask is 1[phi > 0]; it is 1[pi > 1/2] in any case at 0 < k < inf."""
        return isinstance(self.sharpness.function, Sigmoid) or self.sharpness.k in (0.0, math.inf)

    @property
    def open_by_rule(self) -> Tensor:
        """Where the rule of the deterministic mask alone opens gates, bool, in the shape of the logits."""
        with torch.no_grad():
            return self.logits > 0 if self.cut_at_zero else self.keep_probability() > 0.5

    @property
    def mask(self) -> Tensor:
        """The deterministic mask 1[pi > 1/2], bool (size,); 1[phi > 0] at k = 0 and k = inf.

        The unit with the largest logit counts as open even if its gate is closed, so that a layer is never empty.
        """
        with torch.no_grad():
            return self.open_by_rule.index_fill(0, self.logits.argmax(), True)

    @property
    def stand_in(self) -> Tensor:
        """The unit that counts as open only because no gate is open, int64 (1,); of an open layer (0,)."""
        return (self.mask & ~self.open_by_rule).reshape(-1).nonzero().reshape(-1)

    @property
    def present(self) -> Tensor:
        """Whether each unit takes part, bool (size,): open in the deterministic mask, or held open in grace."""
        return self.mask | (self.grace > 0)

    @property
    def closed(self) -> Tensor:
        """Numbers of the units that do not take part, int64."""
        return (~self.present).reshape(-1).nonzero().reshape(-1)

    def indices(self, units: Sequence[int] | Tensor) -> Tensor:
        """Convert a sequence of unit numbers, or a mask over all units, to unit numbers.

        Args:
            units: whole numbers, or bool (size,).

        Returns:
            int64 (units,).

        Raises:
            ConfigurationError: `units` is neither, or a number is out of range.
        """
        size, device = self.logits.numel(), self.logits.device
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
        """Set the keep probability of units by hand.

        Args:
            index: int64 (units,), numbers of the units.
            probability: their new keep probability at the last finite k; below 1/2 marks them as closed by hand.
            grace: training steps for which the units are held open.
        """
        with torch.no_grad():
            self.logits.view(-1)[index] = self.sharpness.logit(probability)
            self.shut.view(-1)[index] = probability < 0.5
            self.grace.view(-1)[index] = grace

    def to(self, device: torch.device) -> None:
        """Move all tensors to a device.

        Args:
            device: the device.
        """
        self.logits.data = self.logits.data.to(device)
        for name in self._names[1:]:
            setattr(self, name, getattr(self, name).to(device))

    def clear_reopened(self) -> None:
        """Clear the manual-close flag of units that have reopened."""
        self.shut.logical_and_(~self.mask)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors with one entry per unit, the logits first."""
        return tuple(getattr(self, name) for name in self._names)

    @property
    def deciding(self) -> tuple[Tensor, ...]:
        """The tensors that decide which units are `present`."""
        return self.logits, self.grace

    def gone(self, below: float) -> Tensor:
        """Find the units to remove: closed ones with a keep probability below `below` or closed by hand; none in grace.

        Args:
            below: keep probability.

        Returns:
            bool (size,).
        """
        with torch.no_grad():
            return ((self.keep_probability() < below) | self.shut) & ~self.present

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all tensors, by name."""
        return {name: tensor.detach().clone() for name, tensor in zip(self._names, self.tensors, strict=True)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy the values of tensors of the same size.

        Args:
            state: the result of `state_dict`; an older one knows no warm-up.
        """
        with torch.no_grad():
            for name, tensor in zip(self._names, self.tensors, strict=True):
                if name in state or not name.startswith("warm"):
                    tensor.copy_(state[name])
                else:
                    tensor.zero_()
