"""Running the same computation twice: same dropout, same batch statistics, buffers written once."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Randomness:
    """The state of torch's generators and the versions of a model's buffers."""

    cpu: Tensor
    device: Tensor | None
    buffers: Sequence[Tensor]
    versions: Sequence[int]

    @classmethod
    def now(cls, model: nn.Module) -> "Randomness":
        """Take them down."""
        buffers = list(model.buffers())
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        return cls(torch.get_rng_state(), cuda, buffers, [b._version for b in buffers])

    def restore(self) -> None:
        """Put the generators back."""
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            torch.cuda.set_rng_state(self.device)

    @contextlib.contextmanager
    def repeated(self, model: nn.Module) -> Iterator[None]:
        """Run again from here: the same draws, and neither generators nor buffers remember the second run."""
        buffers = [
            (buffer, buffer.detach().clone())
            for buffer, version in zip(self.buffers, self.versions, strict=True)
            if buffer._version != version
        ]
        after = Randomness.now(model)
        self.restore()
        try:
            yield
        finally:
            after.restore()
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
