"""The `npn` command: what it prints, what it leaves behind, and what it says when something is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import npn
from npn.cli import app
from npn.experiments.engine import training
from npn.experiments.moons import recipe as moons

SHORT = ["run", "moons", "--epochs", "2,3,2", "--seed", "1"]


pytestmark = pytest.mark.usefixtures("traces_are_shared")


@pytest.fixture
def undrawn(monkeypatch):
    """Without pictures, which take most of a short run's time."""
    monkeypatch.setattr(moons, "EXPERIMENT", replace(moons.EXPERIMENT, draw=lambda *_: []))


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
    assert all(name in text for name in ("inspect", "export", "run", "bench", "report"))


def test_a_run_leaves_its_result_its_model_and_its_pictures(finished):
    out, text = finished
    names = {file.name for file in out.iterdir()}
    pictures = {"boundary.png", "curves.png", "gates.png", "report.html"}
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


def test_the_results_of_a_run_and_of_an_export_as_json(finished):
    """Stdout is one JSON object; what a person reads is on stderr."""
    out, _ = finished
    run = call(*SHORT, "--out", out, "--resume", "--json")
    found = json.loads(run.stdout)
    assert {key: found[key] for key in ("seed", "mode", "stages")} == {
        key: json.loads((out / "result.json").read_text())[key] for key in ("seed", "mode", "stages")
    }
    assert (
        str(out / "model.pt") in found["files"]
        and str(out / ".lock") not in found["files"]
        and "finished already" in run.stderr
    )
    exported = json.loads(call("export", out, "--format", "safetensors", "--json").stdout)
    file = out / "model.safetensors"
    assert exported == {"file": str(file), "format": "safetensors", "bytes": file.stat().st_size}
    same = call("export", out, "--out", out / "same.safetensors", "--json")
    assert json.loads(same.stdout)["format"] == "safetensors"
    assert (out / "same.safetensors").read_bytes() == file.read_bytes()
    (out / "same.safetensors").unlink()
    wrong = call("export", out, "--format", "onnx", "--out", out / "same.pt2")
    assert wrong.exit_code == 1 and "'onnx', but same.pt2 ends like a file of 'pt2'" in wrong.stderr
    csr = call("export", out, "--format", "csr", "--out", out / "c.pt", "--json")
    assert json.loads(csr.stdout)["layers"] == [] and "left dense" in csr.stderr
    file.unlink()
    (out / "c.pt").unlink()


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


def test_export_of_zeros_says_which_layers_are_sparse(tmp_path, monkeypatch):
    from npn.experiments import registry

    def net():
        return nn.Sequential(nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, 2))

    model = net()
    nn.init.zeros_(model[0].weight)
    monkeypatch.setattr(registry, "finished_model", lambda path: (model, torch.zeros(2, 100)))
    file, x = tmp_path / "new" / "a.pt", torch.randn(3, 100)
    result = call("export", tmp_path, "--format", "csr", "--batch", "8", "--out", file)
    assert result.exit_code == 0, result.output
    assert re.search(r"0: (sparse|dense) \(100\.0% zeros; 8 rows take \d+ us sparse, \d+ us dense\)", result.output)
    assert "under half of their weights are zero: 1" in result.output
    torch.testing.assert_close(npn.load(file, net())(x), model(x))
    assert call("export", tmp_path, "--format", "bitmap").exit_code == 0
    assert (tmp_path / "model.bitmap.safetensors").stat().st_size < 4 * 64 * 10


def test_export_says_where_no_run_is(tmp_path):
    result = call("export", tmp_path)
    assert result.exit_code == 1
    assert f"there is no finished run in {tmp_path}" in result.output.replace("\n", "")


MODEL = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))

def wide(width, *rest, depth=2, **more):
    return nn.Linear(width, depth)

def broken():
    raise ValueError("there is no file of weights")

class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.a, self.b = nn.Embedding(20, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, ids, mask=None):
        h = self.a(self.table(ids))
        return self.b(h if mask is None else h * mask[..., None])

class Batched(Masked):
    def forward(self, batch):
        return super().forward(batch["ids"], batch["mask"])

words = nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 3))
number = 3
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(MODEL)
    (tmp_path / "bad_models.py").write_text("half = 1 // 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_models", raising=False)


