"""Gate functions g: map a gate's logit phi and the sharpness k to its keep probability pi = g(k phi)."""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from npn.errors import ConfigurationError


@runtime_checkable
class GateFunction(Protocol):
    """Interface of a custom gate function, elementwise in x = k phi.

    `g(x)` returns the keep probability, `derivative(x)` returns g'(x), and `inverse(probability)` returns the x at
    which g(x) is that probability. All three take and return tensors of any one shape.

    Example:
        >>> import torch
        >>> class Cauchy:
        ...     def __call__(self, x): return 0.5 + torch.atan(x) / torch.pi
        ...     def derivative(self, x): return 1 / (torch.pi * (1 + x * x))
        ...     def inverse(self, probability): return torch.tan(torch.pi * (probability - 0.5))
        >>> keep_probability(torch.tensor([-1.0, 0.0, 1.0]), k=1.0, function=Cauchy())
        tensor([0.2500, 0.5000, 0.7500])
    """

    def __call__(self, x: Tensor) -> Tensor: ...

    def derivative(self, x: Tensor) -> Tensor: ...

    def inverse(self, probability: Tensor) -> Tensor: ...


@final
@dataclass(frozen=True)
class Sigmoid:
    """Logistic gate ``g(x) = 1 / (1 + exp(-x))``, antithetic: ``g(-x) = 1 - g(x)``.

    Example:
        >>> import torch
        >>> Sigmoid()(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([0.2689, 0.5000, 0.7311])
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Keep probability g(x).

        Args:
            x: k phi, any shape.
        """
        return torch.sigmoid(x)

    def derivative(self, x: Tensor) -> Tensor:
        """Derivative g'(x) = g(x) g(-x).

        Args:
            x: k phi, any shape.
        """
        # g(-x) instead of 1 - g(x), which loses precision where g(x) rounds to 1.
        return torch.sigmoid(x) * torch.sigmoid(-x)

    def inverse(self, probability: Tensor) -> Tensor:
        """The log-odds x with g(x) = probability; infinite at 0 and 1, NaN outside [0, 1].

        Args:
            probability: pi, any shape.
        """
        return torch.logit(probability)


@final
@dataclass(frozen=True)
class HardSigmoid:
    """Centred hard sigmoid ``g(x) = clip(x / 7 + 1/2, 0, 1)``, antithetic, exactly 0 and 1 at finite x.

    Attributes:
        WIDTH: length of the interval of x over which g rises from 0 to 1.

    Example:
        >>> import torch
        >>> HardSigmoid()(torch.tensor([-4.0, 0.0, 1.75, 4.0]))
        tensor([0.0000, 0.5000, 0.7500, 1.0000])
    """

    WIDTH: ClassVar[float] = 7.0

    def __call__(self, x: Tensor) -> Tensor:
        """Keep probability g(x).

        Args:
            x: k phi, any shape.
        """
        # hardtanh instead of clamp: its derivative is 0 on the boundary, as in `derivative`.
        return torch.nn.functional.hardtanh(x / self.WIDTH + 0.5, 0.0, 1.0)

    def derivative(self, x: Tensor) -> Tensor:
        """Derivative g'(x) = 1/7 where 0 < g(x) < 1, 0 where clipped.

        Args:
            x: k phi, any shape.
        """
        p = self(x)
        return ((p > 0) & (p < 1)).to(x.dtype) / self.WIDTH

    def inverse(self, probability: Tensor) -> Tensor:
        """The x with g(x) = probability; the edges of the clipped range at 0 and 1, NaN outside [0, 1].

        Args:
            probability: pi, any shape.
        """
        x = self.WIDTH * (probability - 0.5)
        return torch.where((probability >= 0) & (probability <= 1), x, math.nan)


@final
@dataclass(frozen=True)
class ShiftedSigmoid:
    """Shifted logistic gate ``g(x) = 1 / (1 + exp(-x - shift))``, not antithetic: ``g(-x) != 1 - g(x)``.

    Args:
        shift: log-odds of a gate whose logit is 0; gates start open for shift > 0, closed for shift < 0.

    Attributes:
        shift: the argument.

    Raises:
        ConfigurationError: the shift is not finite.

    Example:
        >>> import torch
        >>> ShiftedSigmoid(shift=2.0)(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([0.5000, 0.8808, 0.9820])
    """

    shift: float = 2.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.shift):
            raise ConfigurationError(f"ShiftedSigmoid expects a finite shift, got {self.shift}; its default is 2.0")

    def __call__(self, x: Tensor) -> Tensor:
        """Keep probability g(x).

        Args:
            x: k phi, any shape.
        """
        return torch.sigmoid(x + self.shift)

    def derivative(self, x: Tensor) -> Tensor:
        """Derivative g'(x) = sigmoid(x + shift) sigmoid(-x - shift).

        Args:
            x: k phi, any shape.
        """
        return torch.sigmoid(x + self.shift) * torch.sigmoid(-x - self.shift)

    def inverse(self, probability: Tensor) -> Tensor:
        """The x with g(x) = probability, the log-odds minus the shift; infinite at 0 and 1, NaN outside [0, 1].

        Args:
            probability: pi, any shape.
        """
        return torch.logit(probability) - self.shift


