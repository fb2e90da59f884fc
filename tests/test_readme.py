"""The README's code runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import npn

README = Path(__file__).parents[1] / "README.md"
LOAD = 'npn.load("run.npn", plastic, schedule=schedule, growth=growth)'


@pytest.fixture
def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_loops_train_and_export_a_plain_model(blocks: list[str]) -> None:
    loop, _, several = blocks
    model, x, y = two_classes()
    # a price high enough for units to go within the few steps of this test
    loop = loop.replace("weight=1e-6", "weight=1e-2")
    scope: dict[str, Any] = {
        "model": model,
        "example_inputs": x[:2],
        "loader": list(zip(x.split(32), y.split(32), strict=True)),
    }
    run(loop, scope)
    small = scope["small"]
    assert type(small) is nn.Sequential
    assert 1 <= small[0].out_features < 12
    assert small[0].weight.shape == (small[0].out_features, 4)
    assert (small(x).argmax(1) == y).float().mean() > 0.9
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x))
    run(several, {**scope, "x": x, "y": y})
    assert type(scope["plastic"].export()) is nn.Sequential


def test_a_model_grows_and_goes_on_from_its_checkpoint(
    blocks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ends = []
    for epochs, resumed in ((6, False), (3, False), (6, True)):
        model, x, y = two_classes()
        plastic = npn.attach(model, x[:2], penalty=npn.Penalty(weight=1e-4))
        optimizer = torch.optim.Adam([{"params": plastic.weights()}, {"params": plastic.logits(), "lr": 1e-2}], lr=1e-2)
        plastic.track(optimizer)
        schedule = npn.Schedule(npn.Stage("plastic", 6, k=7.0))

        def train_an_epoch() -> None:
            for _ in range(4):
                optimizer.zero_grad()  # noqa: B023
                plastic.backward(lambda: F.cross_entropy(model(x), y))  # noqa: B023
                optimizer.step()  # noqa: B023

        def validation_loss() -> Any:
            with torch.no_grad():
                return F.cross_entropy(model(x), y)  # noqa: B023

        scope = {
            **{"npn": npn, "schedule": schedule, "plastic": plastic},
            **{"train_an_epoch": train_an_epoch, "validation_loss": validation_loss},
        }
        code = blocks[1]
        if resumed:
            code = code.replace(
                "for epoch", 'npn.load("run.npn", plastic, schedule=schedule, growth=growth)\nfor epoch'
            )
        elif epochs < 6:
            code += "    if epoch == 2: break\n"
        run(code, scope)
        assert plastic.sizes()["0"] > 12
        ends.append([tensor.detach().clone() for tensor in (*plastic.weights(), *plastic.logits())])
    whole, part, resumed_end = ends
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed_end, strict=True))
    assert part[0].shape != whole[0].shape


def test_how_to_go_on_is_what_the_readme_says() -> None:
    assert f"`{LOAD}`" in README.read_text(encoding="utf-8")


def two_classes() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 2))
    x = torch.randn(64, 4)
    return model, x, (x[:, 0] > 0).long()


def run(code: str, scope: dict[str, Any]) -> None:
    exec(compile(code, str(README), "exec"), scope)


def test_what_the_readme_points_to_exists() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert local
    assert [target for target in local if not (README.parent / target).exists()] == []
