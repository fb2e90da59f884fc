"""Save, restore and repeat the states of random number generators, and convert them for checkpoints."""

import contextlib
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RandomState:
    """States of all generators that a forward pass may draw from.

    Attributes:
        cpu: state of torch's CPU generator.
        cuda: GPU number -> state of its generator.
        python, numpy: states of the modules `random` and `numpy.random`.
    """

    cpu: Tensor
    cuda: Mapping[int, Tensor]
    python: tuple[Any, ...]
    numpy: Any

    @classmethod
    def now(cls, devices: Iterable[torch.device] = ()) -> "RandomState":
        """Save the present states.

        Args:
            devices: GPUs whose generators are saved in addition to the current GPU's.

        Returns:
            The states.
        """
        return cls(
            torch.get_rng_state(),
            {number: torch.cuda.get_rng_state(number) for number in _gpus(devices)},
            random.getstate(),
            np.random.get_state(),
        )

    def restore(self) -> None:
        """Put all generators back to these states."""
        torch.set_rng_state(self.cpu)
        for number, state in self.cuda.items():
            torch.cuda.set_rng_state(state, number)
        random.setstate(self.python)
        np.random.set_state(self.numpy)

    @contextlib.contextmanager
    def repeated(self, model: nn.Module) -> Iterator[None]:
        """Repeat the draws made from this state; restore generators and buffers when the context ends.

        Every buffer is restored whatever its version counter says: batch_norm writes running statistics without
        counting.

        Args:
            model: module whose buffers are restored.
        """
        places = [
            (module._buffers, name, buffer)
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and 0 not in buffer.stride()  # nothing can write into an expanded one in place
        ]
        alike: dict[tuple[Any, ...], list[Tensor]] = {}
        for _, _, buffer in places:
            alike.setdefault((buffer.shape, buffer.dtype, buffer.device), []).append(buffer)
        with torch.no_grad():
            saved = [(buffers, torch.stack(buffers).unbind()) for buffers in alike.values()]
        after = RandomState.now(torch.device("cuda", number) for number in self.cuda)
        self.restore()
        try:
            yield
        finally:
            after.restore()
            with torch.no_grad():
                for buffers, values in saved:
                    torch._foreach_copy_(buffers, values)
            for owner, name, buffer in places:
                owner[name] = buffer


def devices_of(model: nn.Module) -> Iterator[torch.device]:
    """The device of each parameter and buffer of a model; looked up only when they are needed.

    Args:
        model: any module.
    """
    return (tensor.device for tensors in (model.parameters(), model.buffers()) for tensor in tensors)


@contextlib.contextmanager
def preserved_rng(devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Put every generator back to its present state when the context ends.

    Args:
        devices: GPUs whose generators are restored in addition to the current GPU's.
    """
    before = RandomState.now(devices)
    try:
        yield
    finally:
        before.restore()


def rng_state_dict() -> dict[str, Any]:
    """Save the states of all generators, those of all GPUs included, as plain values and tensors for a checkpoint."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": (
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ),
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def load_rng_state_dict(state: Mapping[str, Any]) -> None:
    """Restore the states that `rng_state_dict` saved; ignore those of GPUs that this machine lacks.

    Args:
        state: the result of `rng_state_dict`.
    """
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        for number, each in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(each, number)


def _gpus(devices: Iterable[torch.device]) -> set[int]:
    """Numbers of the given GPUs and of the current one; empty before CUDA is initialised."""
    if not torch.cuda.is_initialized():
        return set()
    current = torch.cuda.current_device()
    found = {current if device.index is None else device.index for device in devices if device.type == "cuda"}
    return found | {current}


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Restore a generator; on another kind of device, whose states differ, seed it with a hash of the state.

    Args:
        generator: to change.
        state: of the generator that was saved, on the CPU.
    """
    if state.shape == generator.get_state().shape:
        generator.set_state(state)
    else:
        generator.manual_seed(zlib.crc32(state.numpy().tobytes()))
