"""Running the same computation twice: same dropout, same batch statistics, buffers written once."""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Randomness:
    """The state of every generator that a forward pass may draw from."""

    cpu: Tensor
    device: Tensor | None
    python: tuple[Any, ...]
    numpy: Any

    @classmethod
    def now(cls) -> "Randomness":
        """Take it down."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        return cls(torch.get_rng_state(), cuda, random.getstate(), np.random.get_state())

    def restore(self) -> None:
        """Put the generators back."""
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            torch.cuda.set_rng_state(self.device)
        random.setstate(self.python)
        np.random.set_state(self.numpy)

    @contextlib.contextmanager
    def repeated(self, model: nn.Module) -> Iterator[None]:
        """Run again from here: the same draws, and neither generators nor buffers remember the second run.

        Every buffer is put back, whatever its version counter says: batch_norm writes running statistics behind it.
        """
        buffers = [
            (module._buffers, name, buffer, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        after = Randomness.now()
        self.restore()
        try:
            yield
        finally:
            after.restore()
            with torch.no_grad():
                for owner, name, buffer, value in buffers:
                    owner[name] = buffer.copy_(value)
