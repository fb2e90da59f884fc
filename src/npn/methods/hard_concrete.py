"""L0 regularisation with hard concrete gates, and its constrained form."""

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from npn import functional
from npn._utils import cpu
from npn._utils.validation import complete_state, is_number, positive
from npn.errors import ConfigurationError
from npn.gates import Costs
from npn.methods.method import Method
from npn.penalty import CostKind, CostTerm, Priced
from npn.plasticity import Plasticity

LOWEST, HIGHEST = math.log(1e-2), math.log(1e2)  # of log alpha, as in the authors' code


@final
class HardConcrete(Method):
    """L0 regularisation: gates that are exactly 0 or 1 with positive probability, trained by reparametrisation.

    ``z = clip(s (zeta - gamma) + gamma, 0, 1)`` with ``s = sigmoid((logit(u) + log alpha) / beta)`` in training, one
    draw per step (per example with ``masks="example"``), and ``clip(sigmoid(log alpha)(zeta - gamma) + gamma, 0, 1)``
    in evaluation. The price is that of the handle, ``plastic.penalty``, at the probabilities ``P(z != 0)``: with
    ``npn.Penalty("layerwise", weight)`` the paper's ``sum_j P(z_j != 0) |W_j| weight``, with `DualRestarts` the
    constrained form, with `npn.Budget` the dual ascent that NPN uses.

    Units whose evaluation gate is 0 go; the others keep their real-valued gate, which the export folds into weights.

    Deviations from the paper's code: a gate multiplies the weights that read the unit, so it acts after BatchNorm and
    nonlinearity, and biases are never gated; weight decay is the optimizer's and is not re-weighted by ``P(z != 0)``;
    averages of the weights are made with `npn.Plasticity.follow`.

    Args:
        plastic: the handle of the model, at k = inf.
        drop: initial drop rate d: ``log alpha ~ N(log((1 - d)/d), 0.01^2)``; a number, or a dict from name pattern of
            groups to number, in which the first match counts.

    Raises:
        ConfigurationError: an argument is outside its range.

    Example:
        >>> import npn
        >>> from torch import nn
        >>> from torch.nn import functional as F
        >>> model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 4)
        >>> plastic = npn.attach(model, x, penalty=npn.Penalty("params", weight=0.5))  # a high price, for few steps
        >>> method = npn.methods.HardConcrete(plastic)
        >>> optimizer = torch.optim.Adam([{"params": plastic.weights()}, {"params": method.parameters(), "lr": 0.5}])
        >>> plastic.track(optimizer)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     loss = method.backward(lambda: F.cross_entropy(model(x), torch.zeros(16, dtype=torch.long)))
        ...     optimizer.step()
        ...     method.after_step()
        >>> method.compact().changes  # one unit of a group stays in any case
        {'0': (8, 1)}

    References:
        Louizos, Welling and Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018.
    """

    def __init__(self, plastic: Plasticity, *, drop: float | Mapping[str, float] = 0.5) -> None:
        super().__init__(plastic)
        rate = self._units(self._per_group(drop, "drop", _check_rate))
        noise = torch.randn(len(rate), generator=plastic.gates.generator, dtype=torch.float32, device=rate.device)
        self._begin({"log_alpha": (torch.log((1 - rate) / rate) + 0.01 * noise, HIGHEST)})

    def training_mask(self, batch: int | None = None) -> Tensor:
        """See `npn.functional.hard_concrete_sample`."""
        uniform = self.plastic.gates.draw(batch)
        return functional.hard_concrete_sample(self._joined("log_alpha"), uniform)

    @torch.no_grad()
    def evaluation_mask(self) -> Tensor:
        """See `npn.functional.hard_concrete_test_gate`."""
        return functional.hard_concrete_test_gate(self._joined("log_alpha"))

    def chosen(self) -> tuple[Tensor, Tensor]:
        """Units whose evaluation gate is not 0; the score is log alpha."""
        return self.evaluation_mask() > 0, self._joined("log_alpha")

    def penalty(self) -> Tensor:
        """`plastic.penalty` at the probabilities P(z != 0)."""
        return self.plastic.penalty.loss(self._prices())

    def priced(self) -> None:
        """Update the price."""
        self.plastic.penalty.update(self._prices())

    def after_step(self) -> None:
        """Clamp log alpha to [log 0.01, log 100]."""
        with torch.no_grad():
            for tensor in self._tensors["log_alpha"].values():
                tensor.clamp_(LOWEST, HIGHEST)
        super().after_step()

    def _prices(self) -> "Active":
        return Active(self.plastic.pricing, functional.hard_concrete_active(self._joined("log_alpha")))


