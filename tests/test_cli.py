"""The `npn` command: what it prints, what it leaves behind, and what it says when something is wrong."""

import json

import pytest
import torch
from typer.testing import CliRunner

import npn
from npn.cli import app

SHORT = ["run", "moons", "--epochs", "2,3,2", "--seed", "1"]


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "moons"
    result = call(*SHORT, "--out", out)
    assert result.exit_code == 0, result.output
    return out, result.output


def test_version_and_help():
    assert call("--version").output == f"npn {npn.__version__}\n"
    text = call("--help").output
    assert all(name in text for name in ("inspect", "export", "run", "bench"))


def test_a_run_leaves_its_result_its_model_and_its_pictures(finished):
    out, text = finished
    names = {file.name for file in out.iterdir()}
    pictures = {"boundary.png", "curves.png", "gates.png"}
    assert pictures | {"result.json", "metrics.jsonl", "model.pt", "options.json"} <= names
    assert "checkpoint.pt" not in names
    result = json.loads((out / "result.json").read_text())
    assert [entry["stage"] for entry in result["stages"]] == ["pretrain", "plastic", "finetune"]
    for key in ("accuracy", "params", "macs", "architecture", "seconds", "command", "versions", "machine"):
        assert key in result
    assert all({"accuracy", "params", "architecture"} <= set(entry) for entry in result["stages"])
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 7
    assert result["versions"]["torch"] == torch.__version__
    assert result["architecture"] in text


def test_a_finished_run_is_not_run_again(finished):
    out, _ = finished
    before = (out / "result.json").read_text()
    again = call(*SHORT, "--out", out, "--resume")
    assert again.exit_code == 0 and "finished already" in again.output
    assert (out / "result.json").read_text() == before


@pytest.mark.parametrize("format", ["pt2", "safetensors", "onnx"])
def test_export_of_a_run(finished, format):
    out, _ = finished
    result = call("export", out, "--format", format)
    assert result.exit_code == 0, result.output
    assert (out / f"model.{format}").stat().st_size > 0


def test_export_says_where_no_run_is(tmp_path):
    result = call("export", tmp_path)
    assert result.exit_code == 1
    assert f"there is no finished run in {tmp_path}" in result.output.replace("\n", "")


MODEL = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))

words = nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 3))
number = 3
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_models", raising=False)


def test_inspect_as_table_and_as_json(models):
    table = call("inspect", "my_models:net", "--input", "1,3,8,8")
    assert table.exit_code == 0, table.output
    assert "3.weight[1]" in table.output and "it is the model's output" in table.output
    found = json.loads(call("inspect", "my_models:net", "--input", "1,3,8,8", "--json").output)
    (row,) = found["groups"]
    assert (row["name"], row["units"], row["params"]) == ("0", 8, 8 * 27 + 8 + 4 * 8 * 36)
    words = json.loads(call("inspect", "my_models:words", "--input", "2,5:long", "--json").output)
    assert words["groups"][0]["units"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["my_models", "--input", "1"],
            "expected MODULE:FACTORY, for example my_package.models:resnet20, got 'my_models'",
        ),
        (["my_models:missing", "--input", "1"], "cannot find 'my_models:missing'"),
        (["nowhere:net", "--input", "1"], "cannot find 'nowhere:net': No module named 'nowhere'"),
        (["my_models:number", "--input", "1"], "my_models:number is a int, expected a torch.nn.Module"),
        (["my_models:net", "--input", "1,x"], 'expected an input like "2,3,32,32" or "2,16:long", got \'1,x\''),
        (["my_models:net", "--input", "1,3,8,8", "--only", "zz"], "pattern 'zz' matches no group; the model has: 0"),
    ],
)
def test_inspect_explains_what_is_wrong(models, arguments, message):
    result = call("inspect", *arguments)
    assert result.exit_code == 1
    assert message in result.output.replace("\n", " ")


def test_settings_that_cannot_be(tmp_path):
    for arguments, message in (
        (["--mode", "shrink"], "mode must be one of 'sparsify', 'expand', got 'shrink'"),
        (["--penalty", "1e-3", "--budget", "50"], "give a penalty or a budget, not both"),
        (["--epochs", "3"], None),
    ):
        result = call("run", "moons", "--out", tmp_path / "x", *arguments)
        assert (result.exit_code == 0) == (message is None), result.output
        assert message is None or message in result.output.replace("\n", " ")
