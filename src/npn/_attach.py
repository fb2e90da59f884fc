"""`attach`: give a model gates."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from npn._utils.patterns import as_patterns
from npn._utils.validation import flag, instance
from npn.errors import ConfigurationError, TraceError
from npn.functional import GateFunction, gate_function
from npn.functional.table import check_estimator
from npn.gates.gate import check_function
from npn.masking.calls import attached_parts
from npn.penalty import CostTerm
from npn.plasticity import Plasticity
from npn.structure import MIXES
from npn.tracing import trace
from npn.tracing.capture.failures import nothing_left
from npn.tracing.single_weights import with_single_weights


def attach(
    model: nn.Module,
    example_inputs: Any,
    *,
    estimator: str = "reinmax",
    function: str | GateFunction = "sigmoid",
    penalty: CostTerm | None = None,
    only: str | Iterable[str] | None = None,
    skip: str | Iterable[str] | None = None,
    columns: str | Iterable[str] | None = None,
    branches: str | Iterable[str] | None = None,
    unstructured: str | Iterable[str] | None = None,
    streams: bool = False,
    masks: str = "batch",
) -> Plasticity:
    """Give a model gates on every unit that can be resized.

    The model keeps its class, its forward and its state_dict keys. It starts at k = inf with every gate open, so
    training is unchanged until `plastic.k` or a `Schedule` sets another k.

    Args:
        model: any module whose forward pass can be traced.
        example_inputs: one small batch: a tensor, a tuple of positional or a dict of keyword arguments.
        estimator: estimator of the gates' gradient: "reinmax", "straight_through", "double_cv", "disarm", "arm" or
            "rloo".
        function: gate function g: "sigmoid", "hard_sigmoid", "shifted_sigmoid" or an object.
        penalty: price of size; `Penalty(cost="params", weight=1e-6)` if not given.
        only, skip: patterns of the names of groups that get gates, or do not.
        columns: patterns of the names of linear and convolution layers whose single input columns get gates too, in a
            group `<layer>.columns`. Where one unit feeds several columns, such as a channel after flattening, some can
            then be removed and the others kept. The compact model selects the layer's inputs by index.
        branches: patterns of the names of submodules whose output is added to another tensor, `x + branch(x)`: each
            gets one gate, all in the group `branches`. A closed branch computes zero, and the units inside it cost
            nothing and get no gradient from the data; `compact` replaces it for good by a module that returns zero.
            Where a pattern matches a submodule and others inside of it, as `blocks.*` does, it means the outer one.
        unstructured: patterns of the names of parameters, or of the modules that own them: each weight of these gets a
            gate of its own, in `plastic.unstructured`. Only parameters with two or more axes have weights in this
            sense, so that "fc*" names `fc1.weight` and not `fc1.bias`. A weight costs nothing where the unit on its row
            or column is closed. `export` then has zeros at the closed weights.
        streams: whether units under a norm get gates, such as the channels of the residual stream of a transformer.
            Under a mask, LayerNorm, RMSNorm and means then take their statistics over the open units, as the network
            without the closed ones does; such groups shrink and do not grow. docs/streams.md.
        masks: "batch" draws one mask per step, "example" one mask per example.

    Returns:
        The handle: groups, frozen dimensions, `backward`, `compact`, `grow`, `export`.

    Raises:
        TraceError: tracing cannot follow the model, nothing in it can be resized, or it does not work without a branch.
        ConfigurationError: an option is unknown, or this is inside `torch.inference_mode`.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> attach(model, torch.zeros(1, 4)).groups
        [UnitGroup('0', size=8, open=8)]

    References:
        Li and Ji, "Neural Plasticity Networks", IJCNN 2021.
    """
    if torch.is_inference_mode_enabled():
        raise ConfigurationError("gates made inside torch.inference_mode() cannot be trained; attach outside of it")
    if penalty is not None:
        instance("penalty", penalty, CostTerm, "npn.Penalty(...), npn.Budget(...) or another npn.CostTerm")
        if not hasattr(penalty, "cost"):
            kind = type(penalty).__name__
            raise ConfigurationError(f'{kind}.__init__ has to call super().__init__(cost), with "params", "macs" or so')
    flag("streams", streams)
    unstructured = as_patterns(unstructured, "unstructured")
    check_estimator(estimator, per_example=masks == "example")
    if masks not in ("batch", "example"):
        raise ConfigurationError(f'masks must be "batch" or "example", got {masks!r}')
    if masks == "example" and branches:
        raise ConfigurationError('branches take part in masks="batch" only; leave out branches= or masks="example"')
    if masks == "example" and unstructured is not None:
        raise ConfigurationError('single weights have masks="batch" only; leave out unstructured= or masks="example"')
    if masks == "example" and streams:
        raise ConfigurationError('norms have masks="batch" only; leave out streams= or masks="example"')
    for name, call in attached_parts(model).items():
        who = f"its part {name!r} has" if name else "the model has"
        also = "; a deep copy of a model has no handle: attach a copy of plastic.export()" if call.copied else ""
        raise ConfigurationError(f"{who} plasticity already; call detach() on its handle before attaching again{also}")
    gate = gate_function(function)
    check_function(gate)
    structure = trace(model, example_inputs, only=only, skip=skip, columns=columns, branches=branches, streams=streams)
    if unstructured is not None:
        structure = with_single_weights(structure, model, unstructured)
    if not structure.parts and not structure.unstructured:
        mixed = not streams and any(MIXES in f.reason for f in structure.frozen)
        advice = "; streams=True gives units under a norm or a mean gates, see docs/streams.md" if mixed else ""
        raise TraceError(f"nothing in the model can be resized: {nothing_left(structure.frozen)}{advice}")
    return Plasticity(model, example_inputs, structure, estimator, gate, penalty, masks)
