"""Models that cannot be resized, whatever their forward pass is: refused before any trace, with the way out."""

import torch
from torch import Tensor, nn

from npn._utils.models import model_tensors
from npn._utils.shards import is_shard
from npn.errors import TraceError

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)
_SHARDED = "attach the whole model, then fully_shard it: npn.distributed.shard(plastic, model.blocks)"
_FIRST = "Attach, train and export the plain model first, then quantize or convert what plastic.export() returns"
_WRAPPERS = {  # class -> (what has wrapped the model, attribute that holds it, what to do afterwards)
    "OptimizedModule": ("torch.compile", "_orig_mod", "compile it afterwards"),
    "DistributedDataParallel": ("DistributedDataParallel", "module", "wrap it afterwards: npn.distributed.wrap"),
    "DataParallel": ("DataParallel", "module", "train in one process for each device: npn.distributed.wrap"),
    "FullyShardedDataParallel": ("FullyShardedDataParallel", "", _SHARDED),
    "ScriptModule": ("torch.jit", "", "attach the Python model, and script what plastic.export() returns"),
}


def check_model(model: nn.Module) -> None:
    """Raise unless a model is plain: not wrapped, lazy, sharded or quantized.

    Args:
        model: any module.

    Raises:
        TraceError: naming the wrapper, the layer or the weight, and what to attach instead.
    """
    for path, module in model.named_modules():
        _check_wrapper(path, module)
        _check_quantization(path, module)
    check_sized(model)
    for name, tensor in model_tensors(model).items():
        if tensor.is_meta:
            raise TraceError(
                f"{name} is on the meta device, where nothing has a value; give it one first, as "
                'model.to_empty(device="cpu") and loading its weights do'
            )
        if is_shard(tensor):
            raise TraceError(
                f"{name} is split over processes already, which cannot be traced; {_SHARDED}. Tensor parallelism is "
                "not supported"
            )
        if not _is_plain(tensor):
            kind = type(tensor).__name__
            raise TraceError(
                f"{name} is a {f'quantized {kind}' if tensor.is_quantized else kind}, expected a plain torch.Tensor: "
                "weights that are sharded, quantized or of a class with operations of its own cannot be resized. "
                f"{_FIRST}"
            )


def check_sized(model: nn.Module) -> None:
    """Raise if a parameter or buffer has no size yet, as in lazy modules before their first call.

    Args:
        model: any module.

    Raises:
        TraceError: naming the tensor, and what to do.
    """
    for name, tensor in model_tensors(model).items():
        if torch.nn.parameter.is_lazy(tensor):
            raise TraceError(f"{name} has no size before the first call of its module; call model(...) once before")


def _check_wrapper(path: str, module: nn.Module) -> None:
    """Raise if a module is the wrapper of another one."""
    for base in type(module).__mro__:
        if base.__name__ not in _WRAPPERS or not base.__module__.startswith("torch."):
            continue
        if path and base.__name__ in ("DataParallel", "ScriptModule"):  # as parts they can be traced
            continue
        wrapper, attribute, then = _WRAPPERS[base.__name__]
        who = f"the part {path!r} of the model is" if path else "the model is"
        inner = ".".join(("model", *filter(None, (path, attribute))))
        if not attribute:
            instead = then
        elif path:
            instead = f"replace that part by the one inside, {inner}, and {then}"
        else:
            instead = f"attach the model inside, npn.attach({inner}, ...), and {then}"
        raise TraceError(f"{who} wrapped by {wrapper}; {instead}")


def _check_quantization(path: str, module: nn.Module) -> None:
    """Raise if a module quantizes its input, or has quantized weights."""
    classes = [(base.__module__, base.__name__) for base in type(module).__mro__]
    prepared = any(name in ("FakeQuantizeBase", "ObserverBase") for _, name in classes)
    if prepared or any(where.startswith("torch.ao.nn.quantized") for where, _ in classes):
        state, kind = ("prepared for quantization", "") if prepared else ("quantized", "quantized ")
        what = f"{path or 'it'} is a {kind}{type(module).__name__}"
        raise TraceError(f"the model is {state}: {what}, which cannot be resized. {_FIRST}")


def _is_plain(tensor: Tensor) -> bool:
    """Whether a parameter or buffer is an ordinary tensor; a subclass is one if it changes no operation."""
    kind = type(tensor)
    if kind in _PLAIN or tensor.is_quantized:
        return not tensor.is_quantized
    own = {name for base in kind.__mro__ if base not in (*_PLAIN, *Tensor.__mro__) for name in vars(base)}
    return tensor.is_floating_point() and not own & {"__torch_dispatch__", "__torch_function__"}