def _check_rate(option: str, value: float) -> None:
    if not is_number(value) or not 0 < value < 1:
        raise ConfigurationError(f"{option} must be a rate in (0, 1), got {value!r}")


class Active(Costs):
    """Costs at the probabilities that gates are not 0."""

    @property
    def k(self) -> float:
        """1: a budget takes it for the plastic stage."""
        return 1.0


@final
class DualRestarts(CostTerm):
    """A bound on the size, enforced by plain dual ascent with restarts: ``l (E[cost]/full - target)``.

    After each step ``l <- max(0, l + rate (E[cost]/full - target))``, and l = 0 as soon as the bound holds. In contrast
    to `npn.Budget`, the multiplier rises linearly and there is no path towards the target.

    Args:
        cost: "params", "weights", "macs", "units" or "layerwise", see `npn.penalty.CostTerm`.
        target: share of the cost at attach, in (0, 1].
        rate: step size of the multiplier.

    Raises:
        ConfigurationError: an argument is outside its range.

    Example:
        >>> import npn
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plastic = npn.attach(model, torch.zeros(1, 4), penalty=npn.methods.DualRestarts("units", target=0.5))
        >>> method = npn.methods.HardConcrete(plastic, drop=0.3)
        >>> plastic.penalty
        DualRestarts(cost='units', target=0.5; multiplier=0)

    References:
        Gallego-Posada et al., "Controlled Sparsity via Constrained Optimization", NeurIPS 2022, Algorithm 1.
    """

    def __init__(self, cost: CostKind = "params", target: float = 0.5, *, rate: float = 1e-4) -> None:
        super().__init__(cost)
        self.target, self.rate = positive("target", target, below=1), positive("rate", rate)
        self.multiplier = cpu.zeros((), dtype=torch.float32)

    def __repr__(self) -> str:
        return f"DualRestarts(cost={self.cost!r}, target={self.target:g}; multiplier={float(self.multiplier):.3g})"

    def loss(self, plastic: Priced) -> Tensor:
        """Multiplier times violation, ()."""
        violation = self._violation(plastic)
        self.multiplier = self.multiplier.to(violation.device)
        return self.multiplier * violation

    @torch.no_grad()
    def update(self, plastic: Priced) -> None:
        """One step of dual ascent; back to 0 where the bound holds."""
        violation = self._violation(plastic)
        risen = (self.multiplier.to(violation.device) + self.rate * violation).clamp(min=0)
        self.multiplier = torch.where(violation > 0, risen, torch.zeros_like(risen))

    def _violation(self, plastic: Priced) -> Tensor:
        return plastic.expected_cost(self.cost) / plastic.full_cost(self.cost) - self.target

    def shared_tensors(self) -> list[Tensor]:
        """The multiplier."""
        return [self.multiplier]

    def reset(self) -> None:
        """Set the multiplier back to 0."""
        self.multiplier = torch.zeros_like(self.multiplier)

    def state_dict(self) -> dict[str, Any]:
        """The multiplier, as a plain value."""
        return super().state_dict() | {"multiplier": float(self.multiplier)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` saved; an incomplete one, or another's, raises `CheckpointError`."""
        super().load_state_dict(state)
        complete_state(state, ("multiplier",), "a DualRestarts", "penalty")
        self.multiplier = torch.full_like(self.multiplier, float(state["multiplier"]))
