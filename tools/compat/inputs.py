"""Small example inputs; torch is imported when they are made, so that lists of models do without it."""

from typing import Any


def normal(*shape: int) -> Any:
    """Numbers from N(0, 1)."""
    import torch

    return torch.randn(*shape)


def uniform(*shape: int) -> Any:
    """Numbers from U(0, 1)."""
    import torch

    return torch.rand(*shape)


def full(value: float, *shape: int) -> Any:
    """The same number everywhere."""
    import torch

    return torch.full(shape, float(value))


def numbers(*values: Any) -> Any:
    """These numbers."""
    import torch

    return torch.tensor(values)


def all_true(*shape: int) -> Any:
    """A mask that leaves nothing out."""
    import torch

    return torch.ones(shape, dtype=torch.bool)
