"""A program that sets `torch.set_default_device("cuda")`: bookkeeping stays on the CPU, weights where they are.

There need be no such device here: every tensor that npn makes names its device, and "meta" as default changes nothing.
"""

import ast
import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._device import _device_constructors

import npn

PACKAGE = Path(npn.__file__).parent
FACTORIES = {function.__name__ for function in _device_constructors()}
LIBRARY = [file for file in PACKAGE.rglob("*.py") if not {"experiments", "cli"} & set(file.relative_to(PACKAGE).parts)]


def unnamed(source: str) -> Iterator[int]:
    """Lines on which a factory of torch is called without a device."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES:
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            if of_torch and not any(keyword.arg in ("device", None) for keyword in node.keywords):
                yield node.lineno


def test_every_tensor_names_its_device() -> None:
    assert list(unnamed("x = torch.zeros(2)\ny = torch.zeros(2, device=d)\nz = x.new_zeros(2)")) == [1]
    found = [f"{file.relative_to(PACKAGE)}:{line}" for file in LIBRARY for line in unnamed(file.read_text())]
    assert len(LIBRARY) > 100 and not found, "use npn._utils.cpu, or name the device"


def small() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 8), nn.ReLU())
    return nn.Sequential(model, nn.Linear(8, 3)), torch.randn(12, 1, 6, 6), torch.arange(12) % 3


def trained(default: str, file: Path, **options: Any) -> Tensor:
    """Answers of a model after steps, removal, growth, a checkpoint and the last cut under a default device."""
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 3))
    fresh, x, y = copy.deepcopy(model), torch.randn(12, 1, 6, 6), torch.arange(12) % 3
    plastic = npn.attach(model, x[:2], penalty=npn.Budget("params", 0.6, steps=4), **options)
    with torch.device(default):
        optimizer = torch.optim.Adam([{"params": plastic.weights()}, {"params": plastic.logits()}], lr=1e-2)
        plastic.track(optimizer)
        for k in (math.inf, 7.0, 7.0):
            plastic.k = k
            optimizer.zero_grad()
            plastic.backward(lambda: F.cross_entropy(model(x), y))
            optimizer.step()
        plastic.close("0.0", [1, 4])
        plastic.compact()
        plastic.grow({"0.0": 1, "2": 2}, init="pair", warmup=2)
        npn.importance(plastic, "fisher", [(x, y)], lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]))
        if not plastic.unstructured:
            npn.fit_to_budget(plastic)
        npn.save(file, plastic)
        return npn.load(file, fresh).eval()(x)


@pytest.mark.parametrize(
    "options",
    [{}, {"estimator": "double_cv"}, {"unstructured": "*"}],
    ids=["default", "double_cv", "unstructured"],
)
def test_a_default_device_changes_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    expected, found = (trained(device, tmp_path / f"{device}.npn", **options) for device in ("cpu", "meta"))
    assert torch.equal(expected, found)