def test_inspect_as_table_and_as_json(models):
    table = call("inspect", "my_models:net", "--input", "1,3,8,8")
    assert table.exit_code == 0, table.output
    assert "3.weight[1]" in table.output and "it is the model's output" in table.output
    assert call("inspect", "my_models:net", "--input", "1,3,8,8", "--all").output.count("weight[") >= 2
    found = json.loads(call("inspect", "my_models:net", "--input", "1,3,8,8", "--json").output)
    (row,) = found["groups"]
    assert (row["name"], row["units"], row["params"]) == ("0", 8, 8 * 27 + 8 + 4 * 8 * 36)
    words = json.loads(call("inspect", "my_models:words", "--input", "2,5:long", "--json").output)
    assert words["groups"][0]["units"] == 6


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("Masked", ["ids:int:2,16", "mask:int:2,16"]),
        ("Masked", ["mask:2,16", "ids:2,16:long"]),
        ("Masked", ["2,16:long", "2,16"]),
        ("Batched", ["batch.ids:2,16:long", "batch.mask:2,16"]),
    ],
)
def test_inputs_by_position_by_name_and_in_a_dict(models, model, inputs):
    options = [part for text in inputs for part in ("--input", text)]
    result = call("inspect", f"my_models:{model}", *options, "--json")
    assert result.exit_code == 0, result.output
    assert [(g["name"], g["units"]) for g in json.loads(result.output)["groups"]] == [("table", 6), ("a", 5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["my_models", "--input", "1"],
            "expected MODULE:FACTORY, for example my_package.models:resnet20, got 'my_models'",
        ),
        (["my_models:missing", "--input", "1"], "cannot find 'my_models:missing'"),
        (
            ["bad_models:net", "--input", "1"],
            "error: importing bad_models failed at bad_models.py:1: ZeroDivisionError: integer division or modulo by "
            'zero; see it alone with python -c "import bad_models"',
        ),
        (["nowhere:net", "--input", "1"], "cannot find 'nowhere:net': No module named 'nowhere'"),
        (["my_models:number", "--input", "1"], "my_models:number is a int, expected a torch.nn.Module"),
        (
            ["my_models:net", "--input", "1,x"],
            'expected an input like "2,3,32,32" or "2,16:long", or with a name "ids:2,16:long", got \'1,x\'',
        ),
        (
            ["my_models:wide", "--input", "1,3"],
            "my_models:wide needs arguments: width; name a function that needs none, for example `def net(): return "
            "wide(width=...)` in a file of your own",
        ),
        (
            ["my_models:broken", "--input", "1,3"],
            "error: my_models:broken failed at my_models.py:11: ValueError: there is no file of weights; see it alone "
            'with python -c "import my_models; my_models.broken()"',
        ),
        (
            ["my_models:net", "--input", "1,1,8,8"],
            "the model cannot be called with --input 1,1,8,8: 0 is Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1)) and "
            "got (1, 1, 8, 8): Given groups=1, weight of size [8, 3, 3, 3], expected input[1, 1, 8, 8] to have 3 "
            "channels, but got 1 channels instead; give the shapes that forward(input) takes, with the batch first",
        ),
        (
            ["my_models:words", "--input", "2,5"],
            "0 is Embedding(20, 6) and got (2, 5): Expected tensor for argument #1 'indices' to have one of the "
            "following scalar types: Long, Int; but got torch.FloatTensor instead (while checking arguments for "
            'embedding); give what is looked up in a table as integers, "2,16:long", and everything else without a '
            "type",
        ),
        (
            ["my_models:net", "--input", "1,3,8,8", "--input", "2,3"],
            "the model cannot be called with --input 1,3,8,8 --input 2,3: Sequential.forward() takes 2 positional "
            "arguments but 3 were given; give one --input for each argument of forward(input), in this order or by "
            "name, as --input name:2,16",
        ),
        (
            ["my_models:Masked", "--input", "tokens:2,5:long"],
            "Masked.forward() got an unexpected keyword argument 'tokens'; give one --input for each argument of "
            "forward(ids, mask=None), in this order or by name, as --input name:2,16",
        ),
        (
            ["my_models:Masked", "--input", "2,5:long", "--input", "2,4"],
            "it fails at my_models.py:20: The size of tensor a (5) must match the size of tensor b (4) at "
            "non-singleton dimension 1; give the shapes that forward(ids, mask=None) takes, with the batch first",
        ),
        (
            ["my_models:Masked", "--input", "2,5:long", "--input", "mask:2,5"],
            "give each --input a name of its own, or none of them a name, got '2,5:long', 'mask:2,5'",
        ),
        (["my_models:net", "--input", "1,3,8,8", "--only", "zz"], "pattern 'zz' matches no group; the model has: 0"),
    ],
)
def test_inspect_explains_what_is_wrong(models, arguments, message):
    result = call("inspect", *arguments)
    assert result.exit_code == 1
    assert message in result.output.replace("\n", " ")


