"""The Lp sphere: its dual vectors, a step on it, and Hoyer's measure of sparsity."""

import math

import torch
from torch import Tensor

from npn.errors import ConfigurationError

LEAST_P = 1.05  # |v|^(1/(p-1)) leaves float32 below


def check_p(p: float) -> float:
    """Return p if it lies in [1.05, 2], else raise.

    Args:
        p: order of the norm.

    Raises:
        ConfigurationError: it does not.
    """
    if not (isinstance(p, (int, float)) and LEAST_P <= p <= 2):
        raise ConfigurationError(
            f"p must lie in [{LEAST_P}, 2], got {p!r}; nearer to 1 is sparser, but |v|^(1/(p-1)) leaves float32 there"
        )
    return p


def conjugate(p: float) -> float:
    """The order of the dual norm, q = p / (p - 1)."""
    return p / (p - 1)


def dual_of(w: Tensor, p: float) -> Tensor:
    """The dual vector ``v = sign(w) |w|^(p-1)``: for ||w||_p = 1 it has ||v||_q = 1 and <w, v> = 1.

    Args:
        w: (..., n).
        p: in [1.05, 2].

    Returns:
        v, (..., n).

    Example:
        >>> dual_of(torch.tensor([0.6, -0.8]), 2.0)
        tensor([ 0.6000, -0.8000])
    """
    return w.sign() * w.abs().pow(check_p(p) - 1)


def primal_of(v: Tensor, p: float) -> Tensor:
    """The inverse of ``dual_of``: ``w = sign(v) |v|^(1/(p-1))``.

    Args:
        v: (..., n).
        p: in [1.05, 2].

    Returns:
        w, (..., n).

    Example:
        >>> primal_of(torch.tensor([0.25, -0.5]), 1.5)
        tensor([ 0.0625, -0.2500])
    """
    return v.sign() * v.abs().pow(1 / (check_p(p) - 1))


def dual_step(v: Tensor, direction: Tensor, rate: float, p: float) -> Tensor:
    """A step towards the stationary point of a loss on the sphere, ``v = -grad / ||grad||_q``.

    ``v <- normalised_q((1 - eta) v - eta d / ||d||_q)``. Its result does not depend on the direction's length.

    Args:
        v: (..., n), with ||v||_q = 1 along the last axis.
        direction: d, (..., n), the gradient in w, or its momentum.
        rate: eta, in (0, 1].
        p: in [1.05, 2].

    Returns:
        The new v, (..., n), with ||v||_q = 1.

    Example:
        >>> dual_step(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 5.0]), 0.5, 2.0)
        tensor([ 0.7071, -0.7071])

    References:
        Li et al., "LpSS", arXiv:2103.16013, as in the authors' code.
    """
    q = conjugate(check_p(p))
    return normalised((1 - rate) * v - rate * normalised(direction, q), q)


def normalised(x: Tensor, order: float) -> Tensor:
    """x over its norm of this order along the last axis; zero stays zero. No overflow, no host synchronisation.

    Args:
        x: (..., n).
        order: of the norm.

    Example:
        >>> normalised(torch.tensor([3.0, -4.0]), 2.0)
        tensor([ 0.6000, -0.8000])
    """
    largest = x.abs().amax(-1, keepdim=True)
    x = x / torch.where(largest > 0, largest, torch.ones_like(largest))
    norm = torch.linalg.vector_norm(x, order, dim=-1, keepdim=True)
    return x / torch.where(norm > 0, norm, torch.ones_like(norm))


def hoyer(w: Tensor) -> Tensor:
    """Hoyer's sparsity ``(sqrt n - ||w||_1 / ||w||_2) / (sqrt n - 1)`` along the last axis: 0 constant, 1 one-hot.

    Args:
        w: (..., n), n >= 2, not all zero.

    Returns:
        (...), in [0, 1].

    Raises:
        ConfigurationError: n is 1.

    Example:
        >>> hoyer(torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 2.0, 0.0, 0.0]]))
        tensor([0., 1.])

    References:
        Hoyer, "Non-negative Matrix Factorization with Sparseness Constraints", JMLR 2004.
    """
    n = w.shape[-1]
    if n < 2:
        raise ConfigurationError(f"Hoyer's sparsity needs vectors of two entries or more, got {n}")
    ratio = w.abs().sum(-1) / torch.linalg.vector_norm(w, dim=-1)
    sparsity: Tensor = (math.sqrt(n) - ratio) / (math.sqrt(n) - 1)
    return sparsity.clamp(0, 1)


def expected_hoyer(p: float, n: int, shape: float = 1.0) -> float:
    """Approximate E[hoyer(w)] of a dual vector whose |v_i| are Gamma(shape) distributed; 1 in the limit p = 1.

    ``sqrt n / (sqrt n - 1) (1 - Gamma(k + m) / sqrt(Gamma(k) Gamma(k + 2 m)))`` with ``m = 1/(p - 1)``, for large n.

    Args:
        p: in [1.05, 2].
        n: entries of the vector, >= 2.
        shape: k of the Gamma distribution, mean^2 / variance of |v|.

    Returns:
        From 0 to 1; the approximation may lie above 1 where few entries count, as for p = 1.05 and n = 100.

    Example:
        >>> round(expected_hoyer(2.0, 10_000), 4), round(expected_hoyer(1.5, 10_000), 4)
        (0.2959, 0.5977)
    """
    m = 1 / (check_p(p) - 1)
    ratio = math.exp(math.lgamma(shape + m) - 0.5 * (math.lgamma(shape) + math.lgamma(shape + 2 * m)))
    return math.sqrt(n) / (math.sqrt(n) - 1) * (1 - ratio)
