"""Make errors visible, and measure them: perturbed weights, a third of the units closed, outputs compared."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import npn

_CACHES = {"past_key_values", "cache_params", "cache", "mems"}  # for reuse in decoding, not the model's answer
SIZE_CHANGED = float("inf")


def outputs(model: nn.Module, inputs: Any, seed: int = 0) -> list[Tensor]:
    """All tensors of the model's answer, decoding caches left out; the same random numbers in every call."""
    torch.manual_seed(seed)
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
    result = model(*args, **(inputs if isinstance(inputs, dict) else {}))
    if isinstance(result, Mapping):
        result = {key: value for key, value in result.items() if key not in _CACHES}
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def relative_error(expected: list[Tensor], found: list[Tensor]) -> float:
    """Greatest absolute difference of two answers, relative to the largest value of each tensor.

    Returns:
        `inf` where shapes differ or one of them is not finite.

    Example:
        >>> relative_error([torch.tensor([4.0, 2.0])], [torch.tensor([4.0, 1.0])])
        0.25
    """
    if [x.shape for x in expected] != [x.shape for x in found]:
        return SIZE_CHANGED
    worst = 0.0
    for x, y in zip(expected, found, strict=True):
        if x.numel():
            x, y = x.detach().double(), y.detach().double()
            if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
                if not torch.equal(x.isfinite(), y.isfinite()):
                    return SIZE_CHANGED
                x, y = x.nan_to_num(0, 0, 0), y.nan_to_num(0, 0, 0)
            worst = max(worst, float((x - y).abs().max()) / max(float(x.abs().max()), 1e-30))
    return worst


@torch.no_grad()
def perturb(model: nn.Module, seed: int = 0) -> None:
    """Give constant tensors (norms, LayerScale, zero-initialised weights) and running statistics random values.

    A gain of one and a bias of zero hide errors: a wrong unit would look like the right one.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    for parameter in model.parameters():
        if not parameter.is_floating_point() or parameter.numel() < 2:
            continue
        if bool((parameter == parameter.flatten()[0]).all()):
            fan_in = parameter.numel() // parameter.shape[0] if parameter.dim() > 1 else 1
            parameter.add_(noise(parameter), alpha=0.2 / fan_in**0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(noise(buffer), alpha=0.1)
        elif name.endswith("running_var"):
            buffer.mul_(noise(buffer).mul(0.2).exp())


def close_third(plastic: npn.Plasticity, seed: int = 0) -> None:
    """Close a random third of the units of each group, at least one of two."""
    generator = torch.Generator().manual_seed(seed)
    for group in plastic.groups:
        count = max(group.size // 3, min(1, group.size - 1))
        if count:
            plastic.close(group, torch.randperm(group.size, generator=generator)[:count].tolist())


def as_double(inputs: Any) -> Any:
    """The same inputs, floating ones in float64."""
    return tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)


@contextlib.contextmanager
def code_in_double() -> Iterator[None]:
    """Inside, what code makes in single precision by itself (`torch.zeros(3)`, `x.float()`) is made in double."""
    default, single = torch.get_default_dtype(), Tensor.float
    torch.set_default_dtype(torch.float64)
    Tensor.float = Tensor.double  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        Tensor.float = single  # type: ignore[method-assign]
