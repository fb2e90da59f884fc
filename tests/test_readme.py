"""The README's code runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_loops_train_and_export_a_plain_model(blocks: list[str]) -> None:
    loop, several = blocks
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 2))
    x = torch.randn(64, 4)
    y = (x[:, 0] > 0).long()
    # a price high enough for units to go within the few steps of this test
    loop = loop.replace("weight=1e-6", "weight=1e-2")
    scope: dict[str, Any] = {
        "model": model,
        "example_inputs": x[:2],
        "loader": list(zip(x.split(32), y.split(32), strict=True)),
    }
    exec(compile(loop, str(README), "exec"), scope)
    small = scope["small"]
    assert type(small) is nn.Sequential
    assert 1 <= small[0].out_features < 12
    assert small[0].weight.shape == (small[0].out_features, 4)
    assert (small(x).argmax(1) == y).float().mean() > 0.9
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x))
    exec(compile(several, str(README), "exec"), {**scope, "x": x, "y": y})
    assert type(scope["plastic"].export()) is nn.Sequential


def test_what_the_readme_points_to_exists() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert local
    assert [target for target in local if not (README.parent / target).exists()] == []
