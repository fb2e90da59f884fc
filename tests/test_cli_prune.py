"""`npn prune`: what it prints, what it writes, and what it says when something is wrong."""

import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import npn
from npn.cli import app

MODEL = """
import torch
from torch import nn
from torch.nn import functional as F

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3))

def data():
    torch.manual_seed(1)
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(2)]
    return batches, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])

def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.LayerNorm(32), nn.Linear(32, 3))

def half():
    return net().bfloat16()

number = 3
"""


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output


@pytest.fixture
def models(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "my_nets.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_nets", raising=False)
    return tmp_path


def test_channels_under_a_norm_count_when_asked_for(models: Any) -> None:
    arguments = ["my_nets:normed", "--input", "2,6", "--json"]
    for options, widths in (([], []), (["--streams"], [32])):
        code, text = call("inspect", *arguments, *options)
        assert code == 0 and [row["units"] for row in json.loads(text)["groups"]] == widths
    code, text = call("prune", *arguments, "--target", "0.5", "--criterion", "magnitude", "--streams")
    assert code == 0 and json.loads(text)["groups"] == {"0": [32, 16]}


def test_inputs_without_a_type_have_that_of_the_model(models: Any) -> None:
    code, text = call("inspect", "my_nets:half", "--input", "2,6", "--json")
    assert code == 0 and len(json.loads(text)["groups"]) == 2
    code, text = call("inspect", "my_nets:half", "--input", "2,6:float")
    assert code == 1 and "error: the model cannot be called with --input 2,6:float" in text
    arguments = ("--input", "2,6", "--target", "0.5", "--criterion", "magnitude", "--out", "half.pt2")
    assert call("prune", "my_nets:half", *arguments)[0] == 0
    small = torch.export.load("half.pt2").module()
    assert small(torch.zeros(2, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_command_shows_and_writes_what_prune_returns(models: Any) -> None:
    arguments = ["prune", "my_nets:net", "--input", "2,6", "--target", "0.5", "--cost", "params"]
    code, text = call(*arguments, "--criterion", "taylor", "--batches", "my_nets:data", "--out", "small.pt2")
    assert code == 0, text
    scope: dict[str, Any] = {}
    exec(MODEL, scope)
    model, (batches, loss) = scope["net"](), scope["data"]()
    small = npn.prune(model, torch.zeros(2, 6), target=0.5, cost="params", batches=batches, loss=loss)
    x = torch.randn(5, 6)
    torch.testing.assert_close(torch.export.load("small.pt2").module()(x), small(x))
    first, second = small[0].out_features, small[2].out_features
    rows = {
        cells[0]: cells[1:] for line in text.splitlines() if len(cells := [c.strip() for c in line.split("│")[1:-1]])
    }
    assert rows["0"] == [
        f"30 -> {first}", f"{30 * 7 + 30 * 20} -> {first * 7 + first * second}",
        f"{2 * 30 * 26:,} -> {2 * first * (6 + second):,}",
    ]  # fmt: skip
    macs = f"{npn.count_macs(model, torch.zeros(2, 6)):,} -> {npn.count_macs(small, torch.zeros(2, 6)):,}"
    assert rows["whole model"] == ["", f"893 -> {npn.count_params(small)}", macs]
    assert f"small.pt2 ({(models / 'small.pt2').stat().st_size:,} bytes)" in text
    code, text = call(*arguments, "--format", "safetensors", "--json")
    found = json.loads(text)
    assert code == 0 and found["file"] == "pruned.safetensors" and found["format"] == "safetensors"
    assert found["bytes"] == (models / "pruned.safetensors").stat().st_size
    assert found["groups"].keys() == {"0", "2"} and found["groups"]["0"][0] == 30
    assert found["params"][0] == 893 and found["params"][1] <= 0.5 * 893 < 1000 < found["macs"][0]
    assert call(*arguments, "--format", "safetensors")[0] == 0 and (models / "pruned.safetensors").exists()
    code, text = call(*arguments, "--out", "again.safetensors", "--json")
    assert json.loads(text)["format"] == "safetensors"
    assert (models / "again.safetensors").read_bytes() == (models / "pruned.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--criterion", "taylor"],
            "--criterion taylor needs data: name a pair (batches, loss) with --batches MODULE:FACTORY, or choose "
            "one of magnitude, bn_scale, random",
        ),
        (
            ["--reconstruct"],
            "--reconstruct needs data: name a pair (batches, loss) with --batches MODULE:FACTORY, or l",
        ),
        (["--batches", "my_nets:number"], "my_nets:number is a int, expected a pair (batches, loss)"),
        (["--batches", "my_nets:none"], "cannot find 'my_nets:none'"),
        (["--format", "pickle"], "format must be one of 'onnx', 'pt2', 'safetensors', 'bitmap', 'csr', got 'pickle'"),
        (
            ["--format", "pt2", "--out", "pruned.onnx"],
            "is 'pt2', but pruned.onnx ends like a file of 'onnx'; leave out",
        ),
        (["--skip", "zz"], "pattern 'zz' matches no group; the model has: 0, 2"),
        (["--target", "0.001"], "target=0.001 asks for 2 MACs"),
    ],
)
def test_the_command_explains_what_is_wrong(models: Any, arguments: list[str], message: str) -> None:
    code, text = call("prune", "my_nets:net", "--input", "2,6", "--target", "0.5", *arguments)
    assert code == 1 and message in text.replace("\n", " ")
    assert not list(models.glob("pruned*"))
