"""Training steps as CUDA graphs: recorded between two resizes, then replayed without Python or kernel launches."""

import math
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

import npn
from npn import distributed
from npn.functional.table import ESTIMATORS
from npn.penalty import CostTerm, Priced

EAGER = 3  # ordinary steps before one is recorded: they allocate what later steps reuse, and set up the kernels

Call = Callable[[], Tensor]
Record = Callable[[Call, Sequence[nn.Parameter], torch.Generator], Call]


@final
class Graphs:
    """`Plasticity.backward` by replaying: masks, passes and gradients as one graph, then the price as usual.

    A graph repeats the very kernels of the step that was recorded, on the same memory, with new random numbers. It is
    recorded anew when anything that it depends on has changed: sizes, sharpness, the shape of the batch. Steps that a
    graph cannot hold are done as usual: those at k = 0, with a second pass, while units are held open, when gradients
    are accumulated, and with several processes. The price stays outside, because a budget counts its steps in Python.

    What else the loss reads (a scaler, a generator) must stay where it is in memory. Units that are closed by hand at
    k = inf are noticed; the mode of a part of the model is not, only that of the whole.

    Args:
        plastic: the attached model, with masks per batch.
        record: makes the function that replays a call; a test without a GPU gives one that calls again.
    """

    def __init__(self, plastic: npn.Plasticity, record: Record | None = None) -> None:
        self.plastic, self.record = plastic, cuda_graph if record is None else record
        self._state: tuple[Any, ...] = ()
        self._structure = plastic.structure  # kept, so that no other gets its id
        self._seen: dict[tuple[Any, ...], int] = {}  # shape of a batch -> eager steps with it
        self._replays: dict[tuple[Any, ...], Callable[[Tensor, Tensor], Tensor]] = {}

    @property
    def recorded(self) -> int:
        """Number of graphs that are held now, one per shape of a batch."""
        return len(self._replays)

    def backward(self, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, scale: Any = 1.0) -> Tensor:
        """Set every gradient, as `npn.Plasticity.backward` does.

        Args:
            loss: inputs and classes -> loss, (); calls the model, always alike.
            x: inputs of this batch.
            y: classes of this batch.
            scale: see `npn.Plasticity.backward`.

        Returns:
            The detached loss, (), without scale and penalty.
        """
        plastic = self.plastic
        if not self._fits():
            return plastic.backward(lambda: loss(x, y), scale=scale)
        state = self._present()
        if state != self._state:
            self._replays.clear()  # their memory goes first
            self._state, self._structure, self._seen = state, plastic.structure, {}
        batch = (x.shape, x.stride(), x.dtype, y.shape, y.dtype)
        if batch not in self._replays:
            self._seen[batch] = self._seen.get(batch, 0) + 1
            if self._seen[batch] <= EAGER:
                return plastic.backward(lambda: loss(x, y), scale=scale)
            self._replays[batch] = self._recorded(loss, x, y, scale)
        value = self._replays[batch](x, y)
        self._pay(scale)
        return value

    def _fits(self) -> bool:
        plastic = self.plastic
        return (
            plastic.k > 0
            and (math.isinf(plastic.k) or len(ESTIMATORS[plastic.estimator].passes) == 1)
            and not plastic.gates.grace_left
            and plastic.masks == "batch"
            and distributed.size() == 1
            and all(parameter.grad is None for parameter in self._parameters())
        )

    def _parameters(self) -> list[nn.Parameter]:
        return [*self.plastic.weights(), *self.plastic.logits()]

    def _present(self) -> tuple[Any, ...]:
        """Everything that a graph has recorded as fixed."""
        plastic, logits = self.plastic, self.plastic.logits()
        tensors = [*self._parameters(), *plastic.model.buffers()]
        closed = tuple(each._version for each in logits) if math.isinf(plastic.k) else ()  # else each step moves them
        places = tuple((tensor.data_ptr(), tensor.shape, tensor.requires_grad) for tensor in tensors)
        return plastic.k, plastic.estimator, plastic.model.training, id(plastic.structure), closed, places

    def _recorded(
        self, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, scale: Any
    ) -> Callable[[Tensor, Tensor], Tensor]:
        plastic, inputs, classes = self.plastic, x.clone(), y.clone()

        def call() -> Tensor:
            penalty, plastic.penalty = plastic.penalty, _Free()
            try:
                return plastic.backward(lambda: loss(inputs, classes), scale=scale)
            finally:
                plastic.penalty = penalty

        replay = self.record(call, self._parameters(), plastic.gates.generator)

        def step(x: Tensor, y: Tensor) -> Tensor:
            inputs.copy_(x)
            classes.copy_(y)
            return replay()

        return step

    def _pay(self, scale: Any) -> None:
        """Add the gradient of the penalty, and update the penalty, as a step does after its passes."""
        plastic = self.plastic
        if math.isinf(plastic.k):
            return
        cost = plastic.penalty.loss(plastic)
        cost = scale.scale(cost) if hasattr(scale, "scale") else cost * scale
        if cost.requires_grad:
            cost.backward()
        plastic.penalty.update(plastic)


def cuda_graph(call: Call, parameters: Sequence[nn.Parameter], generator: torch.Generator) -> Call:
    """Record a call that leaves gradients, without running it.

    Args:
        call: returns a tensor.
        parameters: that get gradients, and have none now.
        generator: of the random numbers, besides torch's own.

    Returns:
        A function that runs the kernels of the call, sets the gradients and returns the tensor.
    """
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    stream = torch.cuda.current_stream()
    own = stream if stream != torch.cuda.default_stream() else None  # the default stream cannot be recorded
    with torch.cuda.graph(graph, stream=own):
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
        return torch.zeros(())
