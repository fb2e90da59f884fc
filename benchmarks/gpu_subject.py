"""A small network with gates, optimizers and a batch, for the checks on a GPU."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn


def mlp() -> nn.Module:
    """A small net with dropout."""
    layers = [
        nn.Flatten(),
        nn.Linear(64, 24),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(24, 16),
        nn.Tanh(),
        nn.Linear(16, 4),
    ]
    return nn.Sequential(*layers)


def conv() -> nn.Module:
    """A small convolutional net with BatchNorm."""
    first = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2, padding=1)]
    return nn.Sequential(*first, nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))


class Subject:
    """A net with gates, optimizers and a batch.

    Args:
        device: of model and data.
        build: makes the net.
        more: arguments of `npn.attach`.
    """

    def __init__(self, device: str, build: Callable[[], nn.Module] = conv, **more: Any) -> None:
        torch.manual_seed(0)
        self.model = build().to(device)
        more = {"penalty": npn.Penalty(weight=1e-4)} | more
        self.x, self.y = (tensor.to(device) for tensor in (torch.randn(32, 1, 8, 8), torch.arange(32) % 4))
        self.plastic = npn.attach(self.model, self.x[:2], **more)
        self.weights = torch.optim.SGD(self.plastic.weights(), lr=0.05, momentum=0.9)
        self.gates = torch.optim.Adam(self.plastic.logits(), lr=0.05)
        self.plastic.track(self.weights, self.gates)
        self.plastic.k = 2.0

    def loss(self, call: Any = None) -> Tensor:
        """Compute the loss of the batch."""
        return F.cross_entropy((self.model if call is None else call)(self.x).float(), self.y)

    def step(self, closure: Callable[[], Tensor] | None = None, scaler: Any = None) -> Tensor:
        """Train for a step.

        Args:
            closure: instead of `loss`.
            scaler: of the loss.
        """
        self.weights.zero_grad()
        self.gates.zero_grad()
        loss = self.plastic.backward(closure or self.loss, scale=1.0 if scaler is None else scaler)
        for optimizer in (self.weights, self.gates):
            if scaler is None:
                optimizer.step()
            elif any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
                scaler.step(optimizer)
        if scaler is not None:
            scaler.update()
        return loss

    def gradients(self) -> list[Tensor]:
        """Copies of all gradients, on the CPU."""
        return [p.grad.detach().cpu().clone() for p in (*self.plastic.weights(), *self.plastic.logits())]

    def state(self) -> list[Tensor]:
        """Copies of weights, gates and buffers, on the CPU."""
        tensors = (*self.plastic.weights(), *self.plastic.logits(), *self.model.buffers())
        return [tensor.detach().cpu().clone() for tensor in tensors]


def resize(subject: Subject) -> None:
    """Remove two units of the first group and add three."""
    name = subject.plastic.groups[0].name
    subject.plastic.close(name, [0, 1])
    subject.plastic.compact()
    subject.plastic.grow({name: 3})
