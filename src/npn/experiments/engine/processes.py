"""One run on the several processes of `torchrun`: who does what, and what all must know. One process does it all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from npn import distributed
from npn.errors import ConfigurationError, DistributedError, PlasticityError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)  # for a process to wait for another: the first one evaluates and writes meanwhile


def launched() -> int:
    """How many processes `torchrun` has started, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def group() -> Iterator[None]:
    """`torchrun`'s processes as a group inside; nothing without torchrun, or where there is one.

    The device "cuda" is another GPU for each, as long as there are enough.

    Raises:
        DistributedError: another process has gone.
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
            f"process {distributed.rank()} waited in vain for another, which has ended or hangs and may say why itself "
            f"({str(error).splitlines()[0]}); --resume continues from the last checkpoint"
        ) from error
    finally:
        dist.destroy_process_group()


def devices() -> list[str]:
    """What torch can compute on here, as `torch.device` takes it."""
    found = torch.accelerator.current_accelerator(check_available=True)
    kind = [] if found is None else [found.type]
    return ["cpu", *kind, *(f"{name}:{i}" for name in kind for i in range(torch.accelerator.device_count()))]


def check_device(device: str | None) -> None:
    """The device is here, and several processes on GPUs have one each.

    Raises:
        ConfigurationError: there is no such device, or a single one was named for all.
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
    """What the first process makes, on all: it alone evaluates, reads and writes, and the others wait for it.

    Raises:
        PlasticityError: the first one's, on all.
    """
    if distributed.size() == 1:
        return make()
    made: list[T | None] = [None]
    error: list[PlasticityError | None] = [None]
    if distributed.rank() == 0:
        try:
            made[0] = make()
        except PlasticityError as raised:
            error[0] = raised
    both = [made[0], error[0]]
    dist.broadcast_object_list(both, 0)
    if isinstance(both[1], PlasticityError):
        raise both[1]
    return both[0]  # type: ignore[return-value]


def any_of(*flags: bool) -> list[bool]:
    """Each flag, if it is set on any process."""
    if distributed.size() == 1:
        return list(flags)
    everyone: list[tuple[bool, ...]] = [()] * distributed.size()
    dist.all_gather_object(everyone, flags)
    return [any(each) for each in zip(*everyone, strict=True)]


def shard(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
    """This process's part of a batch, and a weight for its mean loss.

    The mean over processes of weight times mean loss is the mean over the whole batch. One with fewer than two examples
    for each process goes to all as a whole: batch normalisation needs two.
    """
    count = distributed.size()
    if count == 1 or len(x) < 2 * count:
        return x, y, 1.0
    x, y, total = x.tensor_split(count)[distributed.rank()], y.tensor_split(count)[distributed.rank()], len(y)
    return x, y, count * len(y) / total


def reseed(*common: int) -> None:
    """Dropout of this process alone from here on, and the same after a resume; on one process nothing changes."""
    if distributed.size() > 1:
        torch.manual_seed(distributed.own_seed(repr(common).encode()))


class Calling(nn.Module):
    """A model with the way it is called, for DistributedDataParallel to wrap."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.call(self.model, x)
