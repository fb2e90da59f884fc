"""Capture a model's ATen graph on fake tensors, at its own or at other parameter shapes, without touching the model."""

import contextlib
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph
from torch.fx.node import map_arg
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map

from npn._utils.inputs import output_tensors, split_inputs
from npn._utils.models import model_tensors
from npn.structure import Decisions
from npn.tracing.capture.bare import probed
from npn.tracing.capture.deadline import Deadline
from npn.tracing.capture.environment import cast_anew, quiet, traceable, without_collections
from npn.tracing.capture.known_values import KnownValues, decisions, fake_inputs
from npn.tracing.capture.made_up import MadeUp, with_known_values
from npn.tracing.capture.norm_calls import marking
from npn.tracing.capture.recorder import Recorder
from npn.tracing.capture.shapes_only import ShapesOnly

_GRADIENTS = ("does not require grad", "backward() called inside")  # what PyTorch says of gradients in a trace
_WITHOUT = (  # what it says where no function with gradients writes in place: into complex numbers, into a parameter
    "does not support automatic differentiation for outputs with complex dtype",
    "a leaf Variable that requires grad is being used in an in-place operation",
)


@dataclass(frozen=True)
class Capture:
    """One traced forward pass.

    Attributes:
        graph: the functional ATen graph; its first placeholders are the model's tensors.
        constants: tensors from elsewhere that it uses, by target.
        names: parameter and buffer names in placeholder order.
        outputs: shapes of the tensors that the model returned.
        decisions: lines at which the forward pass decides by values.
        layers: names of the weights of linear layers and convolutions.
    """

    graph: Graph
    constants: Mapping[str, Tensor]
    names: tuple[str, ...]
    outputs: tuple[tuple[int, ...], ...]
    decisions: Decisions
    layers: frozenset[str]


def capture(
    model: nn.Module,
    example_inputs: Any,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    streams: bool = False,
    deadline: Deadline | None = None,
) -> Capture:
    """Record one forward pass of `functional_call`, functionalised, on fake tensors.

    Where it decides by values that follow from the inputs and buffers alone, these decide.

    Args:
        model: any module; its mode, attributes, buffers and the RNG are as before afterwards.
        example_inputs: what `forward` takes, see `split_inputs`.
        shapes: other shapes for some parameters or buffers, by name (nothing is allocated).
        streams: whether nodes learn which call of a norm they belong to, see `norm_calls`.
        deadline: of the trace; None for none.

    Raises:
        TraceError: the forward pass depends on other values, which a graph cannot follow, or the time is over.
    """

    def attempt(mode: FakeTensorMode) -> Capture:
        try:
            return _captured(model, example_inputs, shapes, streams, deadline, mode, gradients=True)
        except RuntimeError as error:
            if not any(words in str(error) for words in _WITHOUT):
                raise
        return _captured(model, example_inputs, shapes, streams, deadline, mode, gradients=False)

    return with_known_values(attempt, _form)


def _captured(
    model: nn.Module,
    example_inputs: Any,
    shapes: Mapping[str, tuple[int, ...]] | None,
    streams: bool,
    deadline: Deadline | None,
    mode: FakeTensorMode,
    gradients: bool,
) -> Capture:
    """`capture` with one kind of fake tensors, with gradients or without."""
    args, kwargs = split_inputs(example_inputs)
    tensors = model_tensors(model)
    names = tuple(tensors)
    fakes = [fake_tensor(mode, tensor, (shapes or {}).get(name)) for name, tensor in tensors.items()]
    fake_args, fake_kwargs = fake_inputs(mode, (args, kwargs))

    def record() -> tuple[Recorder, list[Tensor]]:
        recorder = Recorder(deadline or Deadline(math.inf))

        def call(values: list[Tensor], args: Any, kwargs: Any) -> list[Tensor]:
            state = dict(zip(names, values, strict=True))
            norms = marking(model, recorder.made) if streams else contextlib.nullcontext()
            with probed(model, recorder.made), norms:
                return output_tensors(torch.func.functional_call(model, state, args, kwargs))

        recorder.take(tree_leaves((fakes, fake_args, fake_kwargs)))
        with recorder:
            result = torch.func.functionalize(call)(fakes, fake_args, fake_kwargs)
        recorder.give(result)
        return recorder, result

    with traceable(model), quiet(), cast_anew(), torch.enable_grad() if gradients else torch.no_grad(), mode:
        try:
            recorder, result = record()
        except RuntimeError as error:
            if not any(words in str(error) for words in _GRADIENTS):
                raise
            raise RuntimeError(
                "a gradient taken inside of the forward pass cannot be traced; attach the part of the model that comes "
                "before it, as npn.attach(model.energy, ...), and take the gradient outside of that part"
            ).with_traceback(error.__traceback__) from error
    learned = [isinstance(tensor, nn.Parameter) for tensor in tensors.values()]
    found = decisions(recorder.graph, learned, tuple(mode.lines) if isinstance(mode, MadeUp) else ())
    outputs = tuple(tuple(tensor.shape) for tensor in result)
    return Capture(recorder.graph, recorder.constants, names, outputs, found, _layers(model))


