"""What holds while a model is traced: plain kernels and functions, no gradients, and all put back afterwards."""

import contextlib
import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from npn._utils.rng import devices_of, preserved_rng
from npn.tracing.packed import padded_sequences
from npn.tracing.replacing import replaced
from npn.tracing.tensor_methods import read_by_entry


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from logging what fails on fake tensors: the error says it, or the failure is expected."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def unfused_layers() -> Iterator[None]:
    """PyTorch's encoder layers and `nn.MultiheadAttention` take no fused path in eval mode."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Kernels that decompose into elementary ops: no fused attention, recurrent layer or encoder layer."""
    with (
        unfused_layers(),
        sdpa_kernel(SDPBackend.MATH),
        _without_mkldnn(),
        _without_decisions(),
        padded_sequences(),
        read_by_entry(),
        torch.backends.cudnn.flags(enabled=False),
    ):
        yield


@contextlib.contextmanager
def announced() -> Iterator[None]:
    """`torch.compiler.is_exporting()` holds inside: code that asks takes no decision by the values of a tensor."""
    flags = [name for name in ("_is_compiling_flag", "_is_exporting_flag") if hasattr(torch.compiler, name)]
    before = {name: getattr(torch.compiler, name) for name in flags}
    try:
        for name in flags:
            setattr(torch.compiler, name, True)
        yield
    finally:
        for name, value in before.items():
            setattr(torch.compiler, name, value)


@contextlib.contextmanager
def cast_anew() -> Iterator[None]:
    """Inside, `torch.autocast` converts weights at each use: a graph does not know tensors of a cache."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class _Context:
    """What the forward pass of a `torch.autograd.Function` is given, where there is no backward pass."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.needs_input_grad = tuple(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Any) -> None: ...
    def mark_dirty(self, *tensors: Any) -> None: ...
    def mark_non_differentiable(self, *tensors: Any) -> None: ...
    def mark_shared_storage(self, *pairs: Any) -> None: ...
    def set_materialize_grads(self, value: bool) -> None: ...


@contextlib.contextmanager
def plain_functions() -> Iterator[None]:
    """Inside, in this thread, a `torch.autograd.Function` is its forward pass: functorch cannot see through others."""
    function, thread = torch.autograd.Function, threading.get_ident()
    before = vars(function)["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return before.__func__(cls, *args, **kwargs)
        with torch.no_grad():  # as PyTorch calls it
            if cls.setup_context is not function.setup_context:
                return cls.forward(*args, **kwargs)
            return cls.forward(_Context(args), *args, **kwargs)

    function.apply = classmethod(apply)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        function.apply = before  # type: ignore[method-assign]


def no_gradients() -> contextlib.AbstractContextManager[None]:
    """Inside, in this thread, what the forward pass asks of gradients is nothing: there are none in a trace."""
    return replaced(
        Tensor,
        {
            "requires_grad_": lambda before, tensor, requires_grad=True: tensor,
            "retain_grad": lambda before, tensor: None,
            "register_hook": lambda before, tensor, hook: RemovableHandle(OrderedDict()),
        },
    )


@contextlib.contextmanager
def _without_mkldnn() -> Iterator[None]:
    """`torch.backends.mkldnn.flags` would also set TF32, and warn every user that there is none."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextlib.contextmanager
def _without_decisions() -> Iterator[None]:
    """PyTorch's own code looks at no values: is a mask causal, do a distribution's arguments fit, is a row too long."""
    layers, distribution = torch.nn.modules.transformer, torch.distributions.Distribution
    lookup: Any = F
    before = layers._detect_is_causal_mask, distribution._validate_args, lookup._no_grad_embedding_renorm_
    lookup._no_grad_embedding_renorm_ = lambda *args: None
    layers._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        layers._detect_is_causal_mask = before[0]
        distribution.set_default_validate_args(before[1])
        lookup._no_grad_embedding_renorm_ = before[2]


def average_at_once(model: nn.Module) -> None:
    """Give norms with `momentum=None` a momentum: they read the number of batches, which a trace does not know.

    Args:
        model: inside of `preserved`, which undoes it.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.momentum is None:
            module.momentum = 1.0


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put back module attributes, tensors among them, what hooks collected in closures, and every RNG.

    Inside, modules and functions that `torch.compile` was called on run as they are written.
    """
    modules = [(module, _snapshot(vars(module))) for module in model.modules()]
    closures = [(box, _contents(box)) for box in _hook_boxes(model)]
    try:
        with preserved_rng(devices_of(model)), _not_compiled():
            yield
    finally:
        for module, snapshot in modules:
            vars(module).clear()
            for key, (value, inner) in snapshot.items():
                _refill(value, inner)
                vars(module)[key] = value
        for box, inner in closures:
            _refill(box, inner)


def _not_compiled() -> contextlib.AbstractContextManager[Any]:
    """The stance that runs compiled code as it is written; nothing is compiled before torch's compiler is imported."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


def _snapshot(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (value, _contents(value)) for key, value in attributes.items()}


def _contents(value: Any) -> Any:
    if type(value) is Tensor and value.layout is torch.strided and not value.is_meta:
        return value.detach().clone()  # code may count in a tensor that is neither parameter nor buffer
    return type(value)(value) if type(value) in (list, set) else dict(value) if isinstance(value, dict) else None


def _refill(value: Any, contents: Any) -> None:
    if contents is None:
        return
    if isinstance(value, Tensor):
        if not torch.equal(value, contents):
            value.detach().copy_(contents)
        return
    value.clear()
    (value.extend if isinstance(value, list) else value.update)(contents)


def _hook_boxes(model: nn.Module) -> list[Any]:
    """Lists, sets and dicts that forward hooks can write to through their closure."""
    boxes = []
    for module in model.modules():
        for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]:
            for cell in getattr(hook, "__closure__", None) or ():
                with contextlib.suppress(ValueError):  # an empty cell
                    if isinstance(cell.cell_contents, (list, set, dict)):
                        boxes.append(cell.cell_contents)
    return boxes
