"""Hard concrete gates: a stretched binary concrete variable, clipped to [0, 1], that is exactly 0 or 1 often."""

import math

import torch
from torch import Tensor

from npn.errors import ConfigurationError

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # Louizos et al., Section 3
EPSILON = 1e-6


def hard_concrete_sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Sample gates: ``z = clip(s (zeta - gamma) + gamma, 0, 1)``, ``s = sigmoid((logit(u) + log alpha) / beta)``.

    beta = 2/3, gamma = -0.1 and zeta = 1.1. The gradient in ``log_alpha`` is 0 where z is clipped.

    Args:
        log_alpha: (n,), location of each gate.
        uniform: u, (..., n), uniform on [0, 1); moved into [1e-6, 1 - 1e-6].

    Returns:
        z, in the shape of ``uniform``, differentiable in ``log_alpha``.

    Example:
        >>> hard_concrete_sample(torch.zeros(3), torch.tensor([0.01, 0.5, 0.99]))
        tensor([0.0000, 0.5000, 1.0000])

    References:
        Louizos, Welling and Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018, Eq. 10, 11.
    """
    s = torch.sigmoid((torch.logit(uniform, EPSILON) + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def hard_concrete_cdf(log_alpha: Tensor, x: float) -> Tensor:
    """P(sbar <= x) of the stretched variable before clipping.

    ``sigmoid(beta logit((x - gamma)/(zeta - gamma)) - log alpha)``. P(z = 0) is its value at 0, and
    P(z = 1) is 1 minus its value at 1.

    Args:
        log_alpha: (n,).
        x: in (gamma, zeta) = (-0.1, 1.1).

    Returns:
        (n,).

    Raises:
        ConfigurationError: x lies outside the support.

    Example:
        >>> log_alpha = torch.tensor([1.0])
        >>> hard_concrete_cdf(log_alpha, 0.0), 1 - hard_concrete_cdf(log_alpha, 1.0)
        (tensor([0.0692]), tensor([0.3547]))

    References:
        Louizos et al., ICLR 2018, Appendix B.
    """
    if not GAMMA < x < ZETA:
        raise ConfigurationError(f"x must lie in ({GAMMA}, {ZETA}), the support of the stretched gate, got {x}")
    share = (x - GAMMA) / (ZETA - GAMMA)
    return torch.sigmoid(BETA * math.log(share / (1 - share)) - log_alpha)


def hard_concrete_active(log_alpha: Tensor) -> Tensor:
    """P(z != 0) = ``sigmoid(log alpha - beta log(-gamma / zeta))``, the expected L0 norm of each gate.

    Args:
        log_alpha: (n,).

    Returns:
        (n,), differentiable; its derivative is ``active (1 - active)``.

    Example:
        >>> hard_concrete_active(torch.tensor([0.0, -3.0]))
        tensor([0.8318, 0.1976])

    References:
        Louizos et al., ICLR 2018, Eq. 12.
    """
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def hard_concrete_test_gate(log_alpha: Tensor) -> Tensor:
    """Gates for evaluation: ``clip(sigmoid(log alpha)(zeta - gamma) + gamma, 0, 1)``, without beta.

    0 for ``log alpha <= -log 11``, where P(z != 0) is still 0.31.

    Args:
        log_alpha: (n,).

    Returns:
        (n,).

    Example:
        >>> hard_concrete_test_gate(torch.tensor([0.0, 1.0, -3.0]))
        tensor([0.5000, 0.7773, 0.0000])

    References:
        Louizos et al., ICLR 2018, Eq. 13.
    """
    return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
