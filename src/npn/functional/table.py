"""The table of estimators: how each draws its masks, evaluates the loss under them and combines the results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from npn.errors import ConfigurationError
from npn.functional.estimators import antithetic_masks, arm, disarm, double_cv, reinmax, rloo, straight_through


class Draw(NamedTuple):
    """The masks of one step.

    Attributes:
        masks: one or two tensors of 0 and 1, (gates,) or (B, gates).
        uniform: u of the first mask, in the shape of the mask.
    """

    masks: tuple[Tensor, ...]
    uniform: Tensor


class Pass(NamedTuple):
    """How the loss is evaluated under one mask.

    Attributes:
        weights: share of this loss in the weights' gradient; 0 for a forward pass without a backward pass.
        gates: whether the estimator needs dL/dz of this pass.
    """

    weights: float
    gates: bool


@dataclass(frozen=True)
class Estimator:
    """A way to estimate the gradient of E_z[f(z)] with respect to the gates.

    Attributes:
        draw: (pi, uniform) -> masks; `uniform()` draws u ~ U(0, 1) in the shape of a mask.
        passes: one entry per mask.
        combine: (pi, draw, losses, list of dL/dz) -> the log-odds gradient, in the shape of a mask; jointly linear in
            losses and dL/dz. The list of dL/dz is empty if no pass needs it.
        per_example: whether the estimator supports one mask per example.
        unbiased: whether its expectation is the gradient.
    """

    draw: Callable[[Tensor, Callable[[], Tensor]], Draw]
    passes: tuple[Pass, ...]
    combine: Callable[[Tensor, Draw, Sequence[Tensor], Sequence[Tensor]], Tensor]
    per_example: bool = True
    unbiased: bool = True


def _one(pi: Tensor, uniform: Callable[[], Tensor]) -> Draw:
    """Draw one mask."""
    u = uniform()
    return Draw(((u < pi).to(pi.dtype),), u)


def _antithetic(pi: Tensor, uniform: Callable[[], Tensor]) -> Draw:
    """Draw two antithetic masks from one uniform tensor."""
    u = uniform()
    return Draw(antithetic_masks(pi, u), u)


def _independent(pi: Tensor, uniform: Callable[[], Tensor]) -> Draw:
    """Draw two independent masks."""
    u = uniform()
    return Draw(((u < pi).to(pi.dtype), (uniform() < pi).to(pi.dtype)), u)


_GRADIENT = (Pass(weights=1.0, gates=True),)
_TWO_LOSSES = (Pass(weights=1.0, gates=False), Pass(weights=0.0, gates=False))
_TWO_GRADIENTS = (Pass(weights=0.5, gates=True), Pass(weights=0.5, gates=True))

ESTIMATORS: Mapping[str, Estimator] = {
    "arm": Estimator(_antithetic, _TWO_LOSSES, lambda pi, d, f, g: arm(f[0], f[1], d.uniform)),
    "disarm": Estimator(_antithetic, _TWO_LOSSES, lambda pi, d, f, g: disarm(f[0], f[1], d.masks[0], d.masks[1], pi)),
    "rloo": Estimator(_independent, _TWO_LOSSES, lambda pi, d, f, g: rloo(f[0], f[1], d.masks[0], d.masks[1])),
    "double_cv": Estimator(
        _independent,
        _TWO_GRADIENTS,
        lambda pi, d, f, g: double_cv(f[0], f[1], d.masks[0], d.masks[1], g[0], g[1], pi),
        per_example=False,
    ),
    "straight_through": Estimator(_one, _GRADIENT, lambda pi, d, f, g: straight_through(g[0], pi), unbiased=False),
    "reinmax": Estimator(_one, _GRADIENT, lambda pi, d, f, g: reinmax(g[0], d.masks[0], pi), unbiased=False),
}


def check_estimator(name: object, per_example: bool = False) -> None:
    """Raise unless this is the name of an estimator.

    Args:
        name: the argument.
        per_example: whether it has to know one mask per example.

    Raises:
        ConfigurationError: it is none, or has no such form; the message lists the others.
    """
    if name not in tuple(ESTIMATORS):  # a tuple, as what is no name may have no hash
        raise ConfigurationError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {name!r}")
    if per_example and not ESTIMATORS[str(name)].per_example:
        others = ", ".join(other for other, each in ESTIMATORS.items() if each.per_example)
        raise ConfigurationError(f'{name} has no per-example form here; with masks="example" use one of {others}')
