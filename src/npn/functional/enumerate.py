"""Compute expectations over gates and their gradients exactly, over all 2^n masks: the reference for the estimators."""

from collections.abc import Callable

import torch
from torch import Tensor

from npn.errors import ConfigurationError
from npn.functional.gates import GateFunction, keep_probability, keep_probability_derivative

MAX_UNITS = 20


def _values(f: Callable[[Tensor], Tensor], like: Tensor, batched: bool) -> Tensor:
    """Evaluate f at every mask, (2^n,) in float64; mask i is i in binary with unit 0 as the highest bit."""
    if like.ndim != 1 or len(like) > MAX_UNITS:
        raise ConfigurationError(
            f"enumeration expects one axis of at most {MAX_UNITS} gates (2^n masks), got shape {tuple(like.shape)}; "
            "estimate larger expectations from draws"
        )
    n = len(like)
    bits = torch.arange(n - 1, -1, -1, device=like.device)
    masks = ((torch.arange(2**n, device=like.device)[:, None] >> bits) & 1).to(like.dtype)
    values = f(masks) if batched else torch.stack([f(mask) for mask in masks])
    if values.shape != (2**n,):
        raise ConfigurationError(
            f"f must give one number per mask: expected shape {(2**n,)} over all masks, got {tuple(values.shape)}; "
            + ("map (M, n) to (M,)" if batched else "map (n,) to a scalar tensor, or pass batched=True")
        )
    return values.double()


def _mean(values: Tensor, probability: Tensor) -> Tensor:
    """Expectation of values (2^n,), integrating out one gate at a time."""
    for pi in probability:
        closed, opened = values.view(2, -1)
        values = (1 - pi) * closed + pi * opened
    return values.squeeze()


def exact_expectation(f: Callable[[Tensor], Tensor], probability: Tensor, *, batched: bool = False) -> Tensor:
    """Expectation under independent gates, ``E[f(z)] = sum_z f(z) prod_j pi_j^z_j (1 - pi_j)^(1 - z_j)``.

    Args:
        f: maps a mask of zeros and ones, (n,) in the dtype of ``probability``, to a scalar.
        probability: pi, (n,) with n <= 20.
        batched: call f once with all masks, (2^n, n), and expect all values, (2^n,).

    Returns:
        Scalar in the dtype of ``probability`` (summed in float64), differentiable in ``probability``.

    Raises:
        ConfigurationError: there are more than 20 gates, or f does not give one number per mask.

    Example:
        >>> import torch
        >>> exact_expectation(lambda z: z.sum() ** 2, torch.tensor([0.5, 1.0]))  # half 1, half 4
        tensor(2.5000)
    """
    return _mean(_values(f, probability, batched), probability.double()).to(probability.dtype)


def exact_gradient(
    f: Callable[[Tensor], Tensor],
    logits: Tensor,
    k: float,
    function: str | GateFunction = "sigmoid",
    *,
    batched: bool = False,
) -> Tensor:
    """Gradient of the expectation in the logits, ``dE[f(z)] / dphi_j = k g'(k phi_j) D_j``.

    ``D_j = E[f | z_j = 1] - E[f | z_j = 0]`` is well defined for gates with pi = 0 or 1 as well.

    Args:
        f: maps a mask of zeros and ones, (n,) in the dtype of ``logits``, to a scalar.
        logits: phi, (n,) with n <= 20.
        k: sharpness, >= 0 or ``math.inf``; the gradient is 0 at 0 and at inf.
        function: the gate function g, by name or as an object.
        batched: call f once with all masks, (2^n, n), and expect all values, (2^n,).

    Returns:
        Gradient, (n,), in the dtype of ``logits``. With k = 1 and the sigmoid it is the log-odds gradient
        ``pi_j (1 - pi_j) D_j`` that the estimators estimate.

    Raises:
        ConfigurationError: there are more than 20 gates, f does not give one number per mask, or k is negative.

    Example:
        >>> import torch
        >>> exact_gradient(lambda z: z.sum() ** 2, torch.zeros(2), k=1.0)  # D = E[1 + 2 z_other] = 2
        tensor([0.5000, 0.5000])
    """
    logits = logits.detach()
    slope = keep_probability_derivative(logits, k, function)
    values = _values(f, logits, batched).detach()
    # E is linear in each pi_j, so its derivative there is D_j.
    with torch.enable_grad():
        pi = keep_probability(logits, k, function).double().requires_grad_()
        (difference,) = torch.autograd.grad(_mean(values, pi), pi)
    return slope * difference.to(slope.dtype)
