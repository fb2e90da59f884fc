"""The tensors of a module, and its mode."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def sharing_memory(model: nn.Module) -> dict[str, str]:
    """Parameters and buffers that lie in the memory of another parameter, as `b.data = a.data` makes them.

    Args:
        model: any module.

    Returns:
        Name -> name of another tensor in the same place.
    """
    places: dict[int, list[str]] = {}
    tensors = model_tensors(model)
    for name, tensor in tensors.items():
        with contextlib.suppress(RuntimeError, NotImplementedError):  # of tensors without memory
            if tensor.numel() and tensor.data_ptr():
                places.setdefault(tensor.data_ptr(), []).append(name)
    tied = [names for names in places.values() if any(isinstance(tensors[name], nn.Parameter) for name in names)]
    return {name: names[i - 1] for names in tied if len(names) > 1 for i, name in enumerate(names)}


def is_torch_layer(module: nn.Module) -> bool:
    """Whether a module is of a class of `torch.nn` itself.

    Args:
        module: any.
    """
    return type(module).__module__.startswith("torch.nn.modules")


def evaluating(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Set eval mode inside the context; restore every module's own mode when it ends.

    Args:
        model: any module.
    """
    return in_mode(model, False)


def home_of(name: str) -> tuple[str, str]:
    """Path of the module that a tensor belongs to, and the tensor's name in it, seen through parametrizations.

    Args:
        name: of a parameter or buffer.

    Example:
        >>> home_of("fc.bias"), home_of("fc.parametrizations.weight.original")
        (('fc', 'bias'), ('fc', 'weight'))
    """
    path, _, leaf = name.rpartition(".")
    if ".parametrizations." in f".{path}.":
        path, _, leaf = path.rpartition("parametrizations.")
    return path.rstrip("."), leaf


@contextlib.contextmanager
def in_mode(model: nn.Module, training: bool | None) -> Iterator[None]:
    """Set train or eval mode inside the context; restore every module's own mode when it ends.

    Args:
        model: any module.
        training: True for train mode, False for eval mode, None to leave the modes as they are.
    """
    modes = [(module, module.training) for module in model.modules()]
    if training is not None:
        model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
