"""A library of four models for the sweep's own tests."""

from typing import Any

PACKAGE = "pytest"
PRELOAD: tuple[str, ...] = ()


def names() -> list[tuple[str, str]]:
    return [("small", "mlp"), ("broken", "broken"), ("broken", "broken_too"), ("endless", "endless")]


def build(name: str) -> tuple[Any, Any]:
    if name.startswith("broken"):
        raise RuntimeError(f"no weights for {name}")
    while name == "endless":
        pass
    import torch

    torch.manual_seed(0)
    if name == "normed":
        return torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.LayerNorm(9), torch.nn.Linear(9, 2)), torch.randn(
            2, 4
        )
    layers = [torch.nn.Linear(4, 9), torch.nn.ReLU(), torch.nn.Linear(9, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)]
    return torch.nn.Sequential(*layers), torch.randn(2, 4)