def output_shapes(
    model: nn.Module, example_inputs: Any, shapes: Mapping[str, tuple[int, ...]], meta: bool = False
) -> tuple[tuple[int, ...], ...]:
    """Shapes of the model's outputs with tensors of other shapes: a forward pass without values and without a graph.

    It takes a fifth of the time of `capture`, on the meta device a tenth.

    Args:
        model: as before afterwards.
        example_inputs: of its forward pass.
        shapes: other shapes for some parameters or buffers, by name.
        meta: whether all tensors are on the meta device, instead of fake ones on their own device: faster at sizes not
            met before, but some code does not run there, at any size.
    """
    if meta:
        return _shapes_in(torch.device("meta"), model, example_inputs, shapes)
    return with_known_values(lambda mode: _shapes_in(mode, model, example_inputs, shapes), tuple)


def _shapes_in(
    mode: Any, model: nn.Module, example_inputs: Any, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[int, ...], ...]:
    """`output_shapes` on the meta device, or with one kind of fake tensors."""
    inputs, meta = split_inputs(example_inputs), isinstance(mode, torch.device)
    if meta:
        args, kwargs = tree_map(lambda x: x.to(mode) if isinstance(x, Tensor) else x, inputs)
    else:
        args, kwargs = fake_inputs(mode, inputs)
    state = {name: fake_tensor(mode, tensor, shapes.get(name)) for name, tensor in model_tensors(model).items()}
    with (
        without_collections(),
        traceable(model),
        torch.no_grad(),
        mode,
        ShapesOnly() if meta else contextlib.nullcontext(),
    ):
        result = torch.func.functional_call(model, state, args, kwargs)
    return tuple(tuple(tensor.shape) for tensor in output_tensors(result))


def fake_tensor(mode: Any, tensor: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """A tensor of the model without values; a buffer of its own size has some in a mode that knows values.

    Args:
        mode: of fake tensors, or the meta device.
        tensor: of the model.
        shape: that it has in the trace; None for its own.
    """
    sized = shape is None or shape == tuple(tensor.shape)
    if isinstance(mode, KnownValues) and sized and not isinstance(tensor, nn.Parameter):
        known: Tensor = mode.from_input(tensor.detach())
        return known
    with mode:
        return torch.empty(
            tensor.shape if shape is None else shape,
            dtype=tensor.dtype,
            device=mode if isinstance(mode, torch.device) else tensor.device,
            requires_grad=tensor.requires_grad and tensor.is_leaf,  # a buffer may be the result of an earlier call
        )


def _form(captured: Capture) -> list[Any]:
    """A graph in words, with the numbers in it: the same for the same computation."""
    numbers = {node: i for i, node in enumerate(captured.graph.nodes)}
    shown: list[Any] = [repr(captured.outputs)]
    for node in captured.graph.nodes:
        given = map_arg((node.args, node.kwargs), lambda n: f"%{numbers[n]}")
        shown.append((str(node.target), repr(given), _elements(captured.constants.get(str(node.target)))))
    return shown


def _elements(tensor: Tensor | None) -> Any:
    """The elements of a constant; of one whose elements nobody knows its own number, so that it is like no other."""
    found = tensor.constant if isinstance(tensor, FakeTensor) else tensor
    if tensor is None:
        return None
    if found is None or found.layout is not torch.strided:
        return id(tensor)
    entries = found.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return found.dtype, found.shape, zlib.crc32(entries.numpy().tobytes())


def _layers(model: nn.Module) -> frozenset[str]:
    """Names of the weights that linear layers and convolutions read their inputs with, (outputs, inputs, ...)."""
    reading = [
        m for m in model.modules() if isinstance(m, (nn.Linear, _ConvNd)) and not getattr(m, "transposed", False)
    ]
    owned = {id(module._parameters.get("weight")) for module in reading}
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in owned)
