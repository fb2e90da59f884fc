"""A new user's mistakes on the command line end in one line that says what to do, and change nothing."""

import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from npn import export
from npn.cli import app
from npn.experiments.registry import EXPERIMENTS
from npn.integrations import tensorboard

MODELS = """
import torch
from torch import nn
from torch.nn import functional as F

def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

def deep():
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(13)))

def misfit():
    net().load_state_dict({})

def many():
    raise ValueError("one\\n\\ttwo\\nthree")

def leaves():
    raise SystemExit("bye")

def data(path):
    return [], None

def gone():
    raise OSError("the disk is gone")

def wrong():
    return [torch.zeros(2, 4)], lambda model, batch: model(batch).no_such()
"""
ONE_INPUT = ("--input", "2,4")


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MODELS)
    (tmp_path / "script.py").write_text("import sys\nsys.exit(2)\n")
    (tmp_path / "typo.py").write_text("def net(:\n")
    (tmp_path / "lacks.py").write_text("import not_installed_here\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "models.py").write_text("net = None\n")
    (tmp_path / "a_file").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "script", "typo", "lacks", "package", "package.models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def said(*arguments: object, stdout: bool = False) -> str:
    """What a command says that fails: one line, after what it has printed so far if `stdout`."""
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    (line,) = (result.stderr if stdout else result.output).strip().split("\n")
    return line


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("mine.py:net", "expected a module as Python imports it, got 'mine.py:net'; did you mean 'mine:net'?"),
        (
            "package/models.py:net",
            "expected a module as Python imports it, got 'package/models.py:net'; did you mean 'package.models:net'?",
        ),
        (
            "mine.net",
            "expected MODULE:FACTORY, for example my_package.models:resnet20, got 'mine.net'; did you mean 'mine:net'?",
        ),
        (
            "mime:net",
            "cannot find 'mime:net': No module named 'mime'; did you mean 'mine'? it is looked up from {here}",
        ),
        (
            "package.model:net",
            "cannot find 'package.model:net': No module named 'package.model'; did you mean 'models'? it is looked up "
            "from {here}",
        ),
        (
            "mine:Net",
            "cannot find 'mine:Net': module 'mine' has no attribute 'Net'; did you mean 'net'? it is looked up in "
            "{here}/mine.py",
        ),
        (
            "lacks:net",
            "importing lacks failed at lacks.py:1: ModuleNotFoundError: No module named 'not_installed_here'; install "
            "the package that has it where npn runs",
        ),
        (
            "typo:net",
            "importing typo failed at typo.py:1: SyntaxError: invalid syntax; see it alone with python -c "
            '"import typo"',
        ),
        (
            "script:net",
            "importing script failed at script.py:2: SystemExit: 2; put what a script does under if __name__ == "
            "'__main__'",
        ),
        (
            "mine:many",
            "mine:many failed at mine.py:16: ValueError: one two three; see it alone with python -c \"import mine; "
            'mine.many()"',
        ),
        (
            "mine:misfit",
            "mine:misfit failed at mine.py:13: RuntimeError: Error(s) in loading state_dict for Sequential: Missing "
            'key(s) in state_dict: "0.weight", "0.bias", "2.weight", "2.bias".; see it alone with python -c "import '
            'mine; mine.misfit()"',
        ),
        (
            "mine:leaves",
            "mine:leaves failed at mine.py:19: SystemExit: bye; put what a script does under if __name__ == '__main__'",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", [["inspect"], ["prune", "--target", "0.5"]])
def test_a_factory_that_is_not_found_or_fails(command: list[str], factory: str, message: str, files: Path) -> None:
    assert said(*command, factory, *ONE_INPUT) == f"error: {message.format(here=files)}"


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (
            "mine:data",
            "mine:data needs arguments: path; name a function that needs none, for example `def net(): return "
            "data(path=...)` in a file of your own",
        ),
        (
            "mine:gone",
            "mine:gone failed at mine.py:25: OSError: the disk is gone; see it alone with python -c \"import mine; "
            'mine.gone()"',
        ),
        (
            "mine:wrong",
            "mine:wrong failed at mine.py:28: AttributeError: 'Tensor' object has no attribute 'no_such'; call "
            "loss(model, batch) in Python with one batch first",
        ),
    ],
)  # fmt: skip
def test_batches_that_fail(batches: str, message: str, files: Path) -> None:
    arguments = ("mine:net", *ONE_INPUT, "--target", "0.5", "--criterion", "taylor", "--batches", batches)
    assert said("prune", *arguments) == f"error: {message}"
    assert not list(files.glob("pruned*"))


