"""The price of size: a fixed price per parameter or MAC, or a budget that adjusts its price."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, final, get_args

import torch
from torch import Tensor

from npn._utils.patterns import match_patterns
from npn.errors import CheckpointError, ConfigurationError

CostKind = Literal["params", "macs", "units", "layerwise"]


class _Group(Protocol):
    @property
    def name(self) -> str: ...


class Priced(Protocol):
    """The interface that a penalty needs: `npn.Plasticity`, or the costs at one training step's keep probabilities.

    It has the sharpness `k`, the `groups`, the differentiable `expected_cost`, the `full_cost` of the model at attach
    and the `minimum_cost` with one unit in every group.
    """

    @property
    def k(self) -> float: ...
    @property
    def groups(self) -> Sequence[_Group]: ...
    def expected_cost(self, kind: CostKind, /, weights: Mapping[str, float] | None = None) -> Tensor: ...
    def full_cost(self, kind: CostKind, /) -> float: ...
    def minimum_cost(self, kind: CostKind, /) -> float: ...


def dual_ascent(
    multiplier: Tensor,
    cost: Tensor,
    target: float,
    rate: float,
    *,
    width: float = 0.05,
    scale: float = 1e-4,
    ceiling: float = 1e4,
) -> Tensor:
    """One step of dual ascent on the multiplier of the constraint `cost <= target`.

        s  = tanh(log(cost / target) / width)
        m' = clip((m + scale) exp(rate s) - scale, 0, ceiling)

    The right multiplier may be 1e-4 or 10 loss units, and gates need hundreds of steps to follow it. The step is
    therefore taken in log(1 + m / scale): it is additive around 0, where the multiplier can rest, and multiplicative
    above, where it finds the right order of magnitude in a time that grows with the logarithm. The violation is
    measured on a logarithmic scale as well, and saturates: the multiplier never changes by more than a factor
    `exp(rate)`, however far the target.

    Args:
        multiplier: (), present multiplier in loss units, >= 0.
        cost: (), present expected cost, > 0.
        target: bound on the cost, > 0, in the same unit.
        rate: largest step, in units of log multiplier.
        width: relative violation at which the step saturates.
        scale: multiplier, in loss units, below which steps are additive.
        ceiling: largest multiplier, in loss units.

    Returns:
        (), the new multiplier, >= 0. No value is read back from the device.

    Example:
        >>> m = torch.tensor(0.5)
        >>> round(float(dual_ascent(m, torch.tensor(200.0), 100.0, rate=0.01)), 4)
        0.505
        >>> float(dual_ascent(m, torch.tensor(100.0), 100.0, rate=0.01))
        0.5

    References:
        Arrow, Hurwicz & Uzawa, Studies in Linear and Non-Linear Programming (1958), for the ascent on the multiplier;
        Kivinen & Warmuth, Information and Computation 132 (1997), for its exponentiated form.
    """
    step = rate * torch.tanh(torch.log(cost / target) / width)
    return ((multiplier + scale) * torch.exp(step) - scale).clamp(0.0, ceiling)


class CostTerm(ABC):
    """The part of the objective that pays for size: `Penalty` or `Budget`.

    Args:
        cost: "params", "macs" (of the whole example batch, as `count_macs` counts them: give `attach` a batch of one
            for those of one example), "units" or "layerwise" (each unit costs the weights that read it).

    Attributes:
        cost: the argument.
    """

    def __init__(self, cost: CostKind) -> None:
        if cost not in get_args(CostKind):
            raise ConfigurationError(f"cost must be one of {', '.join(map(repr, get_args(CostKind)))}, got {cost!r}")
        self.cost = cost

    def bind(self, plastic: Priced) -> None:  # noqa: B027 - nothing to look up is a fine default
        """Look up everything that depends on the model; `npn.attach` calls it once.

        Args:
            plastic: the attached model.
        """

    @abstractmethod
    def loss(self, plastic: Priced) -> Tensor:
        """Price of the present gates, in loss units.

        Args:
            plastic: costs at the present keep probabilities.

        Returns:
            (), differentiable in the logits, computed without a host synchronisation.
        """

    def update(self, plastic: Priced) -> None:  # noqa: B027
        """Adapt to the present cost; called once per training step, after the gradients.

        Args:
            plastic: costs at the present keep probabilities.
        """

    def shared_tensors(self) -> list[Tensor]:
        """Tensors learned by `update` that must agree between processes; averaged over them after each step."""
        return []

    def reset(self) -> None:  # noqa: B027
        """Forget everything that `update` has learned."""

    def state_dict(self) -> dict[str, Any]:
        """The values that `update` has learned, as plain values."""
        return {"type": type(self).__name__, "cost": self.cost}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` saved.

        Args:
            state: the result of `state_dict`.

        Raises:
            CheckpointError: the state belongs to another kind of penalty; nothing was loaded.
        """
        mine = CostTerm.state_dict(self)
        theirs = {key: state.get(key) for key in mine}
        if mine != theirs:
            raise CheckpointError(f"the state belongs to another penalty: expected {mine}, got {theirs}")