_BY_NAME: dict[str, GateFunction] = {
    "sigmoid": Sigmoid(),
    "hard_sigmoid": HardSigmoid(),
    "shifted_sigmoid": ShiftedSigmoid(),
}
_BUILT_IN = (Sigmoid, HardSigmoid, ShiftedSigmoid)


def gate_function(function: str | GateFunction) -> GateFunction:
    """Look up a gate function by name; return an object that already is one.

    Args:
        function: ``"sigmoid"``, ``"hard_sigmoid"``, ``"shifted_sigmoid"`` or an object with ``__call__``,
            ``derivative`` and ``inverse``.

    Returns:
        The gate function.

    Raises:
        ConfigurationError: the name is unknown, or the object is not a gate function.

    Example:
        >>> gate_function("hard_sigmoid")
        HardSigmoid()
        >>> gate_function(ShiftedSigmoid(shift=1.0))
        ShiftedSigmoid(shift=1.0)
    """
    if type(function) in _BUILT_IN:  # isinstance with a runtime protocol is slower than a whole step's arithmetic
        return function  # type: ignore[return-value]
    if isinstance(function, str):
        if function in _BY_NAME:
            return _BY_NAME[function]
    elif isinstance(function, GateFunction) and not isinstance(function, type):
        return function
    names = ", ".join(repr(name) for name in _BY_NAME)
    raise ConfigurationError(
        f"unknown gate function {function!r}; pass one of {names}, or an object with __call__(x), "
        "derivative(x) and inverse(probability)"
    )


def function_name(function: GateFunction) -> str:
    """Name a gate function in the same way in every process; checkpoints compare gate functions by this name.

    Args:
        function: a gate function.

    Returns:
        The object's `repr` if its class defines one, else the class and the object's plain values.

    Example:
        >>> function_name(ShiftedSigmoid(shift=1.0))
        'ShiftedSigmoid(shift=1.0)'
    """
    kind = type(function)
    if kind.__repr__ is not object.__repr__:
        return repr(function)
    plain = {name: value for name, value in vars(function).items() if isinstance(value, bool | int | float | str)}
    return f"{kind.__module__}.{kind.__qualname__}({', '.join(f'{k}={v!r}' for k, v in sorted(plain.items()))})"


def _check(values: Tensor, k: float, name: str = "logits") -> None:
    """Raise unless values are floating point and k is a number >= 0."""
    if not values.is_floating_point():
        raise ConfigurationError(
            f"{name} must be a floating point tensor, got {values.dtype}; convert it with .float()"
        )
    if not k >= 0:  # also refuses NaN
        raise ConfigurationError(
            f"the sharpness k must be a number >= 0, got {k}; use 0 < k < inf while units come and go, "
            "k = math.inf for the deterministic mask, k = 0.0 for dropout with probability 1 - g(0)"
        )


def _finite_in(dtype: torch.dtype, k: float) -> float:
    """The sharpness, at most the largest number of the dtype."""
    # A k beyond the dtype's range would become inf, and inf * 0 is NaN.
    return min(float(k), torch.finfo(dtype).max)


def keep_probability(logits: Tensor, k: float, function: str | GateFunction = "sigmoid") -> Tensor:
    """Probability that each unit is kept, ``pi = g(k phi)``.

    ``k = inf`` selects the deterministic mode, ``pi = 1[phi > 0]`` without a gradient. ``k = 0`` gives g(0) everywhere.

    Args:
        logits: phi, any shape, floating point and finite.
        k: sharpness, >= 0 or ``math.inf``.
        function: the gate function g, by name or as an object.

    Returns:
        pi in [0, 1], shape and dtype of ``logits``, differentiable in them for finite k. Never NaN for finite phi.

    Raises:
        ConfigurationError: k is negative or NaN, the logits are not floating point, or the function is unknown.

    Example:
        >>> import math, torch
        >>> phi = torch.tensor([-0.5, 0.0, 0.5])
        >>> keep_probability(phi, k=7.0)
        tensor([0.0293, 0.5000, 0.9707])
        >>> keep_probability(phi, k=math.inf)
        tensor([0., 0., 1.])

    References:
        Li and Ji, "Neural Plasticity Networks", IJCNN 2021: q(z_j = 1) = g(k phi_j), with k moving the stages.
    """
    _check(logits, k)
    g = gate_function(function)
    if k == math.inf:
        return (logits > 0).to(logits.dtype)
    return g(logits * _finite_in(logits.dtype, k))


