"""How a model is called: precision, memory layout, compiler, threads. The training itself stays the same."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from npn.errors import ConfigurationError

Forward = Callable[[nn.Module, Tensor], Tensor]
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """What to call a model under.

    Raises:
        ConfigurationError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ConfigurationError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    dtype = PRECISIONS[precision]
    return contextlib.nullcontext if dtype is None else lambda: torch.autocast(device.type, dtype=dtype)


def grad_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """Keeps gradients in fp16's range; the other precisions need none."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


def forward(
    model: nn.Module,
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    *,
    compiled: bool = False,
    backend: str = "inductor",
) -> Forward:
    """A function that calls a model under `context` and gives float32 logits.

    Args:
        model: the one in training; only this one is compiled, others given later (an exported copy) run as they are.
        context: as `autocast` gives it.
        compiled: call it through `torch.compile`.
        backend: of `torch.compile`.
    """
    call = _Recompiled(model, backend) if compiled else model

    def logits(module: nn.Module, x: Tensor) -> Tensor:
        with context():
            out: Tensor = (call if module is model else module)(x)
        return out.float()

    return logits


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Give torch so many threads, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Recompiled:
    """A compiled model that forgets its old code when the model is resized.

    Otherwise the compiler would reach its limit of versions after some resizes and stop compiling.
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
