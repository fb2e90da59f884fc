"""The index-select before a layer with removed input columns: a hook during training, plain PyTorch after export."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from npn.errors import ConfigurationError

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_CONVOLUTIONS: dict[type[nn.Module], Any] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


class Select:
    """Forward pre-hook that selects columns of a layer's input.

    Args:
        index: int64 (columns,), positions to select.
        dim: dimension of the input that holds the columns.

    Attributes:
        index: the argument; moves to the device of the input.
        dim: the argument.
        aside: if True the hook does nothing, for tracing at full length.
    """

    def __init__(self, index: Tensor, dim: int) -> None:
        self.index, self.dim, self.aside = index, dim, False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Narrow the input among the layer's arguments."""
        if self.aside:
            return None
        x = args[0] if args else kwargs["input"]
        if self.index.device != x.device:
            self.index = self.index.to(x.device)
        x = x.index_select(self.dim, self.index)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "input": x})


def input_dim(module: nn.Module) -> int | None:
    """Find the dimension of a layer's input along which its weight columns lie.

    Args:
        module: any module.

    Returns:
        The dimension; None if the module's columns cannot have gates.
    """
    if type(module) is nn.Linear:
        return -1
    if type(module) in _CONVOLUTIONS and module.groups == 1 and module.padding_mode == "zeros":
        return 1
    return None


def hook_of(module: nn.Module) -> tuple[int, Select] | None:
    """Find a layer's `Select`.

    Args:
        module: any module.

    Returns:
        Its number among the forward pre-hooks, and the hook; None if there is none.
    """
    for number, hook in module._forward_pre_hooks.items():
        if isinstance(hook, Select):
            return number, hook
    return None


def set_select(module: nn.Module, index: Tensor | None) -> None:
    """Set the columns that a layer reads; replaces an earlier selection.

    Args:
        module: a linear or convolution layer.
        index: int64 (columns,), positions on the full input axis; None to read all.
    """
    found = hook_of(module)
    if found is not None:
        module._forward_pre_hooks.pop(found[0])
        module._forward_pre_hooks_with_kwargs.pop(found[0])
    if index is not None:
        dim = input_dim(module)
        assert dim is not None
        module.register_forward_pre_hook(Select(index, dim), with_kwargs=True)


@contextlib.contextmanager
def full_length(model: nn.Module) -> Iterator[None]:
    """Suspend all column selections, and other hooks with a flag `aside`, so that the model can be traced as it was.

    Args:
        model: any module.
    """
    every = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    hooks: list[Any] = [hook for hook in every if hasattr(hook, "aside")]
    for hook in hooks:
        hook.aside = True
    try:
        yield
    finally:
        for hook in hooks:
            hook.aside = False


def materialize_selects(model: nn.Module, chosen: Mapping[str, Tensor | None] | None = None) -> None:
    """Replace every layer that selects its inputs by one that does so without npn.

    The replacement is a `torch.fx.GraphModule` with the same parameters under the same names, and the buffer `columns`.

    Args:
        model: changed in place.
        chosen: path of a layer -> int64 (columns,), used instead of the layers' hooks.

    Raises:
        ConfigurationError: the model itself is such a layer, so there is no parent in which to replace it.
    """
    if chosen is None:
        hooks = {path: hook_of(module) for path, module in model.named_modules()}
        chosen = {path: found[1].index for path, found in hooks.items() if found is not None}
    for path, index in chosen.items():
        if index is None:
            continue
        if not path:
            raise ConfigurationError(
                "a model that is a single layer cannot select its own inputs; put it into nn.Sequential"
            )
        module = model.get_submodule(path)
        assert isinstance(module, nn.Linear | _ConvNd)
        set_select(module, None)
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _plain(module, index))


def _plain(module: nn.Linear | _ConvNd, index: Tensor) -> fx.GraphModule:
    """Make a graph module that narrows its input and applies the layer, with the layer's parameters and hooks."""
    dim = input_dim(module)
    assert dim is not None
    root = nn.Module()
    root.register_buffer("columns", index.to(module.weight.device))
    for name, parameter in module.named_parameters(recurse=False):
        root.register_parameter(name, parameter)
    graph = fx.Graph()
    narrow = graph.call_function(torch.index_select, (graph.placeholder("input"), dim, graph.get_attr("columns")))
    weight, bias = (graph.get_attr(n) if getattr(module, n) is not None else None for n in ("weight", "bias"))
    if isinstance(module, nn.Linear):
        graph.output(graph.call_function(F.linear, (narrow, weight, bias)))
    else:
        options: Any = (module.stride, module.padding, module.dilation)
        graph.output(graph.call_function(_CONVOLUTIONS[type(module)], (narrow, weight, bias, *options)))
    plain = fx.GraphModule(root, graph)
    plain.train(module.training)
    for kind in HOOKS:
        setattr(plain, kind, getattr(module, kind))
    return plain
