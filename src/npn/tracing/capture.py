"""Capture a model's ATen graph on fake tensors, at its own or at other parameter shapes, without touching the model."""

import contextlib
import logging
import math
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.hooks import RemovableHandle

from npn._utils.rng import devices_of, preserved_rng
from npn.errors import TraceError
from npn.tracing.deadline import Deadline
from npn.tracing.lines import record_lines
from npn.tracing.norm_calls import marking

_CACHES = ("past_key_values",)  # caches that are plain tuples are known by their name
_GRADIENTS = ("does not require grad", "backward() called inside")  # what PyTorch says of gradients in a trace
_COMPLEX = "does not support automatic differentiation for outputs with complex dtype"


@dataclass(frozen=True)
class Capture:
    """One traced forward pass.

    Attributes:
        module: the functional ATen graph; its first placeholders are the model's tensors.
        names: parameter and buffer names in placeholder order.
        outputs: shapes of the tensors that the model returned.
    """

    module: GraphModule
    names: tuple[str, ...]
    outputs: tuple[tuple[int, ...], ...]


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

    Args:
        model: any module; its mode, attributes, buffers and the RNG are as before afterwards.
        example_inputs: what `forward` takes, see `split_inputs`.
        shapes: other shapes for some parameters or buffers, by name (nothing is allocated).
        streams: whether nodes learn which call of a norm they belong to, see `norm_calls`.
        deadline: of the trace; None for none.

    Raises:
        TraceError: the forward pass depends on values, which a traced graph cannot follow, or the time is over.
    """
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

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fakes = [_fake(tensor, (shapes or {}).get(name)) for name, tensor in tensors.items()]
    fake_args, fake_kwargs = tree_map(lambda x: mode.from_tensor(x) if isinstance(x, Tensor) else x, (args, kwargs))
    graph = make_fx(
        torch.func.functionalize(call),
        tracing_mode="real",  # all inputs are fake already
        _disable_torch_fn_metadata_mode=True,  # what it notes of each call, nobody reads
    )
    contexts = (preserved(model), quiet(), _plain_kernels(), announced(), plain_functions(), no_gradients())
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
    return Capture(traced, names, tuple(outputs))


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
    args, kwargs = split_inputs(example_inputs)
    mode: Any = torch.device("meta") if meta else FakeTensorMode(allow_non_fake_inputs=True)
    inside: Callable[[Tensor], Tensor] = (lambda x: x.to("meta")) if meta else mode.from_tensor
    with mode:
        state = {
            name: _fake(tensor, shapes.get(name), mode if meta else None)
            for name, tensor in model_tensors(model).items()
        }
    args, kwargs = tree_map(lambda x: inside(x) if isinstance(x, Tensor) else x, (args, kwargs))
    with preserved(model), _plain_kernels(), announced(), plain_functions(), no_gradients(), torch.no_grad(), mode:
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


@contextlib.contextmanager
def _plain_kernels() -> Iterator[None]:
    """Kernels that decompose into elementary ops: no fused attention, recurrent layer or encoder layer."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            sdpa_kernel(SDPBackend.MATH),
            _without_mkldnn(),
            _without_decisions(),
            torch.backends.cudnn.flags(enabled=False),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


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
    instead: dict[str, Callable[..., Any]] = {
        "requires_grad_": lambda tensor, requires_grad=True: tensor,
        "retain_grad": lambda tensor: None,
        "register_hook": lambda tensor, hook: RemovableHandle(OrderedDict()),
    }
    thread = threading.get_ident()
    own = {name: vars(Tensor).get(name) for name in instead}

    def replacement(name: str) -> Callable[..., Any]:
        before: Callable[..., Any] = getattr(Tensor, name)
        return lambda *args, **kwargs: (instead[name] if threading.get_ident() == thread else before)(*args, **kwargs)

    for name in instead:
        setattr(Tensor, name, replacement(name))
    try:
        yield
    finally:
        for name, method in own.items():
            if method is None:  # inherited
                delattr(Tensor, name)
            else:
                setattr(Tensor, name, method)


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
