"""Training steps as CUDA graphs: recorded between two resizes, then replayed without Python or kernel launches."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, final

import torch
from torch import Tensor, nn

from npn import distributed
from npn._utils import cpu
from npn._utils.validation import HANDLE, instance, is_number
from npn.errors import ConfigurationError
from npn.functional.table import ESTIMATORS
from npn.penalty import CostTerm, Priced
from npn.plasticity import Plasticity
from npn.step import loss_factor, penalise

EAGER = 3  # ordinary steps before one is recorded: they allocate what later steps reuse, and set up the kernels

Call = Callable[[], Tensor]
Record = Callable[[Call, Sequence[nn.Parameter], torch.Generator], Call]


@final
class CudaGraphs:
    """`Plasticity.backward` by replaying: masks, passes and gradients as one CUDA graph, then the price as usual.

    A small network waits on a GPU for the launches of its kernels. A graph launches all of them at once: the very
    kernels of the step that was recorded, on the same memory, with new random numbers. It is recorded anew when
    anything that it depends on has changed: sizes, sharpness, the shape of the batch. Steps that a graph cannot hold
    are done as usual: those at k = 0, with a second pass, while units are held open, when gradients are accumulated,
    and with several processes. The price stays outside, because a budget counts its steps in Python.

    The loss must do the same in each call, and what it reads besides the batch (a scaler, a generator) must stay where
    it is in memory; a decision in Python is recorded as it was. Units that are closed by hand at k = inf are noticed;
    the mode of a part of the model is not, only that of the whole.

    Args:
        plastic: the attached model, on a CUDA device, with masks per batch.
        record: makes the function that replays a call; a test without a GPU gives one that calls again.

    Raises:
        ConfigurationError: `plastic` is something else.

    Example:
        >>> def train(model, plastic, weights, gates, batches):
        ...     graphs = npn.CudaGraphs(plastic)
        ...     with graphs.stream():  # PyTorch cannot record on the default stream
        ...         for x, y in batches:
        ...             weights.zero_grad(), gates.zero_grad()
        ...             graphs.backward(lambda x, y: F.cross_entropy(model(x), y), x, y)
        ...             weights.step(), gates.step()
    """

    def __init__(self, plastic: Plasticity, record: Record | None = None) -> None:
        instance("plastic", plastic, Plasticity, HANDLE)
        self.plastic, self.record = plastic, cuda_graph if record is None else record
        self._state: tuple[Any, ...] = ()
        self._structure = plastic.structure  # kept, so that no other gets its id
        self._seen: dict[tuple[Any, ...], int] = {}  # shapes of a batch -> eager steps with them
        self._replays: dict[tuple[Any, ...], Callable[..., Tensor]] = {}

    @property
    def recorded(self) -> int:
        """Number of graphs that are held now, one per shape of a batch and scale."""
        return len(self._replays)

    def stream(self) -> AbstractContextManager[None]:
        """Work on a stream of one's own inside, after what is under way and before what follows; see `own_stream`."""
        return own_stream(next(self.plastic.model.parameters()).device)

    def backward(self, loss: Callable[..., Tensor], *batch: Tensor, scale: Any = 1.0) -> Tensor:
        """Set every gradient, as `npn.Plasticity.backward` does.

        Args:
            loss: the batch -> loss, (); calls the model, always alike.
            batch: the tensors of this batch, such as inputs and classes.
            scale: see `npn.Plasticity.backward`.

        Returns:
            The detached loss, (), without scale and penalty.

        Raises:
            ConfigurationError: a part of the batch is no tensor, or the model is on no CUDA device, or a graph would
                have to be recorded on the default stream.
        """
        plastic = self.plastic
        parameters = [*plastic.weights(), *plastic.logits()]
        self._check(batch, parameters[0].device)
        if not self._fits(parameters):
            return plastic.backward(lambda: loss(*batch), scale=scale)
        state = self._present(parameters)
        if state != self._state:
            self._replays.clear()  # their memory goes first
            self._state, self._structure, self._seen = state, plastic.structure, {}
        fixed = scale if is_number(scale) else id(scale)  # a tensor or a scaler is read anew in each replay
        shapes = (fixed, *((part.shape, part.stride(), part.dtype) for part in batch))
        if shapes not in self._replays:
            self._seen[shapes] = self._seen.get(shapes, 0) + 1
            if self._seen[shapes] <= EAGER:
                return plastic.backward(lambda: loss(*batch), scale=scale)
            self._replays[shapes] = self._recorded(loss, batch, scale, parameters)
        value = self._replays[shapes](*batch)
        if math.isfinite(plastic.k):  # the price, which no graph holds
            penalise(plastic.penalty, plastic, loss_factor(scale, parameters[0].device))
        return value

    def _check(self, batch: tuple[Any, ...], device: torch.device) -> None:
        for part in batch:
            if not isinstance(part, Tensor):
                raise ConfigurationError(
                    f"a graph reads tensors: expected them in the batch, got {type(part).__name__}; what stays the "
                    "same belongs into the loss"
                )
        if self.record is not cuda_graph:
            return
        if device.type != "cuda":
            raise ConfigurationError(
                f"CudaGraphs needs the model on a CUDA device, got {device}; call plastic.backward there"
            )
        if torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
            raise ConfigurationError(
                "a graph cannot be recorded on the default stream; put `with graphs.stream():` around the training"
            )

    def _fits(self, parameters: Sequence[nn.Parameter]) -> bool:
        plastic = self.plastic
        return (
            plastic.k > 0
            and (math.isinf(plastic.k) or len(ESTIMATORS[plastic.estimator].passes) == 1)
            and not plastic.gates.grace_left
            and plastic.masks == "batch"
            and distributed.size() == 1
            and all(parameter.grad is None for parameter in parameters)
        )

    def _present(self, parameters: Sequence[nn.Parameter]) -> tuple[Any, ...]:
        """Everything that a graph has recorded as fixed."""
        plastic, logits = self.plastic, self.plastic.logits()
        tensors = [*parameters, *plastic.model.buffers()]
        closed = tuple(each._version for each in logits) if math.isinf(plastic.k) else ()  # else each step moves them
        places = tuple((tensor.data_ptr(), tensor.shape, tensor.requires_grad) for tensor in tensors)
        return plastic.k, plastic.estimator, plastic.model.training, id(plastic.structure), closed, places

    def _recorded(
        self, loss: Callable[..., Tensor], batch: tuple[Tensor, ...], scale: Any, parameters: Sequence[nn.Parameter]
    ) -> Callable[..., Tensor]:
        plastic, inputs = self.plastic, [part.clone() for part in batch]

        def call() -> Tensor:
            penalty, plastic.penalty = plastic.penalty, _Free()
            try:
                return plastic.backward(lambda: loss(*inputs), scale=scale)
            finally:
                plastic.penalty = penalty

        replay = self.record(call, parameters, plastic.gates.generator)

        def step(*batch: Tensor) -> Tensor:
            for mine, part in zip(inputs, batch, strict=True):
                mine.copy_(part)
            return replay()

        return step


