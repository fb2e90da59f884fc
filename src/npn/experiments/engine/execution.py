"""Precision, compiler and threads: how a model is called."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from npn.errors import ConfigurationError

Forward = Callable[[nn.Module, Tensor], Tensor]
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Make the context in which to call a model.

    Args:
        precision: "fp32", "bf16" or "fp16".
        device: of the model.

    Returns:
        A function that makes a context manager for one call.

    Raises:
        ConfigurationError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ConfigurationError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    dtype = PRECISIONS[precision]
    return contextlib.nullcontext if dtype is None else lambda: torch.autocast(device.type, dtype=dtype)


def grad_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """Make a scaler that keeps gradients in the range of fp16; other precisions need none.

    Args:
        precision: "fp32", "bf16" or "fp16".
        device: of the model.
    """
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


def forward(
    model: nn.Module,
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    *,
    compiled: bool = False,
    backend: str = "inductor",
) -> Forward:
    """Make a function that calls a model in a context and returns float32 logits.

    Args:
        model: in training; only this one is compiled, while other models (an exported copy) run as they are.
        context: as `autocast` gives it.
        compiled: call the model through `torch.compile`.
        backend: of `torch.compile`.
    """
    call = _Recompiled(model, backend) if compiled else model

    def logits(module: nn.Module, x: Tensor) -> Tensor:
        with context():
            out: Tensor = (call if module is model else module)(x)
        return out.float()

    return logits


def check_graphs(graphs: bool | None, compiled: bool | None, device: torch.device) -> None:
    """Refuse CUDA graphs where there are none.

    Args:
        graphs: whether they are wanted.
        compiled: whether `torch.compile` is wanted.
        device: of the model.

    Raises:
        ConfigurationError: the device is no GPU of CUDA, or both are wanted.
    """
    if graphs and device.type != "cuda":
        raise ConfigurationError(f"graphs are those of CUDA: expected the device cuda, got {str(device)!r}")
    if graphs and compiled:
        raise ConfigurationError("give graphs or compile, not both: a compiled model would be recorded anew each time")


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Set the number of torch's threads, and reset it afterwards.

    Args:
        count: number of threads; None for no change.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Recompiled:
    """A model that is compiled again after each resize, without its old versions.

    With them, the compiler would reach its limit of versions after some resizes and stop compiling.
    """

    def __init__(self, model: nn.Module, backend: str) -> None:
        self.model, self.backend = model, backend
        self.shapes: list[torch.Size] = []
        self.compiled: Any = None

    def __call__(self, x: Tensor) -> Any:
        shapes = [parameter.shape for parameter in self.model.parameters()]
        if shapes != self.shapes:
            torch.compiler.reset()
            self.compiled, self.shapes = torch.compile(self.model, backend=self.backend), shapes
        return self.compiled(x)
