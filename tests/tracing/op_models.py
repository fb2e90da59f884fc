"""Small models, each around one op or module: what lies between two layers, or takes their place."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Rows(nn.Module):
    """Two layers with an op between them, over rows of features (N, C)."""

    def __init__(self, f: Callable[..., Tensor], width: int = 8, out: int | None = None, **modules: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, width), nn.Linear(out or width, 6), nn.Linear(6, 2)
        for name, module in modules.items():
            self.add_module(name, module)
        self.f = f
        self.takes_model = bool(modules)

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        h = self.f(self, h, *rest) if self.takes_model else self.f(h, *rest)
        return self.c(torch.tanh(self.b(h)))


class Maps(nn.Module):
    """Two convolutions with an op between them, over maps (B, C, H, W)."""

    def __init__(self, f: Callable[..., Tensor], width: int = 8, out: int | None = None, **modules: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(out or width, 4, 1)
        self.c = nn.Linear(4, 2)
        for name, module in modules.items():
            self.add_module(name, module)
        self.f = f
        self.takes_model = bool(modules)

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        h = self.f(self, h, *rest) if self.takes_model else self.f(h, *rest)
        return self.c(torch.tanh(self.b(h)).mean((2, 3)))
