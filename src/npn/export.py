"""Write a plain model for use elsewhere: ONNX, PyTorch's export archive, safetensors; or small, where it has zeros."""

import contextlib
import inspect
import json
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

from npn._utils.files import why_not_writable, write_atomically
from npn._utils.inputs import split_inputs
from npn._utils.models import evaluating
from npn._utils.validation import instance
from npn.checkpoint import save
from npn.errors import CheckpointError, ConfigurationError, PlasticityError
from npn.gates.weight_gates import packed, unpacked
from npn.masking.calls import has_closed_units
from npn.sparse import to_csr
from npn.tracing.capture.environment import quiet
from npn.tracing.capture.warming import outputs_of

FORMATS = ("onnx", "pt2", "safetensors", "bitmap", "csr")
WITHOUT_INPUTS = ("safetensors", "bitmap")
ENDINGS = {  # what a path ends in -> what is in the file
    ".bitmap.safetensors": ("bitmap",),
    ".csr.pt": ("csr",),
    ".safetensors": ("safetensors", "bitmap"),
    ".onnx": ("onnx",),
    ".pt2": ("pt2",),
}
CLOSED = "units of the model are closed, which its weights do not tell; write plastic.export() in its place"
BITMAP = "npn bitmap 1"  # marks the files of `_bitmap`


def write_model(model: nn.Module, example_inputs: Any, path: str | os.PathLike[str], format: str | None = None) -> Path:
    """Write a model to a file, in eval mode and with a free batch size if the code allows it.

    Args:
        model: plain model, such as the result of `plastic.export()`.
        example_inputs: one small batch.
        path: path of the file; missing folders are created.
        format: "onnx" (needs the extra `onnx`; outputs in dicts are named by the keys), "pt2" (`torch.export.load`
            reads it), "safetensors" (weights only), "bitmap" (safetensors with one bit per weight and the weights that
            are not zero; `read_bitmap` reads it) or "csr" (linear layers sparse where that is faster, see
            `npn.sparse.to_csr`; `npn.load` reads it). None for what the path's ending says, one of `ENDINGS`.

    Returns:
        The path.

    Raises:
        ConfigurationError: the format is unknown, is not that of the path's ending, its extra is not installed, units
            of the model are closed, it cannot be called with the example, or there can be no file at the path.
    """
    instance("model", model, nn.Module, "a torch.nn.Module (of a handle, plastic.export())")
    format = chosen_format(path, format)
    if has_closed_units(model):
        raise ConfigurationError(CLOSED)
    path = Path(path)
    if reason := why_not_writable(path):
        raise ConfigurationError(reason)
    with evaluating(model):
        if format not in WITHOUT_INPUTS:
            _check_call(model, example_inputs)
        path.parent.mkdir(parents=True, exist_ok=True)
        _WRITERS[format](model, example_inputs, path)
    return path


def chosen_format(path: str | os.PathLike[str] | None, format: str | None, default: str | None = None) -> str:
    """The format of a file: the one that is asked for, else what the ending of its path says, else a default.

    Args:
        path: of the file; None if its name is not chosen yet.
        format: what is asked for, if anything is.
        default: where neither says it; None if that is an error.

    Returns:
        One of `FORMATS`, of which what it needs is installed.

    Raises:
        ConfigurationError: the format is unknown, not said or not that of the path's ending, or its extra is not
            installed.

    Example:
        >>> chosen_format("small.pt2", None), chosen_format("small", "pt2")
        ('pt2', 'pt2')
    """
    name = "" if path is None else Path(path).name
    told = next((formats for ending, formats in ENDINGS.items() if name.lower().endswith(ending)), ())
    chosen = format or next(iter(told), default)
    if chosen is None:
        raise ConfigurationError(
            f"the format of {name} is not known; give format= as one of {', '.join(map(repr, FORMATS))}, or a path "
            f"that ends in one of {', '.join(ENDINGS)}"
        )
    check_format(chosen)
    if told and chosen not in told:
        raise ConfigurationError(
            f"the format is {chosen!r}, but {name} ends like a file of {told[0]!r}; leave out the format or choose "
            "another name"
        )
    return chosen


def check_format(format: str) -> None:
    """Raise unless `write_model` knows the format and what it needs is installed.

    Raises:
        ConfigurationError: naming the formats that it knows, or what to install.
    """
    if format not in FORMATS:
        raise ConfigurationError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {format!r}")
    _need(*_NEEDS.get(format, ()))


def exported(model: nn.Module, example_inputs: Any) -> torch.export.ExportedProgram:
    """Run `torch.export` with a free batch size, or with that of the example if the code fixes it.

    PyTorch takes a size of 1 as fixed, so that an example of one row is repeated where the model allows it.

    Args:
        model: plain model, in eval mode.
        example_inputs: one small batch.

    Returns:
        The exported program.
    """
    rows = tree_map(lambda x: len(x) if isinstance(x, Tensor) and x.dim() else None, split_inputs(example_inputs))
    with quiet():  # the attempts may fail
        if 1 in tree_leaves(rows):
            with contextlib.suppress(Exception):
                return _from_two_rows(model, example_inputs)
        with contextlib.suppress(Exception):  # the code computes with the batch size, so it has to be fixed
            return _of_any_batch(model, example_inputs)
    args, kwargs = split_inputs(example_inputs)
    return torch.export.export(model, args, kwargs or None)


