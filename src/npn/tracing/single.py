"""Trace a model once, at its own or at other shapes: capture, walk, group."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from npn.errors import TraceError
from npn.structure import Structure
from npn.tracing.capture import capture, model_tensors, raising_line, split_inputs
from npn.tracing.groups import group_units
from npn.tracing.walk import walk


def single_trace(
    model: nn.Module, example_inputs: Any, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Structure:
    """Units of a model, before the dry run.

    Args:
        model: any module; untouched.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of `forward`.
        shapes: other shapes for some tensors, by name.

    Raises:
        TraceError: the forward pass cannot be followed; names the line.
    """
    _check_devices(model, example_inputs)
    try:
        return _attempt(model, example_inputs, shapes)
    except TraceError:
        raise
    except Exception as error:
        if model.training:  # BatchNorm wants several values per channel then, and an example may have one
            with contextlib.suppress(Exception), evaluating(model):
                return replace(_attempt(model, example_inputs, shapes), training=False)
        raise TraceError(_explain(error)) from error


def _check_devices(model: nn.Module, example_inputs: Any) -> None:
    """Inputs must lie where a parameter lies; a model on several devices may take them on any of these."""
    homes = {str(tensor.device) for tensor in model_tensors(model).values()}
    inputs = {str(leaf.device) for leaf in tree_leaves(split_inputs(example_inputs)) if isinstance(leaf, Tensor)}
    strange = sorted(inputs - homes)
    if homes and strange:
        raise TraceError(
            f"example_inputs are on {', '.join(strange)}, the model is on {', '.join(sorted(homes))}; "
            "move one to the other before npn.attach"
        )


def _attempt(model: nn.Module, example_inputs: Any, shapes: Mapping[str, tuple[int, ...]] | None) -> Structure:
    captured = capture(model, example_inputs, shapes)
    tensors = model_tensors(model)
    sizes = {name: tuple((shapes or {}).get(name, tuple(t.shape))) for name, t in tensors.items()}
    with torch.no_grad():
        return group_units(walk(captured, tensors), sizes, captured.outputs)


def evaluating(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Eval mode for a while; every module's own mode is put back."""
    return in_mode(model, False)


@contextlib.contextmanager
def in_mode(model: nn.Module, training: bool | None) -> Iterator[None]:
    """Train or eval mode for a while (None: as it is); every module's own mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    if training is not None:
        model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _explain(error: Exception) -> str:
    name, line = type(error).__name__, raising_line(error)
    if "DataDependent" in name or "GuardOnDataDependent" in name:
        return (
            f"the forward pass decides by the value of a tensor at {line}, which a traced graph cannot follow; "
            "expected a computation that is the same for every input: use torch.where instead of if, "
            "or attach the parts of the model before and after this line separately"
        )
    return f"the forward pass failed on example_inputs at {line}: {name}: {error}"