def test_settings_that_cannot_be(tmp_path, undrawn):
    for arguments, message in (
        (["--mode", "shrink"], "mode must be one of 'sparsify', 'expand', got 'shrink'"),
        (["--penalty", "1e-3", "--budget", "50"], "give a penalty or a budget, not both"),
        (["--epochs", "3"], None),
    ):
        result = call("run", "moons", "--out", tmp_path / "x", *arguments)
        assert (result.exit_code == 0) == (message is None), result.output
        assert message is None or message in result.output.replace("\n", " ")


def test_an_unfinished_run_is_neither_lost_nor_ignored(tmp_path, undrawn):
    out = tmp_path / "run"
    with mock.patch.object(training, "evaluate", interrupted_in(training.evaluate, call_number=5)):
        stopped = call(*SHORT, "--out", out)
    assert stopped.exit_code == 130
    assert f"npn run moons --resume --out {out}" in stopped.output.replace("\n", "")
    rows = len((out / "metrics.jsonl").read_text().splitlines())
    assert 0 < rows < 7
    refused = call(*SHORT, "--out", out)
    assert refused.exit_code == 1 and "--resume continues it" in refused.output.replace("\n", " ")
    other = call("run", "moons", "--seed", "2", "--out", out, "--resume")
    assert other.exit_code == 1 and "the run to resume has seed=1, got seed=2" in other.output.replace("\n", " ")
    assert len((out / "metrics.jsonl").read_text().splitlines()) == rows
    assert call("run", "moons", "--out", out, "--resume").exit_code == 0
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 7


def interrupted_in(function, call_number):
    """The function, but its n-th call comes with a Ctrl-C."""
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(args)
        if len(calls) == call_number:
            os.kill(os.getpid(), signal.SIGINT)
        return function(*args, **kwargs)

    return wrapped


def test_a_run_that_is_given_minutes_can_be_resumed(tmp_path, undrawn):
    out = tmp_path / "run"
    stopped = call(*SHORT, "--out", out, "--stop-after", "0.000001")
    assert stopped.exit_code == 130
    said = stopped.output.replace("\n", "")
    assert "Stopped: another epoch would not fit into 1e-06 minutes. Go on with: npn run moons --resume --out" in said
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1
    assert call("run", "moons", "--out", out, "--resume").exit_code == 0


def test_every_experiment_offers_its_settings_and_only_those():
    shared = {"--mode", "--seed", "--k", "--budget", "--epochs", "--device", "--out", "--resume", "--stop-after"}
    own = {"--depth", "--dataset", "--stream", "--blocks", "--precision", "--channels-last", "--compile"}
    gpt = {"--text", "--width", "--layers", "--context", "--norm", "--positions", "--precision", "--like", "--blocks"}
    for name, offers in (
        ("moons", set()), ("lenet5-mnist", {"--data", "--preset"}), ("resnet56-cifar10", own), ("gpt-text", gpt)
    ):  # fmt: skip
        text = CliRunner().invoke(app, ["run", name, "--help"], env={"COLUMNS": "200"}).output
        found = set(text.replace("│", " ").split())
        assert shared | offers <= found and not (own - offers) & found
    text = CliRunner().invoke(app, ["run", "moons", "--help"], env={"COLUMNS": "200"}).output
    assert "--data" not in text and "(default: reinmax)" in text


def test_resuming_before_the_first_checkpoint_starts_anew(tmp_path, undrawn):
    result = call(*SHORT, "--out", tmp_path / "run", "--resume")
    assert result.exit_code == 0 and "starting from the beginning" in result.output.replace("\n", " ")


def test_without_the_extra_the_command_says_what_to_install():
    code = (
        "import importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name in ('rich', 'matplotlib') else find(name, *a); "
        "import npn.cli; print('imported'); npn.cli.app()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1 and result.stdout == "imported\n"
    assert "needs rich, matplotlib" in result.stderr and "pip install 'npn[cli]'" in result.stderr
    assert "Traceback" not in result.stderr
