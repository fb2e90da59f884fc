"""Write a plain model in a format that other programs read: ONNX, PyTorch's export archive, safetensors."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from npn.errors import ConfigurationError
from npn.tracing.capture import split_inputs
from npn.tracing.single import evaluating

FORMATS = ("onnx", "pt2", "safetensors")


def write_model(model: nn.Module, example_inputs: Any, path: str | os.PathLike[str], format: str) -> Path:
    """Write a model to a file, in eval mode and with a free batch size if the code allows it.

    Args:
        model: plain model, such as the result of `plastic.export()`.
        example_inputs: one small batch.
        path: path of the file; missing folders are created.
        format: "onnx" (needs the extra `onnx`), "pt2" (`torch.export.load` reads it) or "safetensors" (weights only).

    Returns:
        The path.

    Raises:
        ConfigurationError: the format is unknown, or its extra is not installed.
    """
    check_format(format)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with evaluating(model):
        _WRITERS[format](model, example_inputs, path)
    return path


def check_format(format: str) -> None:
    """Raise unless `write_model` knows the format.

    Raises:
        ConfigurationError: naming those that it knows.
    """
    if format not in FORMATS:
        raise ConfigurationError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {format!r}")


def exported(model: nn.Module, example_inputs: Any) -> torch.export.ExportedProgram:
    """Run `torch.export` with a free batch size, or with that of the example if the code fixes it.

    Args:
        model: plain model.
        example_inputs: one small batch.

    Returns:
        The exported program.
    """
    args, kwargs = split_inputs(example_inputs)
    batch = torch.export.Dim.AUTO
    shapes = tree_map(lambda x: {0: batch} if isinstance(x, Tensor) and x.dim() else None, (args, kwargs))
    try:
        return torch.export.export(model, args, kwargs or None, dynamic_shapes=(*shapes[0], *shapes[1].values()))
    except Exception:  # the code computes with the batch size, so it has to be fixed
        return torch.export.export(model, args, kwargs or None)


def _onnx(model: nn.Module, example_inputs: Any, path: Path) -> None:
    _need("onnx", "onnxscript")
    args, kwargs = split_inputs(example_inputs)
    program = torch.onnx.export(
        exported(model, example_inputs), args, kwargs=kwargs or None, dynamo=True, verbose=False
    )
    assert program is not None
    program.save(str(path))


def _pt2(model: nn.Module, example_inputs: Any, path: Path) -> None:
    torch.export.save(exported(model, example_inputs), path)


def _safetensors(model: nn.Module, example_inputs: Any, path: Path) -> None:
    _need("safetensors")
    from safetensors.torch import save_model

    save_model(model, str(path))


def _need(*modules: str) -> None:
    """Raise if a module is not installed."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"{', '.join(missing)} is not installed; pip install 'npn[onnx]'")


_WRITERS: dict[str, Callable[[nn.Module, Any, Path], None]] = {"onnx": _onnx, "pt2": _pt2, "safetensors": _safetensors}
