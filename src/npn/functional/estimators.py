"""Estimators of the gradient of the expected loss with respect to the gates, as pure functions of the draws.

Every estimator here is in *log-odds form*: with ``D_j = E[f | z_j = 1] - E[f | z_j = 0]`` its mean is
``pi_j (1 - pi_j) D_j``, the gradient in ``a_j = log(pi_j / (1 - pi_j))``. Multiply by ``chain_factor`` for phi.

Shapes: one mask for the whole batch is a scalar loss with (n,) masks; one mask per example is (B,) losses with
(B, n) masks, where the loss of example b must depend on mask b alone. Any number of leading axes is allowed. The
result has the shape of the masks. Losses and their gradients are detached; only ``alpha`` of ``double_cv`` keeps its
graph.
"""

import torch
from torch import Tensor

from npn.errors import ConfigurationError


def _column(loss: Tensor, masks: Tensor) -> Tensor:
    """Reshape a detached loss so that it multiplies masks: (B,) to (B, 1), () to (1,)."""
    if loss.shape != masks.shape[:-1]:
        raise ConfigurationError(
            f"expected one loss per mask: masks {tuple(masks.shape)} need losses {tuple(masks.shape[:-1])}, got "
            f"{tuple(loss.shape)}; per-example masks need per-example losses (reduction='none'), a shared mask a scalar"
        )
    return loss.detach().unsqueeze(-1)


