"""What holds while a model is traced: plain kernels and functions, no gradients, and all put back afterwards."""

import contextlib
import gc
import logging
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from npn._utils.rng import devices_of, preserved_rng
from npn.tracing.capture.packed import padded_sequences
from npn.tracing.capture.patching import patched
from npn.tracing.capture.restoring import restoring
from npn.tracing.capture.tensor_methods import read_by_entry


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


_TRACING = threading.RLock()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, no other thread traces: some of what is switched for a trace belongs to the process."""
    with _TRACING:
        yield


def told_of_export() -> contextlib.AbstractContextManager[None]:
    """Inside, in this thread, code that asks takes no decision by the values of a tensor: it is told of an export."""
    return patched(torch.compiler, dict.fromkeys(("is_compiling", "is_exporting"), lambda before: True))


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


@contextlib.contextmanager
def no_gradients() -> Iterator[None]:
    """Inside, in this thread, what the forward pass asks of gradients is nothing: there are none in a trace."""
    asked: dict[str, Callable[..., Any]] = {
        "requires_grad_": lambda before, tensor, requires_grad=True: tensor,
        "retain_grad": lambda before, tensor: None,
        "register_hook": lambda before, tensor, hook: RemovableHandle(OrderedDict()),
    }
    with patched(Tensor, asked), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad=True")  # says a reentrant checkpoint
        yield


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
    distribution = torch.distributions.Distribution
    before = distribution._validate_args
    distribution.set_default_validate_args(False)
    lookup = {"_no_grad_embedding_renorm_": lambda before, *args: None}
    layers = {"_detect_is_causal_mask": lambda before, mask, is_causal=None, size=None: bool(is_causal)}
    try:
        with patched(F, lookup), patched(torch.nn.modules.transformer, layers):
            yield
    finally:
        distribution.set_default_validate_args(before)


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
    """Put back module attributes and what they hold, what hooks collected in closures, and every RNG.

    Inside, modules and functions that `torch.compile` was called on run as they are written.
    """
    put_back = restoring(model)
    try:
        with preserved_rng(devices_of(model)), _not_compiled():
            yield
    finally:
        put_back()


@contextlib.contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Inside, in this thread, the model's forward pass consists of elementary ops; all of it is put back afterwards.

    Args:
        model: to be run on tensors without values.
    """
    with alone(), preserved(model), plain_kernels(), told_of_export(), plain_functions(), no_gradients():
        average_at_once(model)
        yield


def _not_compiled() -> contextlib.AbstractContextManager[Any]:
    """The stance that runs compiled code as it is written; nothing is compiled before torch's compiler is imported."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Pause Python's search for cyclic garbage: a trace makes many objects, and half of its time would go there."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
