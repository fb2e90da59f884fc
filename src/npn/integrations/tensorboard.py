"""TensorBoard: curves of sizes and sharpness, and histograms of keep probabilities."""

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self, final

import torch

from npn.counting import count_params
from npn.errors import ConfigurationError
from npn.plasticity import Plasticity

BINS = 20


def require_tensorboard() -> None:
    """Raise unless tensorboard is installed.

    Raises:
        ConfigurationError: it is not installed.
    """
    if find_spec("tensorboard") is None:
        raise ConfigurationError("tensorboard is not installed; pip install 'npn[tensorboard]'")


@final
class PlasticityWriter:
    """Write the sizes of a training to TensorBoard; a context manager.

    Args:
        log_dir: folder of the event files.
        purge_step: step from which TensorBoard drops the events of an earlier run, so that a resumed run shows no step
            twice.

    Attributes:
        writer: the `torch.utils.tensorboard.SummaryWriter`.

    Raises:
        ConfigurationError: tensorboard is not installed.

    Example:
        >>> import tempfile, npn
        >>> plastic = npn.attach(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), torch.zeros(1, 4))
        >>> with tempfile.TemporaryDirectory() as folder, PlasticityWriter(folder) as writer:
        ...     writer.write(plastic, step=0, loss=0.7)
    """

    def __init__(self, log_dir: str | os.PathLike[str], purge_step: int = 0) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(os.fspath(log_dir), purge_step=purge_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def write(self, plastic: Plasticity, step: int, **scalars: float) -> None:
        """Write the state of a model's gates, and further scalars.

        Args:
            plastic: the result of `npn.attach`.
            step: epoch or training step.
            scalars: name -> value.
        """
        self.scalars({"k": plastic.k, "params": count_params(plastic.model), **scalars}, step)
        self.units(plastic.sizes(), step)
        self.histograms({group.name: keep_histogram(group.gate.keep_probability()) for group in plastic.groups}, step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write one point of each curve.

        Args:
            values: name -> value.
            step: epoch or training step.
        """
        for name, value in values.items():
            self.writer.add_scalar(name, float(value), step)

    def units(self, sizes: Mapping[str, int], step: int) -> None:
        """Write the open units of each group, as `units/NAME`.

        Args:
            sizes: group name -> open units.
            step: epoch or training step.
        """
        self.scalars({f"units/{name}": size for name, size in sizes.items()}, step)

    def histograms(self, counts: Mapping[str, Sequence[int]], step: int) -> None:
        """Write histograms of keep probabilities, as `keep/NAME`.

        Args:
            counts: group name -> number of units in each of equal bins from 0 to 1.
            step: epoch or training step.
        """
        for name, bins in counts.items():
            width = 1.0 / len(bins)
            centers = [(i + 0.5) * width for i in range(len(bins))]
            self.writer.add_histogram_raw(
                f"keep/{name}",
                min=0.0,
                max=1.0,
                num=sum(bins),
                sum=sum(c * n for c, n in zip(centers, bins, strict=True)),
                sum_squares=sum(c * c * n for c, n in zip(centers, bins, strict=True)),
                bucket_limits=[(i + 1) * width for i in range(len(bins))],
                bucket_counts=list(bins),
                global_step=step,
            )

    def close(self) -> None:
        """Write all pending events to disk."""
        self.writer.close()


def keep_histogram(probability: torch.Tensor, bins: int = BINS) -> list[int]:
    """Count the keep probabilities in equal bins from 0 to 1.

    Args:
        probability: pi, any shape.
        bins: number of bins.

    Returns:
        The counts.

    Example:
        >>> keep_histogram(torch.tensor([0.05, 0.9, 1.0]), bins=4)
        [1, 0, 0, 2]
    """
    return [int(n) for n in torch.histc(probability.detach().float().cpu(), bins, 0.0, 1.0)]
