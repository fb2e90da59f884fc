"""Losses: on labels alone, and on the answers of a teacher beside them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def distillation(logits: Tensor, teacher: Tensor, y: Tensor, share: float, temperature: float) -> Tensor:
    """Mix the cross-entropy to the labels with the divergence from a teacher.

        (1 - a) H(y, p) + a T^2 KL(softmax(t / T) || softmax(s / T))

    Args:
        logits: (B, classes), s, of the student; p is their softmax.
        teacher: (B, classes), t.
        y: (B,) classes.
        share: a, from 0 to 1.
        temperature: T, above 0.

    Returns:
        (), mean over the batch.

    Example:
        >>> s = torch.tensor([[2.0, 0.0]])
        >>> float(distillation(s, s, torch.tensor([0]), share=1.0, temperature=4.0))
        0.0

    References:
        Hinton, Vinyals & Dean, Distilling the knowledge in a neural network, arXiv:1503.02531, section 2.
    """
    soft, target = F.log_softmax(logits / temperature, 1), F.log_softmax(teacher / temperature, 1)
    divergence = F.kl_div(soft, target, reduction="batchmean", log_target=True)
    return (1.0 - share) * F.cross_entropy(logits, y) + share * temperature**2 * divergence


def untaught(logits: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Compute the cross-entropy to the labels, (), mean over the batch.

    Args:
        logits: (B, classes).
        x: inputs; without effect.
        y: (B,) classes.
    """
    return F.cross_entropy(logits, y)


def taught(
    teacher: nn.Module, share: float = 0.7, temperature: float = 4.0
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Make the loss of a student: `distillation` from a teacher that sees the same inputs, in eval mode.

    Args:
        teacher: maps inputs to logits; it is not trained.
        share: see `distillation`.
        temperature: see `distillation`.

    Returns:
        Logits, inputs and classes -> loss.
    """
    teacher.eval().requires_grad_(False)

    def loss(logits: Tensor, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            answers = teacher(x)
        return distillation(logits, answers, y, share, temperature)

    return loss
