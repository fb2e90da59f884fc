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
    """Write a model to a file; it runs in eval mode there, with a batch of any size where the code allows it.

    Args:
        model: plain, as `plastic.export()` returns it.
        example_inputs: one small batch.
        path: of the file.
        format: "onnx" (needs the extra `onnx`), "pt2" (`torch.export.load` reads it) or "safetensors" (weights only).

    Returns:
        The path.

    Raises:
        ConfigurationError: an unknown format, or its extra is not installed.
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
    """`torch.export` with a free batch size; with the example's own where the code fixes it."""
    args, kwargs = split_inputs(example_inputs)
    batch = torch.export.Dim.AUTO
    shapes = tree_map(lambda x: {0: batch} if isinstance(x, Tensor) and x.dim() else None, (args, kwargs))
    try:
        return torch.export.export(model, args, kwargs or None, dynamic_shapes=(*shapes[0], *shapes[1].values()))
    except Exception:  # the code computes with the batch size: a fixed one is what can be had
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
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"{', '.join(missing)} is not installed; pip install 'npn[onnx]'")


_WRITERS: dict[str, Callable[[nn.Module, Any, Path], None]] = {"onnx": _onnx, "pt2": _pt2, "safetensors": _safetensors}
