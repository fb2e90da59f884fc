"""Capture a model's ATen graph on fake tensors, at its own or at other parameter shapes, without touching the model."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_map

from npn.errors import TraceError
from npn.tracing.deadline import Deadline
from npn.tracing.environment import (
    announced,
    average_at_once,
    no_gradients,
    plain_functions,
    plain_kernels,
    preserved,
    quiet,
)
from npn.tracing.known_values import decisions, fake_inputs, with_known_values
from npn.tracing.lines import record_lines
from npn.tracing.norm_calls import marking
from npn.tracing.shapes_only import ShapesOnly

_CACHES = ("past_key_values",)  # caches that are plain tuples are known by their name
_GRADIENTS = ("does not require grad", "backward() called inside")  # what PyTorch says of gradients in a trace
_SWITCH = "_disable_torch_fn_metadata_mode"  # of what make_fx notes of each call, which nobody reads; not in torch 2.9
_WITHOUT_NOTES: dict[str, Any] = {_SWITCH: True} if _SWITCH in signature(make_fx).parameters else {}
_COMPLEX = "does not support automatic differentiation for outputs with complex dtype"


@dataclass(frozen=True)
class Capture:
    """One traced forward pass.

    Attributes:
        module: the functional ATen graph; its first placeholders are the model's tensors.
        names: parameter and buffer names in placeholder order.
        outputs: shapes of the tensors that the model returned.
        decided: lines at which the forward pass decides by values that follow from its inputs.
        assumed: lines at which it picks rows by other values; half of the rows are assumed.
    """

    module: GraphModule
    names: tuple[str, ...]
    outputs: tuple[tuple[int, ...], ...]
    decided: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


def split_inputs(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of one call, from a tensor, a tuple or list, or a dict of keywords."""
    if example_inputs is None:
        raise TraceError(
            "example_inputs is missing: expected a tensor, a tuple of positional arguments or a dict of keyword "
            "arguments, as the model's forward takes them; pass one small batch, e.g. torch.zeros(2, 3, 32, 32)"
        )
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def capture(
    model: nn.Module,
    example_inputs: Any,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    streams: bool = False,
    deadline: Deadline | None = None,
) -> Capture:
    """Trace one forward pass with `make_fx` over `functional_call`, on fake tensors.

    Where it decides by values that follow from the inputs alone, the example inputs decide.

    Args:
        model: any module; its mode, attributes, buffers and the RNG are as before afterwards.
        example_inputs: what `forward` takes, see `split_inputs`.
        shapes: other shapes for some parameters or buffers, by name (nothing is allocated).
        streams: whether nodes learn which call of a norm they belong to, see `norm_calls`.
        deadline: of the trace; None for none.

    Raises:
        TraceError: the forward pass depends on other values, which a graph cannot follow, or the time is over.
    """
    return with_known_values(lambda mode: _captured(model, example_inputs, shapes, streams, deadline, mode))


def _captured(
    model: nn.Module,
    example_inputs: Any,
    shapes: Mapping[str, tuple[int, ...]] | None,
    streams: bool,
    deadline: Deadline | None,
    mode: FakeTensorMode,
) -> Capture:
    """`capture` with one kind of fake tensors."""
    deadline = deadline or Deadline(math.inf)
    args, kwargs = split_inputs(example_inputs)
    tensors = model_tensors(model)
    names = tuple(tensors)
    outputs: list[tuple[int, ...]] = []

    def call(values: list[Tensor], args: Any, kwargs: Any) -> list[Tensor]:
        state = dict(zip(names, values, strict=True))
        record_lines(deadline)
        with marking(model) if streams else contextlib.nullcontext():
            result = output_tensors(torch.func.functional_call(model, state, args, kwargs))
        outputs[:] = [tuple(t.shape) for t in result]
        return result

    with mode:
        fakes = [_fake(tensor, (shapes or {}).get(name)) for name, tensor in tensors.items()]
    fake_args, fake_kwargs = fake_inputs(mode, (args, kwargs))
    graph = make_fx(
        torch.func.functionalize(call),
        tracing_mode="real",  # all inputs are fake already
        **_WITHOUT_NOTES,
    )
    contexts = (preserved(model), quiet(), plain_kernels(), announced(), plain_functions(), no_gradients())
    with contextlib.ExitStack() as stack:
        for context in (*contexts, torch.enable_grad(), mode, _use_lazy_graph_module(True)):  # the graph is never run
            stack.enter_context(context)
        average_at_once(model)
        try:
            try:
                traced = graph(fakes, fake_args, fake_kwargs)
            except RuntimeError as error:
                if _COMPLEX not in str(error):
                    raise
                with torch.no_grad():  # writing into a slice of complex numbers has no gradient as a function
                    traced = graph(fakes, fake_args, fake_kwargs)
        except RuntimeError as error:
            if not any(words in str(error) for words in _GRADIENTS):
                raise
            raise RuntimeError(
                "a gradient taken inside of the forward pass cannot be traced; attach the part of the model that comes "
                "before it, as npn.attach(model.energy, ...), and take the gradient outside of that part"
            ).with_traceback(error.__traceback__) from error
    decided, assumed = decisions(traced.graph, len(names))
    return Capture(traced, names, tuple(outputs), decided, assumed)


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
    return with_known_values(lambda mode: _shapes_in(mode, model, example_inputs, shapes))


def _shapes_in(
    mode: Any, model: nn.Module, example_inputs: Any, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[int, ...], ...]:
    """`output_shapes` on the meta device, or with one kind of fake tensors."""
    inputs, meta = split_inputs(example_inputs), isinstance(mode, torch.device)
    if meta:
        args, kwargs = tree_map(lambda x: x.to(mode) if isinstance(x, Tensor) else x, inputs)
    else:
        args, kwargs = fake_inputs(mode, inputs)
    with mode:
        state = {
            name: _fake(tensor, shapes.get(name), mode if meta else None)
            for name, tensor in model_tensors(model).items()
        }
    contexts = (preserved(model), plain_kernels(), announced(), plain_functions(), no_gradients())
    with contextlib.ExitStack() as stack:
        for context in (*contexts, torch.no_grad(), mode, *([ShapesOnly()] if meta else [])):
            stack.enter_context(context)
        average_at_once(model)
        result = torch.func.functional_call(model, state, args, kwargs)
    return tuple(tuple(tensor.shape) for tensor in output_tensors(result))


def _fake(tensor: Tensor, shape: tuple[int, ...] | None, device: torch.device | None = None) -> Tensor:
    return torch.empty(
        tensor.shape if shape is None else shape,
        dtype=tensor.dtype,
        device=device or tensor.device,
        requires_grad=tensor.requires_grad and tensor.is_floating_point(),
    )


def output_tensors(result: Any) -> list[Tensor]:
    """All tensors in a model's answer, whatever holds them; decoding caches, returned for reuse, are no part of it."""
    found = []
    for leaf in tree_flatten(result, is_leaf=lambda value: _is_cache(value) or isinstance(value, Mapping))[0]:
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            for value in (value for key, value in leaf.items() if key not in _CACHES):
                found += output_tensors(value)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, (type, nn.Module)) and not _is_cache(leaf):
            found += output_tensors({key: value for key, value in vars(leaf).items() if not key.startswith("__")})
    return found


def _is_cache(value: Any) -> bool:
    """By its class's name or by what it can do, as no library of models is imported here."""
    named = any(base.__name__.endswith("Cache") for base in type(value).__mro__)
    return named or (hasattr(value, "get_seq_length") and hasattr(value, "update"))