def _of_any_batch(model: nn.Module, example_inputs: Any) -> torch.export.ExportedProgram:
    args, kwargs = split_inputs(example_inputs)
    batch = torch.export.Dim.AUTO
    shapes = tree_map(lambda x: {0: batch} if isinstance(x, Tensor) and x.dim() else None, (args, kwargs))
    by_name = inspect.signature(model.forward).bind(*shapes[0], **shapes[1]).arguments  # in the order of the signature
    return torch.export.export(model, args, kwargs or None, dynamic_shapes=by_name)


def _from_two_rows(model: nn.Module, example_inputs: Any) -> torch.export.ExportedProgram:
    """`_of_any_batch` with each tensor of one row repeated; raises unless what comes out fits the one row as well."""

    def repeated(x: Any) -> Any:
        return torch.cat([x, x]) if isinstance(x, Tensor) and x.dim() and len(x) == 1 else x

    inputs = tree_map(repeated, example_inputs)
    outputs_of(model, inputs)  # quicker to fail than an export
    program = _of_any_batch(model, inputs)
    found, wanted = outputs_of(program.module(), example_inputs), outputs_of(model, example_inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4, equal_nan=True)
    return program


def _check_call(model: nn.Module, example_inputs: Any) -> None:
    """Raise `ConfigurationError` if the model cannot be called with the example; exporters say it at length."""
    try:
        outputs_of(model, example_inputs)
    except PlasticityError:
        raise
    except Exception as error:
        shapes = [str(tuple(x.shape)) for x in tree_leaves(example_inputs) if isinstance(x, Tensor)]
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigurationError(
            f"the model cannot be called with the example inputs, of shape {', '.join(shapes)}: {reason}; give one "
            "small batch as its forward takes it. Nothing was written"
        ) from error


def _onnx(model: nn.Module, example_inputs: Any, path: Path) -> None:
    plain = exported(model, example_inputs)
    program = torch.onnx.export(plain, dynamo=True, verbose=False, output_names=_output_names(plain))
    assert program is not None
    program.save(str(path))


def _output_names(program: torch.export.ExportedProgram) -> list[str] | None:
    """Names of the outputs by the keys of the dicts that hold them; None for names that ONNX makes up."""
    outputs = [name for name in program.graph_signature.user_outputs if name is not None]
    with contextlib.suppress(Exception):  # a user's class of outputs need not take names in place of tensors
        named = _named(tree_unflatten(program.graph_signature.user_outputs, program.call_spec.out_spec))
        taken = {node.name for node in program.graph.nodes} - {*outputs}
        return named if all(named) and len({*named} - taken) == len(outputs) else None
    return None


def _named(output: Any, name: str = "") -> list[str]:
    if isinstance(output, Mapping):
        return [leaf for key, each in output.items() for leaf in _named(each, f"{name}_{key}" if name else str(key))]
    if isinstance(output, (tuple, list)):
        return [leaf for i, each in enumerate(output) for leaf in _named(each, f"{name}_{i}" if name else "")]
    return [] if output is None else [name]


def _pt2(model: nn.Module, example_inputs: Any, path: Path) -> None:
    program = exported(model, example_inputs)
    write_atomically(path, lambda file: torch.export.save(program, file))  # of a path with another ending, torch warns


def _safetensors(model: nn.Module, example_inputs: Any, path: Path) -> None:
    from safetensors.torch import save_model

    save_model(model, str(path))


def _bitmap(model: nn.Module, example_inputs: Any, path: Path) -> None:
    from safetensors.torch import save_file

    tensors, shapes = dict[str, Tensor](), dict[str, list[int]]()
    for name, value in model.state_dict().items():
        there = value != 0
        size = there.numel() * value.element_size()
        if -(-there.numel() // 8) + int(there.sum()) * value.element_size() < size:
            tensors[f"{name}.bitmap"], tensors[f"{name}.values"] = packed(there), value[there].cpu()
            shapes[name] = list(value.shape)
        else:
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    save_file(tensors, path, {"format": BITMAP, "shapes": json.dumps(shapes)})


def read_bitmap(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a file that `write_model` wrote in the format "bitmap".

    Args:
        path: of the file.

    Returns:
        What `model.state_dict()` was.

    Raises:
        CheckpointError: the file was written otherwise.
    """
    _need("safetensors")
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as a bitmap file of npn: {error}") from error
    with opened as file:
        about = file.metadata() or {}
        if about.get("format") != BITMAP:
            raise CheckpointError(f"{path} is no bitmap file of npn: write it with npn export --format bitmap")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    for name, shape in json.loads(about["shapes"]).items():
        there, values = unpacked(tensors.pop(f"{name}.bitmap"), shape), tensors.pop(f"{name}.values")
        tensors[name] = values.new_zeros(shape)
        tensors[name][there] = values
    return tensors


def _csr(model: nn.Module, example_inputs: Any, path: Path) -> None:
    save(path, to_csr(model, example_inputs)[0])


def _need(*modules: str) -> None:
    """Raise if a module is not installed."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        install = "safetensors" if missing == ["safetensors"] else "'npn[onnx]'"
        are = "is" if len(missing) == 1 else "are"
        raise ConfigurationError(f"{' and '.join(missing)} {are} not installed; pip install {install}")


_NEEDS = {"onnx": ("onnx", "onnxscript"), "safetensors": ("safetensors",), "bitmap": ("safetensors",)}
_WRITERS: dict[str, Callable[[nn.Module, Any, Path], None]] = {
    "onnx": _onnx,
    "pt2": _pt2,
    "safetensors": _safetensors,
    "bitmap": _bitmap,
    "csr": _csr,
}