@final
class Penalty(CostTerm):
    """A fixed price: `weight * E[cost(z)]`.

    With cost "layerwise" this is the regulariser of the paper, `sum_l lambda_l sum_j pi_lj |fan-out of a unit of l|`,
    and `weight` may give each group l its lambda_l.

    Args:
        cost: "params", "macs", "units" or "layerwise", see `CostTerm`.
        weight: price in loss units per parameter (or per MAC, or per unit), >= 0; for "layerwise" also a dict from name
            pattern to price, in which the first match counts and groups without a match cost nothing.

    Attributes:
        cost, weight: the arguments.

    Raises:
        ConfigurationError: the cost is unknown, a weight is negative or infinite, or a dict is given with another cost.

    Example:
        >>> from types import SimpleNamespace
        >>> plastic = SimpleNamespace(expected_cost=lambda kind: torch.tensor(5320.0))  # stands for npn.attach's result
        >>> round(float(Penalty(cost="params", weight=1e-3).loss(plastic)), 3)
        5.32

    References:
        Li & Ji, Neural Plasticity Networks, arXiv:1908.08118.
    """

    def __init__(self, cost: CostKind = "params", weight: float | Mapping[str, float] = 1e-6) -> None:
        super().__init__(cost)
        if isinstance(weight, Mapping):
            if cost != "layerwise":
                raise ConfigurationError(f'weights per group need cost="layerwise", got cost={cost!r}; give one float')
            weight = dict(weight)
        for value in weight.values() if isinstance(weight, dict) else (weight,):
            if not 0.0 <= value < math.inf:
                raise ConfigurationError(f"weight must be a finite number >= 0, got {value!r}")
        self.weight = weight
        self._per_group: dict[str, float] | None = None

    def __repr__(self) -> str:
        return f"Penalty(cost={self.cost!r}, weight={self.weight})"

    def bind(self, plastic: Priced) -> None:
        """Find the groups that each name pattern matches.

        Args:
            plastic: the attached model.

        Raises:
            ConfigurationError: a pattern matches no group.
        """
        if isinstance(self.weight, dict):
            names = [group.name for group in plastic.groups]
            self._per_group = dict.fromkeys(names, 0.0) | match_patterns(self.weight, names, "weight")

    def loss(self, plastic: Priced) -> Tensor:
        """`weight * E[cost]`, (), in loss units; differentiable in the logits.

        Args:
            plastic: costs at the present keep probabilities.
        """
        if not isinstance(self.weight, dict):
            return self.weight * plastic.expected_cost(self.cost)
        if self._per_group is None:
            self.bind(plastic)
        return plastic.expected_cost(self.cost, weights=self._per_group)


