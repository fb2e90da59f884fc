"""Kumaraswamy distributions of keep probabilities, relaxed Bernoulli gates, the divergence of two Gaussians."""

import torch
from torch import Tensor

from npn.errors import ConfigurationError

EULER = 0.57721566490153286
EPSILON = 1e-6


def kumaraswamy_sample(a: Tensor, b: Tensor, uniform: Tensor) -> Tensor:
    """Sample pi with density ``a b pi^(a-1) (1 - pi^a)^(b-1)``: ``pi = (1 - u^(1/b))^(1/a)``.

    Args:
        a: (n,), > 0.
        b: (n,), > 0.
        uniform: u, (..., n), uniform on [0, 1); moved into [1e-6, 1 - 1e-6].

    Returns:
        pi, in the shape of ``uniform``, differentiable in a and b.

    Example:
        >>> kumaraswamy_sample(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.75]))
        tensor([0.5000])

    References:
        Lee et al., "Adaptive Network Sparsification with Dependent Variational Beta-Bernoulli Dropout", 2018, Eq. 8.
    """
    u = uniform.clamp(EPSILON, 1 - EPSILON)
    return (-torch.expm1(u.log() / b)).pow(1 / a)


def kumaraswamy_mean(a: Tensor, b: Tensor) -> Tensor:
    """E[pi] = ``b Gamma(1 + 1/a) Gamma(b) / Gamma(1 + 1/a + b)``; for b = 1 it is ``a / (1 + a)``.

    Args:
        a: (n,), > 0.
        b: (n,), > 0.

    Returns:
        (n,).

    Example:
        >>> kumaraswamy_mean(torch.tensor([2.0, 0.5]), torch.tensor([3.0, 2.0]))
        tensor([0.4571, 0.1667])
    """
    c = 1 + 1 / a
    return torch.exp(b.log() + torch.lgamma(c) + torch.lgamma(b) - torch.lgamma(c + b))


def kumaraswamy_kl(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """KL(Kumaraswamy(a, b) || Beta(alpha, 1)), exactly.

    ``(1 - alpha/a)(-gE - psi(b) - 1/b) + log(a b / alpha) - (b - 1)/b``, with Euler's constant gE and the digamma psi.

    Args:
        a: (n,), > 0.
        b: (n,), > 0.
        alpha: > 0; small values favour keep probabilities near 0.

    Returns:
        (n,), >= 0, differentiable.

    Raises:
        ConfigurationError: alpha is not positive.

    Example:
        >>> kumaraswamy_kl(torch.tensor([2.0, 1.0]), torch.tensor([3.0, 1.0]), 1.0)
        tensor([0.2084, 0.0000])

    References:
        Lee et al., 2018, Eq. 9; Nalisnick and Smyth, "Stick-Breaking Variational Autoencoders", ICLR 2017.
    """
    if not alpha > 0:
        raise ConfigurationError(f"alpha must be > 0, got {alpha!r}")
    return (1 - alpha / a) * (-EULER - torch.digamma(b) - 1 / b) + torch.log(a * b / alpha) - (b - 1) / b


def relaxed_bernoulli(probability: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """A gate between 0 and 1 that is near one of them: ``z = sigmoid((logit(pi) + logit(u)) / temperature)``.

    Args:
        probability: pi, broadcast with ``uniform``; moved into [1e-6, 1 - 1e-6].
        uniform: u, (..., n), uniform on [0, 1); moved likewise.
        temperature: > 0; z is 0 or 1 in the limit 0, where P(z = 1) = pi.

    Returns:
        z, in the shape of ``uniform``, differentiable in pi.

    Example:
        >>> relaxed_bernoulli(torch.tensor([0.5, 0.9]), torch.tensor([0.5, 0.5]), 0.1)
        tensor([0.5000, 1.0000])

    References:
        Maddison, Mnih and Teh, "The Concrete Distribution", ICLR 2017.
    """
    return torch.sigmoid((torch.logit(probability, EPSILON) + torch.logit(uniform, EPSILON)) / temperature)


def gaussian_kl(mean: Tensor, deviation: Tensor, prior_deviation: float) -> Tensor:
    """KL(N(mean, deviation^2) || N(0, rho^2)) = ``log(rho/s) + (s^2 + m^2)/(2 rho^2) - 1/2``.

    Args:
        mean: m, (n,).
        deviation: s, (n,), > 0.
        prior_deviation: rho, > 0.

    Returns:
        (n,), >= 0, differentiable.

    Example:
        >>> gaussian_kl(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 1.0]), 2.0)
        tensor([0.0000, 0.4431])
    """
    variance = prior_deviation * prior_deviation
    scaled = (deviation.square() + mean.square()) / variance
    return 0.5 * (scaled - 1 - torch.log(deviation.square() / variance))
