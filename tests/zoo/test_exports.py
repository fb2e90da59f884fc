"""Every compact model of the zoo leaves: as ONNX, as an export archive, as a TorchScript trace, as a plain checkpoint."""

import contextlib
import copy
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import npn
from npn import export
from npn._utils.inputs import output_tensors, split_inputs
from npn.export import write_model

from .test_zoo import ZOO, attached


class Answers(nn.Module):
    """A model's tensors as a tuple, of positional inputs: TorchScript knows no other containers."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        plain = len(values) - len(self.names)
        named = dict(zip(self.names, values[plain:], strict=True))
        return tuple(output_tensors(self.model(*values[:plain], **named)))


@functools.cache
def compact(name: str) -> tuple[nn.Module, Any]:
    """Half of every group closed and gone; made once, and no format changes it."""
    plastic, inputs = attached(name)
    plastic = copy.deepcopy(plastic)
    for group in plastic.groups:
        plastic.close(group, range(0, group.size - 1, 2))
    model = plastic.export().eval()
    if hasattr(model, "config"):
        model.config.use_cache = False  # a decoding cache is not the model's answer, and no format holds one
    return model, inputs


@functools.cache
def program(name: str) -> torch.export.ExportedProgram:
    """What both formats that begin with `torch.export` begin with."""
    model, inputs = compact(name)
    return export.exported(model, inputs)


@pytest.fixture
def exported_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = program(name)
    monkeypatch.setattr(export, "exported", lambda model, inputs: found)


@pytest.fixture(scope="session")
def torchlib_once() -> Iterator[None]:
    """The exporter to ONNX reads its library of operators for the first model alone, a third of its time."""
    patch = pytest.MonkeyPatch()
    with contextlib.suppress(ImportError):  # it is private there, and only speed needs it
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
    yield
    patch.undo()


def run(model: Any, inputs: Any) -> list[Tensor]:
    args, kwargs = split_inputs(inputs)
    with torch.no_grad():
        return output_tensors(model(*args, **kwargs))


def alike(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("name", ZOO)
def test_torch_export_and_checkpoint(name: str, tmp_path: Path) -> None:
    model, inputs = compact(name)
    expected = run(model, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.export.load(write_model(model, inputs, tmp_path / "model.pt2", "pt2")).module()
        alike(run(loaded, inputs), expected)
    npn.save(tmp_path / "model.npn", model)
    alike(run(npn.load(tmp_path / "model.npn", ZOO[name].make()).eval(), inputs), expected)


@pytest.mark.parametrize("name", ZOO)
def test_torchscript_trace(name: str) -> None:
    model, inputs = compact(name)
    args, kwargs = split_inputs(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = (*args, *kwargs.values())
        traced = torch.jit.trace(Answers(model, list(kwargs)), given, check_trace=False, strict=False)
        alike(run(traced, given), run(model, inputs))


@pytest.mark.usefixtures("exported_once", "torchlib_once")
@pytest.mark.parametrize("name", ZOO)
def test_onnx(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model, inputs = compact(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_model(model, inputs, tmp_path / "model.onnx", "onnx")
    session = runtime.InferenceSession(str(path))
    args, kwargs = split_inputs(inputs)
    given = [*args, *kwargs.values()]
    feed = {slot.name: x.numpy() for slot, x in zip(session.get_inputs(), given, strict=True)}
    alike([torch.from_numpy(out) for out in session.run(None, feed)], run(model, inputs))
