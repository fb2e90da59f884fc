"""Count a model's parameters and multiply-adds."""

import contextlib
import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from npn._utils.inputs import copied, split_inputs
from npn._utils.models import model_tensors
from npn._utils.validation import instance
from npn.masking.calls import attached_parts
from npn.structure import Structure, resized_shapes
from npn.tracing.capture.environment import alone, average_at_once, plain_kernels, preserved, quiet
from npn.tracing.capture.failures import explained
from npn.tracing.capture.graph import fake_tensor
from npn.tracing.capture.known_values import KnownValues, fake_inputs
from npn.tracing.capture.made_up import with_known_values
from npn.tracing.one_trace import in_working_mode
from npn.tracing.refusals import check_sized
from npn.tracing.rehearsal.retrace import attributes_changed

MODEL = "a torch.nn.Module (of a handle, plastic.model)"  # what messages expect


def count_params(model: nn.Module, biases: bool = True) -> int:
    """Count the parameters of a model; tied parameters count once.

    Args:
        model: any module.
        biases: whether to count one-dimensional parameters too (biases, normalisation); papers often do not.

    Returns:
        Number of parameters.

    Raises:
        ConfigurationError: `model` is something else.

    Example:
        >>> count_params(nn.Linear(10, 5)), count_params(nn.Linear(10, 5), biases=False)
        (55, 50)
    """
    instance("model", model, nn.Module, MODEL)
    return sum(p.numel() for p in model.parameters() if biases or p.dim() > 1)


def count_macs(model: nn.Module, example_inputs: Any) -> int:
    """Count the multiply-adds of one forward pass over all of `example_inputs`; FLOPs are twice as many.

    Convolutions and matrix products count, including those of attention; elementwise ops and products with sparse
    matrices do not. Nothing is computed, unless the model picks rows by what it computes, as routers do: it runs on
    fake tensors, in its present mode; in eval mode if it fails in train mode, as BatchNorm does on one example. Pass a
    batch of one for the usual "MACs of a model".

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of `forward`.

    Returns:
        Number of multiply-adds.

    Raises:
        ConfigurationError: `model` is something else.
        TraceError: the forward pass fails, or a lazy module has not been called yet.

    Example:
        >>> count_macs(nn.Linear(10, 5), torch.zeros(1, 10))
        50
    """
    instance("model", model, nn.Module, MODEL)
    check_sized(model)
    return _count(model, example_inputs, {})


def macs_at(model: nn.Module, example_inputs: Any, structure: Structure, change: Mapping[str, int]) -> int:
    """Count the multiply-adds that a model would have at other sizes; nothing is resized.

    Args:
        model: the model, with gates or without.
        example_inputs: see `count_macs`.
        structure: its structure.
        change: group name -> units more, or fewer if negative.

    Returns:
        Number of multiply-adds.
    """
    with attributes_changed(model, structure, change):
        return _count(model, example_inputs, resized_shapes(structure, change))


def _count(model: nn.Module, example_inputs: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """`count_macs` with other shapes for some tensors."""
    counted = functools.partial(_counted, model, example_inputs, shapes)
    with quiet(), explained():
        return in_working_mode(model, lambda: with_known_values(counted, int))[0]


def _counted(model: nn.Module, example_inputs: Any, shapes: Mapping[str, tuple[int, ...]], mode: FakeTensorMode) -> int:
    """Count in the present mode, with one kind of fake tensors; for real where the model picks rows by its weights."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, where there is one

    real = isinstance(mode, KnownValues) and mode.assume_half and not shapes
    state: dict[str, Tensor] = {}
    for name, tensor in model_tensors(model).items():
        # a copy of its own, since code may write into it
        state[name] = tensor.detach().clone() if real else fake_tensor(mode, tensor, shapes.get(name))
    inputs = split_inputs(example_inputs)
    args, kwargs = copied(inputs) if real else fake_inputs(mode, inputs)
    more = {torch.ops.aten._trilinear: _trilinear, torch.ops.aten.mv: _matrix_vector}
    counter = FlopCounterMode(display=False, custom_mapping=more)
    with contextlib.ExitStack() as stack:
        for call in attached_parts(model).values():  # closed units count while they exist
            stack.enter_context(call.weights.step())
        for context in (alone(), preserved(model), torch.no_grad(), plain_kernels()):
            stack.enter_context(context)
        if not real:
            stack.enter_context(mode)
        stack.enter_context(counter)
        average_at_once(model)
        torch.func.functional_call(model, state, args, kwargs)
    return counter.get_total_flops() // 2


def _matrix_vector(matrix: Any, vector: Any, **others: Any) -> int:
    """FLOPs of a matrix times a vector, which PyTorch's counter leaves out; the arguments are shapes."""
    return int(2 * math.prod(matrix))


def _trilinear(first: Any, weight: Any, *rest: Any, out_shape: Any = None, **others: Any) -> int:
    """FLOPs of `nn.Bilinear`, which PyTorch's counter leaves out; the arguments are shapes."""
    return int(2 * math.prod(out_shape) * math.prod(weight[1:]))