def keep_probability_derivative(logits: Tensor, k: float, function: str | GateFunction = "sigmoid") -> Tensor:
    """Derivative of the keep probability in the logit, ``d pi / d phi = k g'(k phi)``.

    Args:
        logits: phi, any shape, floating point and finite.
        k: sharpness, >= 0 or ``math.inf``; the derivative is 0 at 0 and at inf.
        function: the gate function g, by name or as an object.

    Returns:
        The derivative, shape and dtype of ``logits``, finite and >= 0; 0 where the hard sigmoid is clipped.

    Raises:
        ConfigurationError: k is negative or NaN, the logits are not floating point, or the function is unknown.

    Example:
        >>> import torch
        >>> keep_probability_derivative(torch.tensor([0.0, 1.0]), k=7.0)
        tensor([1.7500, 0.0064])
        >>> keep_probability_derivative(torch.tensor([0.0, 1.0]), k=7.0, function="hard_sigmoid")
        tensor([1., 0.])
    """
    _check(logits, k)
    g = gate_function(function)
    if k in (0.0, math.inf):
        return torch.zeros_like(logits)
    k = _finite_in(logits.dtype, k)
    return k * g.derivative(k * logits)


def logits_for(probability: Tensor, k: float, function: str | GateFunction = "sigmoid") -> Tensor:
    """Logits at which gates of sharpness k keep their units with the given probability, ``phi = g^-1(pi) / k``.

    Args:
        probability: pi, any shape; in (0, 1), or in [0, 1] for the hard sigmoid.
        k: sharpness, finite and > 0 (at 0 and inf the probability does not determine the logit).
        function: the gate function g, by name or as an object.

    Returns:
        phi, shape and dtype of ``probability``, all finite. Checking this synchronises with an accelerator once.

    Raises:
        ConfigurationError: k is not finite and positive, or no finite logit gives one of the probabilities.

    Example:
        >>> import torch
        >>> phi = logits_for(torch.tensor([0.05, 0.95]), k=7.0)
        >>> phi
        tensor([-0.4206,  0.4206])
        >>> keep_probability(phi, k=7.0)
        tensor([0.0500, 0.9500])
    """
    _check(probability, k, "probability")
    g = gate_function(function)
    if k == 0 or k == math.inf:
        raise ConfigurationError(
            f"logits have an inverse only for a finite k > 0, got k = {k}; pass the k of the stage in which "
            "the units are to have these probabilities"
        )
    logits = g.inverse(probability) / k
    if not bool(torch.isfinite(logits).all()):
        low, high = probability.min().item(), probability.max().item()
        raise ConfigurationError(
            f"no finite logit of {g} at k = {k} gives every probability asked for (they span {low} to {high}); "
            "keep them away from 0 and 1, for example 0.05 for a closed unit and 0.95 for an open one"
        )
    return logits


def chain_factor(logits: Tensor, k: float, function: str | GateFunction = "sigmoid") -> Tensor:
    """Factor that turns a gradient in the log-odds ``a = log(pi / (1 - pi))`` into the gradient in phi.

    ``da / dphi = k g'(k phi) / (pi (1 - pi))``. It is exactly k for both sigmoids and not constant for any other g: for
    the hard sigmoid it is ``(k / 7) / (pi (1 - pi))``, and 0 where clipped.

    Args:
        logits: phi, any shape, floating point and finite.
        k: sharpness, >= 0 or ``math.inf``; the factor is 0 at 0 and at inf, where phi does not move.
        function: the gate function g, by name or as an object.

    Returns:
        The factor, shape and dtype of ``logits``, always finite. Multiply the result of any estimator of
        ``npn.functional`` by it.

    Raises:
        ConfigurationError: k is negative or NaN, the logits are not floating point, or the function is unknown.

    Example:
        >>> import torch
        >>> phi = torch.tensor([0.0, 0.25, 1.0])
        >>> chain_factor(phi, k=7.0)
        tensor([7., 7., 7.])
        >>> chain_factor(phi, k=7.0, function="hard_sigmoid")
        tensor([4.0000, 5.3333, 0.0000])

    References:
        Li and Ji, "Neural Plasticity Networks", IJCNN 2021, allows any antithetic g; without this factor that holds for
        the sigmoid only.
    """
    _check(logits, k)
    g = gate_function(function)
    if k in (0.0, math.inf):
        return torch.zeros_like(logits)
    k = _finite_in(logits.dtype, k)
    if isinstance(g, Sigmoid | ShiftedSigmoid):
        return torch.full_like(logits, k)  # a = k phi + constant; the quotient would be 0 / 0 once pi saturates
    p = g(k * logits)
    variance = p * (1 - p)
    moves = variance > 0
    factor = k * (g.derivative(k * logits) / torch.where(moves, variance, 1.0))
    return torch.where(moves, factor, 0.0).clamp(max=torch.finfo(logits.dtype).max)
