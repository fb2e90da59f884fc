"""Linear layers whose weights are stored sparse, where that is measured to be faster."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from npn._utils.copies import model_copy
from npn._utils.csr import csr_weight
from npn._utils.inputs import split_inputs
from npn._utils.models import evaluating
from npn._utils.validation import whole_number

LEAST_ZEROS = 0.5  # share of zeros below which no layer is timed
REPEATS, SECONDS = 5, 0.02  # a layer's time is the least of so many measurements, of so many seconds each


@dataclass(frozen=True)
class LayerTime:
    """One linear layer, dense and sparse.

    Attributes:
        name: path of the layer.
        zeros: share of its weights that are zero.
        dense: seconds of one call with a dense weight.
        sparse: seconds of one call with a CSR weight; infinite if torch has no kernel for it.
        batch: rows of its input, as it was timed.
    """

    name: str
    zeros: float
    dense: float
    sparse: float
    batch: int

    @property
    def chosen(self) -> bool:
        """Whether the sparse weight is faster."""
        return self.sparse < self.dense


def to_csr(model: nn.Module, example_inputs: Any, batch: int = 64) -> tuple[nn.Module, list[LayerTime]]:
    """Copy a model, with the weights of those linear layers in CSR form in which that is faster on this machine.

    The copy's layers are plain `nn.Linear`, for inference: a sparse weight requires no gradient. `npn.save` and
    `npn.load` keep them sparse.

    Args:
        model: plain model, such as the result of `plastic.export()`.
        example_inputs: a batch, repeated or cut to `batch` rows.
        batch: rows for which the layers are timed.

    Returns:
        The copy, and the times of all linear layers of which at least half the weights are zero.

    Example:
        >>> layer = nn.Linear(256, 256)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> small, times = to_csr(nn.Sequential(layer, nn.ReLU()), torch.ones(1, 256), batch=256)
        >>> times[0].name, times[0].zeros, times[0].batch
        ('0', 1.0, 256)
    """
    whole_number("batch", batch, 1, "rows")
    copied = model_copy(model, {})
    inputs = dict[str, Tensor]()
    layers = {n: m for n, m in copied.named_modules() if type(m) is nn.Linear and _zeros(m.weight) >= LEAST_ZEROS}

    def remember(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs[name] = args[0].detach()

        return hook

    handles = [layer.register_forward_pre_hook(remember(name)) for name, layer in layers.items()]
    args, kwargs = tree_map(lambda x: _rows(x, batch) if isinstance(x, Tensor) else x, split_inputs(example_inputs))
    with evaluating(copied), torch.no_grad():
        copied(*args, **kwargs)
    for handle in handles:
        handle.remove()
    times = [_timed(name, layers[name], x) for name, x in inputs.items()]
    for layer in (layers[entry.name] for entry in times if entry.chosen):
        layer.weight = csr_weight(layer.weight)
    return copied, times


def _zeros(weight: Tensor) -> float:
    """Share of zeros; 0 for a weight that is sparse already."""
    return float((weight == 0).float().mean()) if weight.layout == torch.strided and weight.numel() else 0.0


def _rows(x: Tensor, batch: int) -> Tensor:
    """So many rows of a batch, repeated as often as needed."""
    return x if not x.dim() or not len(x) else x.repeat(-(-batch // len(x)), *[1] * (x.dim() - 1))[:batch]


def _timed(name: str, layer: nn.Linear, x: Tensor) -> LayerTime:
    dense = layer.weight.detach()
    with torch.inference_mode():
        csr = csr_weight(dense)
        bias = None if layer.bias is None else layer.bias.detach()
        try:
            F.linear(x, csr, bias)
        except (RuntimeError, NotImplementedError):  # this dtype or device has no kernel
            sparse = float("inf")
        else:
            sparse = _seconds(lambda: F.linear(x, csr, bias), x.device)
        return LayerTime(name, _zeros(dense), _seconds(lambda: F.linear(x, dense, bias), x.device), sparse, len(x))


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Time of one call: the least of some measurements, each of enough calls."""

    def measured(calls: int) -> float:
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        _synchronize(device)
        return (time.perf_counter() - start) / calls

    measured(3)
    calls = max(1, int(SECONDS / max(measured(3), 1e-9)))
    return min(measured(calls) for _ in range(REPEATS))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
