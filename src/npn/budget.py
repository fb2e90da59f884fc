"""A bound on the size, fixed or along a path; dual ascent adjusts the price that enforces it."""

import math
from collections.abc import Mapping
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from npn._utils import cpu
from npn._utils.validation import complete_state, not_negative, positive, target_size, whole_number
from npn.errors import ConfigurationError
from npn.penalty import CostKind, CostTerm, Priced

PathKind = Literal["geometric", "cubic"]


def dual_ascent(
    multiplier: Tensor,
    cost: Tensor,
    target: float | Tensor,
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
        target: bound on the cost, > 0, in the same unit; a float, or ().
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


def bound_along(path: PathKind, start: Tensor, target: float, t: float) -> Tensor:
    """The bound at a fraction t of the way from the start to the target.

        geometric: start^(1-t) target^t
        cubic:     target + (start - target) (1-t)^3

    A geometric path takes the same share of what is left at each step; a cubic one removes most at its beginning.

    Args:
        path: "geometric" or "cubic".
        start: (), cost at t = 0, > 0.
        target: cost at t = 1, > 0, in the same unit.
        t: from 0 to 1.

    Returns:
        (), the bound; no value is read back from the device.

    Example:
        >>> [round(float(bound_along("geometric", torch.tensor(1000.0), 10.0, t)), 1) for t in (0.0, 0.5, 1.0)]
        [1000.0, 100.0, 10.0]
        >>> [round(float(bound_along("cubic", torch.tensor(1000.0), 10.0, t)), 1) for t in (0.0, 0.5, 1.0)]
        [1000.0, 133.8, 10.0]

    References:
        Zhu & Gupta, To prune, or not to prune, arXiv:1710.01878, eq. 1, for the cubic path.
    """
    if path == "geometric":  # both forms are exact at t = 0
        return start * (target / start) ** t
    return start + (target - start) * (1.0 - (1.0 - t) ** 3)


@final
class Budget(CostTerm):
    """A bound on the size, `E[cost(z)] <= b`; dual ascent finds the price that enforces it.

    The bound b is the target, or leads to it along a path. The loss is `p E[cost] / b` with the price p, in loss units,
    treated as a constant in the gradient:

        p  = dual_ascent(m, E[cost], b, gain)        each loss
        m <- dual_ascent(m, E[cost], b, rate)        each update

    m integrates the violation. Used alone it would overshoot, because the gates integrate in turn: m would still be
    high when the bound is reached, after hundreds of steps above it. p therefore looks `gain / rate` steps ahead: once
    the cost has passed the bound, p is up to a factor `exp(gain)` below m, and the gates that are worth their price
    come back. Linearised, the loop has damping ratio `(gain / 2) sqrt(q / (rate width))`, where q is the relative
    change of the cost per step and per unit of log price: with the defaults it does not oscillate for q > 2.3e-4. Below
    the bound the price falls to exactly 0, and the penalty removes nothing.

    With `steps`, b is `bound_along(path, c, target, n / steps)` after n updates at a finite k, where c is the cost at
    the first of them. A bound far below the cost raises the price faster than gates can tell good units from bad ones:
    whole layers close, and the network learns anew. Along a path units close one by one. If c is below the target, as
    in a network that grows, the bound rises, and the price keeps growth below the path. A path over 70% or 80% of the
    plastic stage leaves the rest of it to settle.

    Args:
        cost: "params", "weights", "macs", "units" or "layerwise", see `CostTerm`.
        target: a float up to 1 is a fraction of the cost of the model at attach; an int, or a value above 1, is the
            cost itself.
        steps: updates (calls of `Plasticity.backward` at 0 < k < inf) from the present cost to the target; None bounds
            the cost by the target from the beginning.
        path: "geometric" or "cubic", see `bound_along`; without effect if `steps` is None.
        rate: largest change of the log price per step; None for 0.01, or 0.03 on the way of a path. Slower gates (a
            small learning rate) need a smaller one: if the price rises faster than the gates follow, it closes them
            less selectively. A bound along a path is never far from the cost, and the price may follow it faster.
        gain: damping; a violation changes the price at once, by up to a factor `exp(gain)`.
        width: relative violation above which rate and gain act in full.
        scale: negligible price, in loss units per budget, from which the price starts to rise; None for 1e-4, or 0.01
            on the way of a path, which the price would else follow late.
        ceiling: largest multiplier, in loss units per budget.

    Attributes:
        bound: the target as a cost; None before `bind`.
        bound_now: the present bound.
        steps: the argument; it may be set later, for example once the length of an epoch is known.
        multiplier: (), the multiplier m, in loss units.
        cost, target, path, gain, width, ceiling: the arguments.
        rate, scale: the arguments, or the defaults for them.

    Raises:
        ConfigurationError: an argument is outside its range.

    Example:
        >>> from types import SimpleNamespace
        >>> plastic = SimpleNamespace(  # stands for the result of npn.attach: 80 of 100 units are open, one must stay
        ...     k=7.0, expected_cost=lambda kind: torch.tensor(80.0),
        ...     full_cost=lambda kind: 100.0, minimum_cost=lambda kind: 1.0)
        >>> budget = Budget(cost="units", target=0.2, steps=100)
        >>> budget.bind(plastic)
        >>> budget.bound
        20.0
        >>> for _ in range(50):
        ...     budget.update(plastic)
        >>> budget
        Budget(cost='units', target=0.2; bound=40 on the way to 20 (50 of 100 steps), price=0.0309)

    References:
        Zhu & Gupta, To prune, or not to prune, arXiv:1710.01878, for size along a path.
    """

    def __init__(
        self,
        cost: CostKind = "macs",
        target: float = 0.5,
        steps: int | None = None,
        path: PathKind = "geometric",
        *,
        rate: float | None = None,
        gain: float = 3.0,
        width: float = 0.05,
        scale: float | None = None,
        ceiling: float = 1e4,
    ) -> None:
        super().__init__(cost)
        target_size(target, cost)
        if path not in get_args(PathKind):
            raise ConfigurationError(f"path must be one of {', '.join(map(repr, get_args(PathKind)))}, got {path!r}")
        not_negative("gain", gain)
        for name, value in (("rate", rate), ("width", width), ("scale", scale), ("ceiling", ceiling)):
            if value is not None:
                positive(name, value)
        self.target, self.steps, self.path, self.gain = target, steps, path, gain
        self.width, self.ceiling = width, ceiling
        self._rate, self._scale = rate, scale
        self.bound: float | None = None  # the target as a cost, set by `bind`
        self.multiplier = cpu.zeros((), dtype=torch.float32)
        self._start: Tensor | None = None  # (), the cost at which the path begins, set by its first update
        self._done = 0  # updates along the path
        self._last: Tensor | None = None  # the expected cost of the step under way

    def __repr__(self) -> str:
        bound = "no model yet"
        if self.bound is not None:
            way = f"{self.bound:,.0f}"
            if self._on_the_way:
                now = "the present cost" if self._start is None else f"{float(self._bound(self._start)):,.0f}"
                way = f"{now} on the way to {way} ({self._done} of {self.steps} steps)"
            bound = f"bound={way}, price={float(self.multiplier):.3g}"
        return f"Budget(cost={self.cost!r}, target={self.target}; {bound})"

    @property
    def steps(self) -> int | None:
        """Updates at a finite k from the present cost to the target; None for a fixed bound.

        Raises:
            ConfigurationError: on assignment of anything but None or a whole number >= 1.
        """
        return self._steps

    @steps.setter
    def steps(self, value: int | None) -> None:
        self._steps = None if value is None else whole_number("steps", value, 1, "updates (or None)")

    @property
    def rate(self) -> float:
        """Largest change of the log price per step: the argument, or by default 0.01, and 0.03 on the way of a path."""
        return (0.03 if self._on_the_way else 0.01) if self._rate is None else self._rate

    @property
    def scale(self) -> float:
        """Negligible price: the argument, or by default 1e-4, and 0.01 on the way of a path."""
        return (1e-2 if self._on_the_way else 1e-4) if self._scale is None else self._scale

    @property
    def _on_the_way(self) -> bool:
        """Whether there is a path, and its end is not reached."""
        return self._steps is not None and self._done < self._steps

    @property
    def bound_now(self) -> float | Tensor | None:
        """The present bound: the target as a float, or (). None before `bind`, and before the first step of a path."""
        if self.bound is None or (self.steps is not None and self._start is None):
            return None
        return self._bound(self._start)

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
        """Price times `E[cost] / b`, (), in loss units; differentiable in the logits.

        Args:
            plastic: costs at the present keep probabilities.
        """
        cost = plastic.expected_cost(self.cost)
        self._last = cost.detach()
        return self._ascend(self._last, self.gain) * (cost / self._bound(self._last))

    def update(self, plastic: Priced) -> None:
        """Move the multiplier by the present violation, and go one step along the path.

        At k = 0 or inf, where no price moves a gate, it does nothing.

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
        if self.steps is not None:
            self._start = last.float() if self._start is None else self._start
            self._done += 1

    def shared_tensors(self) -> list[Tensor]:
        """The multiplier, and the start of a path in its first step.

        GPUs sum in different orders, so that the processes would drift apart.
        """
        return [self.multiplier] if self._start is None or self._done > 1 else [self.multiplier, self._start]

    def reset(self) -> None:
        """Set the multiplier back to 0; a path begins anew, at the cost of the next update."""
        self.multiplier, self._start, self._done, self._last = torch.zeros_like(self.multiplier), None, 0, None

    def state_dict(self) -> dict[str, Any]:
        """The multiplier, the target, and the start of the path and the steps done along it, as plain values."""
        return super().state_dict() | {
            "target": self.target,
            "bound": self.bound,
            "multiplier": float(self.multiplier),
            "start": None if self._start is None else float(self._start),
            "done": self._done,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` saved; target, steps and path stay those of this budget.

        A state saved without a path, as by versions that had none, lets the path begin at the cost of the next update.

        Args:
            state: the result of `state_dict`.

        Raises:
            CheckpointError: the state belongs to another kind of penalty or is incomplete; nothing was loaded.
        """
        super().load_state_dict(state)
        complete_state(state, ("target", "bound", "multiplier"), "a Budget", "penalty")
        # A fraction refers to the model that was attached first; the model attached now may be smaller.
        if state["target"] == self.target and state["bound"] is not None:
            self.bound = float(state["bound"])
        self.multiplier, self._last = torch.full_like(self.multiplier, float(state["multiplier"])), None
        start, self._done = state.get("start"), int(state.get("done", 0))
        self._start = None if start is None else torch.full_like(self.multiplier, float(start))

    def _ascend(self, cost: Tensor, rate: float) -> Tensor:
        """Dual ascent from the present multiplier at a given rate."""
        self.multiplier = self.multiplier.to(cost.device)  # the model may have moved to another device
        self._start = None if self._start is None else self._start.to(cost.device)
        return dual_ascent(
            self.multiplier,
            cost.float(),
            self._bound(cost),
            rate,
            width=self.width,
            scale=self.scale,
            ceiling=self.ceiling,
        )

    def _bound(self, cost: Tensor | None) -> float | Tensor:
        """The present bound; a path that has not begun is at the present cost. Raises before `bind`."""
        if self.bound is None:
            raise ConfigurationError("this Budget knows no model yet: give it to npn.attach, or call bind(plastic)")
        start = cost if self._start is None else self._start
        if self.steps is None or self._done >= self.steps or start is None:
            return self.bound
        return bound_along(self.path, start.float(), self.bound, self._done / self.steps)
