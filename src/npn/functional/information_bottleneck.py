"""Gaussian gates of the variational information bottleneck: sample, price, signal-to-noise ratio."""

import torch
from torch import Tensor


def bottleneck_sample(mean: Tensor, log_variance: Tensor, normal: Tensor) -> Tensor:
    """Sample gates: ``z = mu + sigma e``.

    Args:
        mean: mu, (n,).
        log_variance: log sigma^2, (n,).
        normal: e, (..., n), standard normal.

    Returns:
        z, in the shape of ``normal``, differentiable.

    Example:
        >>> bottleneck_sample(torch.ones(1), torch.zeros(1), torch.tensor([-0.5]))
        tensor([0.5000])

    References:
        Dai, Zhu, Guo and Wipf, "Compressing Neural Networks using the Variational Information Bottleneck", ICML 2018.
    """
    return mean + torch.exp(0.5 * log_variance) * normal


def bottleneck_penalty(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Upper bound of a unit's information, in nats: ``1/2 log(1 + mu^2 / sigma^2)``.

    It is the smallest KL(N(mu, sigma^2) || N(0, t)) over the prior's variance t, which is ``t = mu^2 + sigma^2``.

    Args:
        mean: mu, (n,).
        log_variance: log sigma^2, (n,).

    Returns:
        (n,), >= 0, differentiable.

    Example:
        >>> bottleneck_penalty(torch.tensor([0.0, 1.0]), torch.zeros(2))
        tensor([0.0000, 0.3466])

    References:
        Dai et al., ICML 2018, Eq. 8 and 11.
    """
    return 0.5 * torch.log1p(mean.square() * torch.exp(-log_variance))


def bottleneck_noise(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log of noise over signal, ``log(sigma^2 / mu^2)``; a unit at or above 0 carries more noise than signal.

    Args:
        mean: mu, (n,).
        log_variance: log sigma^2, (n,).

    Returns:
        (n,); infinite where mu is 0.

    Example:
        >>> bottleneck_noise(torch.tensor([1.0]), torch.tensor([-9.0]))
        tensor([-9.])
    """
    return log_variance - 2 * mean.abs().log()