@final
class Budget(CostTerm):
    """A bound on the size, `E[cost(z)] <= target`; dual ascent finds the price that enforces it.

    The loss is `p E[cost] / target` with the price p, in loss units, treated as a constant in the gradient:

        p  = dual_ascent(m, E[cost], target, gain)        each loss
        m <- dual_ascent(m, E[cost], target, rate)        each update

    m integrates the violation. Used alone it would overshoot, because the gates integrate in turn: m would still be
    high when the target is reached, after hundreds of steps above it. p therefore looks `gain / rate` steps ahead: once
    the cost has passed the target, p is up to a factor `exp(gain)` below m, and the gates that are worth their price
    come back. Linearised, the loop has damping ratio `(gain / 2) sqrt(q / (rate width))`, where q is the relative
    change of the cost per step and per unit of log price: with the defaults it does not oscillate for q > 2.3e-4. Below
    the target the price falls to exactly 0, and the penalty removes nothing.

    Args:
        cost: "params", "macs", "units" or "layerwise", see `CostTerm`.
        target: a float up to 1 is a fraction of the cost of the model at attach; an int, or a value above 1, is the
            cost itself.
        rate: largest change of the log price per step. Slower gates (a small learning rate) need a smaller one: if the
            price rises faster than the gates follow, it closes them less selectively.
        gain: damping; a violation changes the price at once, by up to a factor `exp(gain)`.
        width: relative violation above which rate and gain act in full.
        scale: negligible price, in loss units per budget, from which the price starts to rise.
        ceiling: largest multiplier, in loss units per budget.

    Attributes:
        bound: the target as a cost; None before `bind`.
        multiplier: (), the multiplier m, in loss units.
        target, rate, gain, width, scale, ceiling: the arguments.

    Raises:
        ConfigurationError: an argument is outside its range.

    Example:
        >>> from types import SimpleNamespace
        >>> plastic = SimpleNamespace(  # stands for the result of npn.attach: 80 of 100 units are open, one must stay
        ...     k=7.0, expected_cost=lambda kind: torch.tensor(80.0),
        ...     full_cost=lambda kind: 100.0, minimum_cost=lambda kind: 1.0)
        >>> budget = Budget(cost="units", target=0.5)
        >>> budget.bind(plastic)
        >>> budget.bound
        50.0
        >>> budget.update(plastic)
        >>> bool(budget.multiplier > 0)
        True
    """

    def __init__(
        self,
        cost: CostKind = "macs",
        target: float = 0.5,
        *,
        rate: float = 0.01,
        gain: float = 3.0,
        width: float = 0.05,
        scale: float = 1e-4,
        ceiling: float = 1e4,
    ) -> None:
        super().__init__(cost)
        if isinstance(target, bool) or not 0.0 < target < math.inf:
            raise ConfigurationError(
                f"target must be a fraction in (0, 1] as a float, or a cost above 1 (or an int), got {target!r}"
            )
        if not 0.0 <= gain < math.inf:
            raise ConfigurationError(f"gain must be a finite number >= 0, got {gain!r}")
        for name, value in (("rate", rate), ("width", width), ("scale", scale), ("ceiling", ceiling)):
            if not 0.0 < value < math.inf:
                raise ConfigurationError(f"{name} must be a finite number > 0, got {value!r}")
        self.target, self.rate, self.gain = target, rate, gain
        self.width, self.scale, self.ceiling = width, scale, ceiling
        self.bound: float | None = None  # the target as a cost, set by `bind`
        self.multiplier = torch.zeros(())
        self._last: Tensor | None = None  # the expected cost of the step under way

    def __repr__(self) -> str:
        bound = "no model yet" if self.bound is None else f"bound={self.bound:,.0f}, price={float(self.multiplier):.3g}"
        return f"Budget(cost={self.cost!r}, target={self.target}; {bound})"

    @property
    def _is_fraction(self) -> bool:
        """Whether the target is a fraction of the cost at attach."""
        return isinstance(self.target, float) and self.target <= 1.0

    def bind(self, plastic: Priced) -> None:
        """Convert the target to a cost of this model.

        Args:
            plastic: the attached model.

        Raises:
            ConfigurationError: the model costs more than the target even with one unit in every group.
        """
        full, least = plastic.full_cost(self.cost), plastic.minimum_cost(self.cost)
        bound = self.target * full if self._is_fraction else float(self.target)
        if bound < least * (1.0 - 1e-9):
            hint = f"{math.ceil(1e4 * least / full) / 1e4:g}" if self._is_fraction else f"{math.ceil(least)}"
            raise ConfigurationError(
                f"Budget(cost={self.cost!r}, target={self.target!r}) allows {bound:g} {self.cost}, but with one unit "
                f"left in every group the model still costs {least:g} of {full:g}; raise the target to {hint} or more, "
                "or let more of the model be removed (plastic.frozen says what is not, and why)"
            )
        self.bound = bound
        self.reset()

    def loss(self, plastic: Priced) -> Tensor:
        """Price times `E[cost] / target`, (), in loss units; differentiable in the logits.

        Args:
            plastic: costs at the present keep probabilities.
        """
        cost = plastic.expected_cost(self.cost)
        self._last = cost.detach()
        return self._ascend(self._last, self.gain) * (cost / self._checked_bound())

    def update(self, plastic: Priced) -> None:
        """Move the multiplier by the present violation; do nothing at k = 0 or inf, where no price moves a gate.

        Args:
            plastic: costs at the present keep probabilities.
        """
        last, self._last = self._last, None
        if not 0.0 < plastic.k < math.inf:
            return
        if last is None:
            with torch.no_grad():
                last = plastic.expected_cost(self.cost)
        self.multiplier = self._ascend(last, self.rate)

    def shared_tensors(self) -> list[Tensor]:
        """The multiplier: GPUs sum in different orders, so the multipliers of the processes would drift apart."""
        return [self.multiplier]

    def reset(self) -> None:
        """Set the multiplier back to 0."""
        self.multiplier, self._last = torch.zeros_like(self.multiplier), None

    def state_dict(self) -> dict[str, Any]:
        """The multiplier and the target, as plain values."""
        more = {"target": self.target, "bound": self.bound, "multiplier": float(self.multiplier)}
        return super().state_dict() | more

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` saved; a target that differs from the saved one keeps its present value.

        Args:
            state: the result of `state_dict`.

        Raises:
            CheckpointError: the state belongs to another kind of penalty or is incomplete; nothing was loaded.
        """
        super().load_state_dict(state)
        missing = {"target", "bound", "multiplier"} - set(state)
        if missing:
            raise CheckpointError(f"not the whole state of a Budget: it lacks {', '.join(sorted(missing))}")
        # A fraction refers to the model that was attached first; the model attached now may be smaller.
        if state["target"] == self.target and state["bound"] is not None:
            self.bound = float(state["bound"])
        self.multiplier, self._last = torch.full_like(self.multiplier, float(state["multiplier"])), None

    def _ascend(self, cost: Tensor, rate: float) -> Tensor:
        """Dual ascent from the present multiplier at a given rate."""
        self.multiplier = self.multiplier.to(cost.device)  # the model may have moved to another device
        return dual_ascent(
            self.multiplier,
            cost.float(),
            self._checked_bound(),
            rate,
            width=self.width,
            scale=self.scale,
            ceiling=self.ceiling,
        )

    def _checked_bound(self) -> float:
        """The bound; raises before `bind`."""
        if self.bound is None:
            raise ConfigurationError("this Budget knows no model yet: give it to npn.attach, or call bind(plastic)")
        return self.bound
