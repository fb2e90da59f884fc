"""Run a model for real before it is traced, leaving no trace in it; see what it calls and changes by itself."""

import contextlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from npn._utils.inputs import copied, output_tensors, split_inputs
from npn._utils.models import model_tensors
from npn.tracing.capture.calls import Calls, FunctionCall, given
from npn.tracing.capture.environment import alone, no_gradients, preserved, told_of_export, unfused_layers


@dataclass(frozen=True)
class WarmUp:
    """What a forward pass did.

    Attributes:
        changed: names of the parameters that it changes by itself.
        ran: whether it came to its end.
        calls: what it called, see `npn.tracing.capture.calls`; None if that could not be recorded.
    """

    changed: list[str] = field(default_factory=list)
    ran: bool = False
    calls: list[FunctionCall] | None = None


def warm_up(model: nn.Module, example_inputs: Any) -> WarmUp:
    """Run the model once for real, leaving no trace in it: tables that code caches elsewhere on first use are real.

    Otherwise a `functools.lru_cache` or a global dict would be filled, and stay filled, with the fake tensors of a
    trace. If the call fails, so will the trace, with a reason.

    Args:
        model: as before afterwards.
        example_inputs: of its forward pass.
    """
    if any(torch.nn.parameter.is_lazy(tensor) for tensor in model_tensors(model).values()):
        return WarmUp()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    args, kwargs = copied(split_inputs(example_inputs))
    parameters = dict(model.named_parameters())
    watch, ran, found = _Watch(parameters), False, None
    with (
        alone(),
        preserved(model),
        told_of_export(),
        no_gradients(),
        unfused_layers(),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            with watch, Calls(given(model, buffers, (args, kwargs))) as calls:
                result = torch.func.functional_call(model, buffers, args, kwargs)
            ran, found = True, calls.ended(result)
        except Exception:  # ops that hold a graph, such as torch.cond, compile it, which they refuse under a watch
            torch._dynamo.reset()  # or they refuse from now on
            copies = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            with contextlib.suppress(Exception):
                torch.func.functional_call(model, buffers | copies, args, kwargs)
                ran = True
        now = dict(model.named_parameters())
    changed = {name for name, parameter in parameters.items() if now.get(name) is not parameter}
    return WarmUp(sorted(changed | watch.restored()), ran, found)


def outputs_of(model: nn.Module, example_inputs: Any, values: Mapping[str, Tensor] | None = None) -> list[Tensor]:
    """The output tensors of one call for real, without gradients, which leaves nothing behind in the model.

    Args:
        model: as before afterwards.
        example_inputs: of its forward pass.
        values: name of a parameter or buffer -> value that it has in the call instead of its own.
    """
    args, kwargs = copied(split_inputs(example_inputs))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # code may count in one
    with preserved(model), torch.no_grad():  # functional_call does not restore a module registered under two names
        return output_tensors(torch.func.functional_call(model, {**buffers, **(values or {})}, args, kwargs))


class _Watch(TorchDispatchMode):
    """Inside, a parameter that an op writes to is copied before; `restored` puts it back."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._data = {name: (parameter, parameter.data) for name, parameter in parameters.items()}
        self._names: dict[int, list[str]] = {}
        for name, parameter in parameters.items():
            self._names.setdefault(parameter.untyped_storage().data_ptr(), []).append(name)
        self._copies: dict[str, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for value in (x for x in tree_leaves((args[:1], kwargs.get("out"))) if isinstance(x, Tensor)):
                for name in self._names.get(value.untyped_storage().data_ptr(), ()):
                    if name not in self._copies and value.numel():
                        self._copies[name] = self._data[name][1].clone()
        return func(*args, **kwargs)

    def restored(self) -> set[str]:
        """Put back every parameter that has changed, and name it."""
        changed = set()
        with torch.no_grad():
            for name, (parameter, data) in self._data.items():
                if parameter.data_ptr() != data.data_ptr():
                    parameter.data = data
                    changed.add(name)
                if name in self._copies:
                    data.copy_(self._copies[name])
                    changed.add(name)
        return changed
