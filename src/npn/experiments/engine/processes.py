"""One run on the processes of `torchrun`: groups, devices, parts of a batch. A single process communicates nothing."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from npn import distributed
from npn._utils import collectives
from npn.errors import ConfigurationError, DistributedError, PlasticityError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)  # of waiting for another process: the first one evaluates and writes meanwhile


def launched() -> int:
    """Return the number of processes that `torchrun` has started, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process, from 0: in its group, or before there is one, as `torchrun` has set it."""
    return distributed.rank() if distributed.size() > 1 else int(os.environ.get("RANK", "0"))


@contextmanager
def group() -> Iterator[None]:
    """Make a group of the processes that `torchrun` has started; do nothing if there is one, or a single process.

    The device "cuda" is another GPU for each process, as long as there are enough.

    Raises:
        DistributedError: another process has ended or does not answer.
    """
    if launched() == 1 or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        shared = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > torch.cuda.device_count()  # which nccl refuses
        backend = "cpu:gloo,cuda:gloo" if shared else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise DistributedError(
            f"process {rank()} waited in vain for another, which has ended or hangs and may say why itself "
            f"({str(error).splitlines()[0]}); --resume continues from the last checkpoint"
        ) from error
    finally:
        dist.destroy_process_group()


def devices() -> list[str]:
    """List the devices that torch finds here, as `torch.device` takes them."""
    found = torch.accelerator.current_accelerator(check_available=True)
    kind = [] if found is None else [found.type]
    return ["cpu", *kind, *(f"{name}:{i}" for name in kind for i in range(torch.accelerator.device_count()))]


def check_device(device: str | None) -> None:
    """Check that the device is here, and that several processes do not share one GPU by name.

    Args:
        device: as `torch.device` takes it; None is the CPU.

    Raises:
        ConfigurationError: there is no such device, or a single one was named for all processes.
    """
    device, here = device or "cpu", devices()
    if device not in here:
        raise ConfigurationError(
            f"device must be one that torch finds here ({', '.join(here)}), got {device!r}; choose one of these, or "
            "install a torch and a driver that find it"
        )
    if launched() > 1 and torch.device(device).index is not None:
        raise ConfigurationError(f"{launched()} processes cannot share {device}; give --device cuda")


def from_first(make: Callable[[], T]) -> T:
    """Call a function on the first process, and return its result on all; the others wait.

    Only the first process evaluates, reads and writes.

    Args:
        make: takes nothing; its result must be picklable.

    Raises:
        PlasticityError: `make` raised it; all processes raise it.
    """
    if distributed.size() == 1:
        return make()
    made: T | None = None
    error: PlasticityError | None = None
    if rank() == 0:
        try:
            made = make()
        except PlasticityError as raised:
            error = raised
    found: tuple[T, PlasticityError | None] = collectives.from_first((made, error))
    if found[1] is not None:
        raise found[1]
    return found[0]


def any_of(*flags: bool) -> list[bool]:
    """Return for each flag whether it is set on any process.

    Args:
        flags: of this process, in the same order on each.
    """
    if distributed.size() == 1:
        return list(flags)
    everyone: list[tuple[bool, ...]] = [()] * distributed.size()
    dist.all_gather_object(everyone, flags)
    return [any(each) for each in zip(*everyone, strict=True)]


def shard(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
    """Take the part of a batch that this process trains on, and a weight for its mean loss.

    The mean over processes of weight times mean loss is the mean loss of the whole batch. If there are fewer than two
    examples for each process, all take the whole batch: batch normalisation needs two.

    Args:
        x: (B, ...) inputs.
        y: (B,) classes.

    Returns:
        Inputs, classes and weight.
    """
    count = distributed.size()
    if count == 1 or len(x) < 2 * count:
        return x, y, 1.0
    mine, total = rank(), len(y)
    x, y = x.tensor_split(count)[mine], y.tensor_split(count)[mine]
    return x, y, count * len(y) / total


def reseed(*common: int) -> None:
    """Seed dropout for this process alone, the same after a resume; a single process keeps its state.

    Args:
        common: numbers that all processes share, such as seed and epoch.
    """
    if distributed.size() > 1:
        torch.manual_seed(distributed.own_seed(repr(common).encode()))


class Calling(nn.Module):
    """A model with the function that calls it, for DistributedDataParallel to wrap.

    Args:
        model: the model.
        call: calls it on a batch.
    """

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits.

        Args:
            x: prepared inputs.
        """
        return self.call(self.model, x)
