"""Trace a model once, at its present shapes or at others: capture the graph, propagate labels, group the units."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from npn._utils.inputs import split_inputs
from npn._utils.models import evaluating, model_tensors
from npn.errors import TraceError
from npn.structure import Couplings, Structure
from npn.tracing.capture.deadline import Deadline
from npn.tracing.capture.environment import without_collections
from npn.tracing.capture.failures import explained
from npn.tracing.capture.graph import capture
from npn.tracing.grouping.groups import group_units
from npn.tracing.grouping.walk import walk
from npn.tracing.labels.coupler import Coupler

T = TypeVar("T")
SECONDS = 120.0  # of CPU time for one trace: a hundred times what a transformer of twelve blocks takes


def single_trace(
    model: nn.Module,
    example_inputs: Any,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    streams: bool = False,
    seconds: float = SECONDS,
    either: bool = True,
    couplings: Couplings | None = None,
) -> Structure:
    """Trace a model once, before the rehearsal.

    Args:
        model: any module; unchanged afterwards.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of `forward`.
        shapes: tensor name -> shape, for tensors to be traced at other shapes.
        streams: whether norms are followed, so that the units that they normalise over come and go.
        seconds: of CPU time, after which the trace ends with an error.
        either: whether a model that fails in train mode is traced in eval mode.
        couplings: places whose units are one unit, see `Structure`.

    Returns:
        The structure.

    Raises:
        TraceError: tracing cannot follow the forward pass, or takes too long; the message names the source line.
    """
    _check_devices(model, example_inputs)
    attempt = partial(_attempt, model, example_inputs, shapes, streams, seconds, couplings or {})
    with explained():
        structure, mode = in_working_mode(model, attempt) if either else (attempt(), None)
    return replace(structure, training=mode)


def in_working_mode(model: nn.Module, call: Callable[[], T]) -> tuple[T, bool | None]:
    """Call something in the model's mode, or in eval mode where train mode fails otherwise than by a `TraceError`.

    BatchNorm needs several values per channel in training, and one example may give only one.

    Args:
        model: in its mode, as it is afterwards.
        call: runs the model.

    Returns:
        What it returns; and the mode: None for the present one, False for eval mode.

    Raises:
        Exception: what `call` raised in the present mode.
    """
    try:
        return call(), None
    except TraceError:
        raise
    except Exception:
        if model.training:
            with contextlib.suppress(Exception), evaluating(model):
                return call(), False
        raise


def _check_devices(model: nn.Module, example_inputs: Any) -> None:
    """Raise unless every input lies on the device of some parameter or buffer."""
    homes = {str(tensor.device) for tensor in model_tensors(model).values()}
    inputs = {str(leaf.device) for leaf in tree_leaves(split_inputs(example_inputs)) if isinstance(leaf, Tensor)}
    strange = sorted(inputs - homes)
    if homes and strange:
        raise TraceError(
            f"example_inputs are on {', '.join(strange)}, the model is on {', '.join(sorted(homes))}; "
            "move one to the other before npn.attach"
        )


def _attempt(
    model: nn.Module,
    example_inputs: Any,
    shapes: Mapping[str, tuple[int, ...]] | None,
    streams: bool,
    seconds: float,
    couplings: Couplings,
) -> Structure:
    """Capture, walk and group in the present mode."""
    deadline = Deadline(seconds)
    with without_collections(), torch.no_grad():
        captured = capture(model, example_inputs, shapes, streams, deadline)
        tensors = model_tensors(model)
        sizes = {name: tuple((shapes or {}).get(name, tuple(t.shape))) for name, t in tensors.items()}
        walked = walk(captured, tensors, deadline, Coupler(couplings))
        found = group_units(walked, sizes, captured.outputs)
        return replace(found, streams=streams, couplings=couplings, decisions=captured.decisions)
