"""A program that sets `torch.set_default_dtype(torch.float64)`: gates and scores stay in float32."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn
from npn.methods import BetaBernoulli, DependentBetaBernoulli, HardConcrete, LpSphere, RigL, Slimming, TargetedDropout


@pytest.fixture(params=[torch.float32, torch.float64], ids=str, autouse=True)
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Dtype of the model."""
    torch.set_default_dtype(torch.float64)
    yield request.param
    torch.set_default_dtype(torch.float32)


def attached(dtype: torch.dtype, **options: Any) -> tuple[npn.Plasticity, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)).to(dtype)
    x = torch.randn(16, 6, dtype=dtype)
    return npn.attach(model, x[:2], **options), x, torch.arange(16) % 3


@pytest.mark.parametrize(
    "options",
    [{}, {"estimator": "double_cv"}, {"estimator": "arm"}, {"unstructured": "*"}, {"masks": "example"}],
    ids=["default", "double_cv", "arm", "unstructured", "example"],
)
def test_steps_resizes_and_checkpoints(dtype: torch.dtype, options: dict[str, Any]) -> None:
    plastic, x, y = attached(dtype, penalty=npn.Budget("params", 0.5, steps=4), **options)
    optimizer = torch.optim.Adam([{"params": plastic.weights()}, {"params": plastic.logits()}], lr=1e-2)
    plastic.track(optimizer)
    plastic.k = 7.0
    reduction = "none" if "masks" in options else "mean"
    for _ in range(3):
        optimizer.zero_grad()
        plastic.backward(lambda: F.cross_entropy(plastic.model(x), y, reduction=reduction))
        optimizer.step()
    plastic.close("0", [1, 5])
    plastic.compact()
    plastic.grow({"0": 2}, grace=3, init="pair", warmup=2)
    optimizer.step()
    assert {logits.dtype for logits in plastic.logits()} == {torch.float32}
    again = attached(dtype, penalty=npn.Budget("params", 0.5, steps=4), **options)[0]
    again.track(torch.optim.Adam([{"params": again.weights()}, {"params": again.logits()}], lr=1e-2))
    with tempfile.TemporaryDirectory() as folder:
        npn.save(Path(folder, "run.npn"), plastic)
        npn.load(Path(folder, "run.npn"), again)
    torch.testing.assert_close(again.model.eval()(x), plastic.export().eval()(x))


def test_scores(dtype: torch.dtype) -> None:
    plastic, x, y = attached(dtype)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return F.cross_entropy(model(batch), y)

    for criterion in ("taylor", "fisher", "magnitude", "bn_scale", "random"):
        assert npn.importance(plastic, criterion, [x], loss, per="macs")["0"].dtype == torch.float32


@pytest.mark.parametrize("method", [HardConcrete, LpSphere, RigL, Slimming, TargetedDropout, DependentBetaBernoulli])
def test_methods(dtype: torch.dtype, method: type[Any]) -> None:
    plastic, x, y = attached(dtype, unstructured="*" if method is RigL else None)
    if method is DependentBetaBernoulli:
        BetaBernoulli(plastic, examples=16)
    decided = method(
        plastic,
        **{LpSphere: {"steps": 9}, RigL: {"until": 9}, DependentBetaBernoulli: {"examples": 16}}.get(method, {}),
    )
    decided.backward(lambda: F.cross_entropy(plastic.model(x), y))
    assert all(tensor.dtype == torch.float32 for tensor in decided.parameters())
    torch.testing.assert_close(plastic.export().eval()(x), plastic.model.eval()(x))