def antithetic_masks(probability: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Two masks from one uniform draw, each Bernoulli(pi), with the lowest correlation possible.

    ``z = 1[u < pi]`` and ``z~ = 1[u > 1 - pi]``. The second threshold is ``1 - pi`` and not ``g(-k phi)``; the two
    agree only for an antithetic g.

    Args:
        probability: keep probabilities pi, (n,).
        uniform: u, (n,) or (B, n), uniform on [0, 1).

    Returns:
        ``(mask, mask_antithetic)``, both 0 or 1 in the shape of ``uniform`` and dtype of ``probability``. Both equal pi
        where pi is 0 or 1.

    Example:
        >>> import torch
        >>> antithetic_masks(torch.tensor([0.3, 0.3, 0.9]), torch.tensor([0.1, 0.8, 0.5]))
        (tensor([1., 0., 1.]), tensor([0., 1., 1.]))

    References:
        Yin and Zhou, "ARM", ICLR 2019, Theorem 1: 1[u > sigmoid(-phi)], the same for the sigmoid.
        Dong, Mnih and Tucker, "DisARM", NeurIPS 2020.
    """
    # torch.rand returns 0 once in 2^24 draws: without the second clause that would close a gate with pi = 1.
    antithetic = (uniform > 1 - probability) | (probability >= 1)
    return (uniform < probability).to(probability.dtype), antithetic.to(probability.dtype)


def arm(loss: Tensor, loss_antithetic: Tensor, uniform: Tensor) -> Tensor:
    """Augment-REINFORCE-merge: ``(f(z~) - f(z)) (u - 1/2)``. Unbiased; one extra forward pass.

    Args:
        loss: f(z) at ``z = 1[u < pi]``, () or (B,).
        loss_antithetic: f(z~) at ``z~ = 1[u > 1 - pi]``, the same shape.
        uniform: u of both masks, (n,) or (B, n).

    Returns:
        Log-odds gradient, shape of ``uniform``.

    Raises:
        ConfigurationError: the number of losses differs from the number of masks.

    Example:
        >>> import torch
        >>> arm(torch.tensor(1.0), torch.tensor(3.0), torch.tensor([0.25, 0.9]))
        tensor([-0.5000,  0.8000])

    References:
        Yin and Zhou, "ARM: Augment-REINFORCE-Merge Gradient for Stochastic Binary Networks", ICLR 2019, Theorem 1.
        Li and Ji, "L0-ARM: Network Sparsification via Stochastic Binary Optimization", ECML 2019.
    """
    return (_column(loss_antithetic, uniform) - _column(loss, uniform)) * (uniform - 0.5)


def disarm(loss: Tensor, loss_antithetic: Tensor, mask: Tensor, mask_antithetic: Tensor, probability: Tensor) -> Tensor:
    """ARM with u integrated out: ``1/2 (f(z) - f(z~)) (z - z~) max(pi, 1 - pi)``. Unbiased, variance <= ARM's.

    Args:
        loss: f(z), () or (B,).
        loss_antithetic: f(z~), the same shape.
        mask: z, (n,) or (B, n).
        mask_antithetic: z~ of the same uniform draw, shape of ``mask``.
        probability: pi, (n,).

    Returns:
        Log-odds gradient, shape of ``mask``; 0 for every unit on which the two masks agree.

    Raises:
        ConfigurationError: the number of losses differs from the number of masks.

    Example:
        >>> import torch
        >>> pi = torch.tensor([0.3, 0.9])
        >>> z, z_antithetic = antithetic_masks(pi, torch.tensor([0.1, 0.5]))
        >>> disarm(torch.tensor(1.0), torch.tensor(3.0), z, z_antithetic, pi)
        tensor([-0.7000, -0.0000])

    References:
        Dong, Mnih and Tucker, "DisARM: An Antithetic Gradient Estimator for Binary Latent Variables", NeurIPS 2020:
        1/2 (f(b) - f(b~)) (-1)^b~ 1[b != b~] sigmoid(|a|). Found at the same time by Yin, Ho, Yan, Qian and Zhou,
        "Probabilistic Best Subset Selection via Gradient-Based Optimization", 2020, as U2G.
    """
    difference = _column(loss, mask) - _column(loss_antithetic, mask)
    return 0.5 * difference * (mask - mask_antithetic) * torch.maximum(probability, 1 - probability)


def rloo(loss_1: Tensor, loss_2: Tensor, mask_1: Tensor, mask_2: Tensor) -> Tensor:
    """REINFORCE, each draw the other's baseline: ``1/2 (f(z1) - f(z2)) (z1 - z2)``. Unbiased; one extra forward pass.

    Args:
        loss_1: f(z1), () or (B,).
        loss_2: f(z2), the same shape.
        mask_1: z1, (n,) or (B, n).
        mask_2: z2, drawn independently of z1, shape of ``mask_1``.

    Returns:
        Log-odds gradient, shape of ``mask_1``.

    Raises:
        ConfigurationError: the number of losses differs from the number of masks.

    Example:
        >>> import torch
        >>> rloo(torch.tensor(1.0), torch.tensor(3.0), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
        tensor([-1., -0.])

    References:
        Kool, van Hoof and Welling, "Buy 4 REINFORCE Samples, Get a Baseline for Free!", ICLR 2019 workshop, two draws:
        1/2 [(f1 - f2) (z1 - pi) + (f2 - f1) (z2 - pi)].
    """
    return 0.5 * (_column(loss_1, mask_1) - _column(loss_2, mask_2)) * (mask_1 - mask_2)


def double_cv(
    loss_1: Tensor,
    loss_2: Tensor,
    mask_1: Tensor,
    mask_2: Tensor,
    gradient_1: Tensor,
    gradient_2: Tensor,
    probability: Tensor,
    alpha: float | Tensor = -1.0,
) -> Tensor:
    """RLOO with a gradient control variate on both draws. Unbiased for every alpha; two forward-backward passes.

    ``1/2 [f1 + alpha G2.(z1 - pi) - f2 - alpha G1.(z2 - pi)] (z1 - z2) - alpha pi (1 - pi) (G1 + G2) / 2``.

    Args:
        loss_1: f(z1), () or (B,).
        loss_2: f(z2), the same shape.
        mask_1: z1, (n,) or (B, n).
        mask_2: z2, drawn independently of z1, shape of ``mask_1``.
        gradient_1: G1 = df/dz at z1, shape of ``mask_1``; with masks per example, the gradient of each example's own
            loss.
        gradient_2: G2 = df/dz at z2, shape of ``mask_1``.
        probability: pi, (n,).
        alpha: weight of the control variate; 0 gives plain RLOO. To learn it, pass a tensor that requires grad and
            minimise the square of the result.

    Returns:
        Log-odds gradient, shape of ``mask_1``.

    Raises:
        ConfigurationError: the number of losses differs from the number of masks.

    Example:
        >>> import torch
        >>> weight, pi = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.8])
        >>> z1, z2 = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0])
        >>> double_cv(weight @ z1, weight @ z2, z1, z2, weight, weight, pi)  # exact for a linear loss
        tensor([ 0.5000, -0.1600])

    References:
        Titsias and Shi, "Double Control Variates for Gradient Estimation in Discrete Latent Variable Models",
        AISTATS 2022.
    """
    gradient_1, gradient_2 = gradient_1.detach(), gradient_2.detach()
    surrogate_1 = (gradient_2 * (mask_1 - probability)).sum(-1, keepdim=True)
    surrogate_2 = (gradient_1 * (mask_2 - probability)).sum(-1, keepdim=True)
    f_1 = _column(loss_1, mask_1) + alpha * surrogate_1
    f_2 = _column(loss_2, mask_2) + alpha * surrogate_2
    # The mean of the control variate, subtracted to keep the estimate unbiased.
    mean = alpha * probability * (1 - probability) * (gradient_1 + gradient_2) / 2
    return 0.5 * (f_1 - f_2) * (mask_1 - mask_2) - mean


def straight_through(gradient: Tensor, probability: Tensor) -> Tensor:
    """Backpropagate through the draw with ``dz/dpi = 1``: ``f'(z) pi (1 - pi)``. Biased; no extra pass.

    On a loss that is quadratic in z_j the bias is exactly ``pi (1 - pi) (pi - 1/2) d2f/dz_j^2`` (averaged over the
    other gates): zero at pi = 1/2 and at most 0.0482 times the curvature. On a loss that is linear in z_j it is
    unbiased.

    Args:
        gradient: df/dz at the drawn mask, (n,) or (B, n).
        probability: pi, (n,).

    Returns:
        Log-odds gradient, shape of ``gradient``.

    Example:
        >>> import torch
        >>> straight_through(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.8]))
        tensor([ 0.5000, -0.1600])

    References:
        Bengio, Leonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
        Computation", 2013.
    """
    return gradient.detach() * (probability * (1 - probability))


def reinmax(gradient: Tensor, mask: Tensor, probability: Tensor) -> Tensor:
    """Second-order straight-through: ``f'(z) 1/2 [z (1 - pi) + (1 - z) pi]``. Slightly biased; no extra pass.

    Its mean is ``pi (1 - pi) (f'(0) + f'(1)) / 2`` in each gate: the trapezoid rule for ``D = f(1) - f(0)``. It is
    therefore exact in expectation whenever f is at most quadratic in each z_j with the others held fixed. Otherwise the
    bias is ``pi (1 - pi) / 12`` times a third derivative along z_j.

    Args:
        gradient: df/dz at the drawn mask, (n,) or (B, n).
        mask: the drawn z, shape of ``gradient``.
        probability: pi, (n,).

    Returns:
        Log-odds gradient, shape of ``gradient``.

    Example:
        >>> import torch
        >>> reinmax(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.8, 0.8]))
        tensor([0.2000, 0.8000])

    References:
        Liu, Dong, Liu, Yu and Gao, "Bridging Discrete and Backpropagation: Straight-Through and Beyond",
        NeurIPS 2023, Algorithm 2; for two classes 2 q (1 - q) - 1/2 pi (1 - pi) with q = (pi + z) / 2.
    """
    return gradient.detach() * ((mask - probability).abs() * 0.5)  # |z - pi|: 1 - pi where z = 1, pi where z = 0