@pytest.mark.parametrize("command", [["inspect"], ["prune", "--target", "0.5"]])
@pytest.mark.parametrize("option", ["--only", "--skip"])
def test_a_pattern_that_matches_nothing_has_the_nearest_names(command: list[str], option: str) -> None:
    few = said(*command, "mine:net", *ONE_INPUT, option, "fc*")
    assert few == "error: pattern 'fc*' matches no group; the model has: 0"
    many = said(*command, "mine:deep", *ONE_INPUT, option, "0.11")
    assert many == "error: pattern '0.11' matches no group; the nearest of its 12 are: 11, 1, 0"


def test_an_error_of_npn_itself_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("npn.cli.prune.closed_to_target", fails)
    monkeypatch.setattr("npn.cli.user_code._INSTALLED", (str(Path(__file__).parent),))
    result = CliRunner().invoke(app, ["prune", "mine:net", *ONE_INPUT, "--target", "0.5"])
    assert isinstance(result.exception, KeyError)


def test_a_folder_that_holds_other_things_is_left_alone(files: Path) -> None:
    folder = files / "papers"
    folder.mkdir()
    for name in ("a.png", "b.png", "model.py", "thesis.tex"):
        (folder / name).write_text("mine")
    for more in ([], ["--overwrite"], ["--resume"]):
        text = CliRunner().invoke(app, ["run", "moons", "--epochs", "1,1,1", "--out", str(folder), *more]).output
        assert text.splitlines()[-1] == (
            f"error: {folder} holds what is no run of npn (a.png, b.png, model.py and 1 more); "
            "--out takes another folder"
        )
    assert {file.name: file.read_text() for file in folder.iterdir()} == dict.fromkeys(
        ("a.png", "b.png", "model.py", "thesis.tex"), "mine"
    )


def test_a_path_that_cannot_be_written_is_refused_before_the_work(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npn.cli.inputs.make_model", lambda factory: pytest.fail("the model was made"))
    arguments = ("prune", "mine:net", *ONE_INPUT, "--target", "0.5", "--out")
    assert said(*arguments, files) == (
        f"error: {files} is a folder; --out takes the path of a file, such as {files}/model.pt2"
    )
    assert said(*arguments, files / "a_file" / "x.pt2") == (
        f"error: cannot make the folder {files}/a_file for results: [Errno 17] File exists: '{files}/a_file'; "
        "--out takes another"
    )


def test_a_missing_extra_is_named_before_the_work(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    monkeypatch.setattr("npn.cli.inputs.make_model", lambda factory: pytest.fail("the model was made"))
    prune = ("prune", "mine:net", *ONE_INPUT, "--target", "0.5", "--format")
    for command in (prune, ("export", files, "--format")):
        assert said(*command, "onnx") == "error: onnx and onnxscript are not installed; pip install 'npn[onnx]'"
        assert said(*command, "bitmap") == "error: safetensors is not installed; pip install safetensors"
    assert said("run", "moons", "--out", files / "new", "--tensorboard") == (
        "error: tensorboard is not installed; pip install 'npn[tensorboard]'"
    )
    assert not (files / "new").exists()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            "{",
            "expected the result of a run in {file}, but: Expecting property name enclosed in double quotes: line 1 "
            "column 2 (char 1); --overwrite starts the run anew",
        ),
        (
            '{"experiment": "mars"}',
            f"expected a run of one of {', '.join(EXPERIMENTS)} in {{folder}}, found one of mars; name another folder",
        ),
    ],
)
def test_a_run_that_cannot_be_read(files: Path, result: str, message: str) -> None:
    (files / "result.json").write_text(result)
    expected = message.replace("{file}", str(files / "result.json")).replace("{folder}", str(files))
    assert said("export", files) == f"error: {expected}"


def test_a_model_that_a_format_cannot_hold(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> None:
        raise RuntimeError("no such op\n\nmany more lines " + 200 * "x ")

    monkeypatch.setattr("npn.cli.user_code.write_model", fails)
    text = said("prune", "mine:net", *ONE_INPUT, "--target", "0.5", "--format", "pt2", stdout=True)
    assert text.startswith("error: the model cannot be written as pt2: RuntimeError: no such op many more lines x x ")
    assert text.endswith("x ...; --format safetensors writes the weights")