@contextlib.contextmanager
def own_stream(device: torch.device | str | None) -> Iterator[None]:
    """Work on a CUDA stream of one's own, since graphs cannot be recorded on the default one; without GPU do nothing.

    Args:
        device: of the model; None for the CPU.
    """
    if torch.device(device or "cpu").type != "cuda":
        yield
        return
    mine = torch.cuda.Stream(torch.device(device or "cuda"))
    mine.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(mine):
            yield
    finally:
        torch.cuda.current_stream().wait_stream(mine)


def cuda_graph(call: Call, parameters: Sequence[nn.Parameter], generator: torch.Generator) -> Call:
    """Record a call that leaves gradients on the current stream, which is not the default one, without running it.

    Args:
        call: returns a tensor.
        parameters: that get gradients, and have none now.
        generator: of the random numbers, besides torch's own.

    Returns:
        A function that runs the kernels of the call, sets the gradients and returns the tensor.
    """
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        result = call()
    gradients = [parameter.grad for parameter in parameters]

    def replay() -> Tensor:
        graph.replay()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return result.clone()

    return replay


class _Free(CostTerm):
    """A price of nothing, while a step is recorded."""

    def __init__(self) -> None:
        super().__init__("params")

    def loss(self, plastic: Priced) -> Tensor:
        return cpu.zeros(())
