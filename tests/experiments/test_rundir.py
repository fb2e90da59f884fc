"""A run's folder, and what it does with damaged or missing files."""

from pathlib import Path

import pytest

from npn.errors import CheckpointError, ConfigurationError
from npn.experiments.engine import runner
from npn.experiments.engine.observers import Observers
from npn.experiments.engine.options import Options
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.moons.recipe import EXPERIMENT as MOONS


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "deep" / "run")
    directory.start(Options(mode="expand", seed=2, k=7.0))
    return directory


def test_options_and_metrics_survive(directory: RunDirectory) -> None:
    directory.append({"epoch": 0, "k": "inf"})
    directory.append({"epoch": 1, "k": 7.0})
    again = RunDirectory(directory.path)
    assert again.options() == Options(mode="expand", seed=2, k=7.0)
    assert again.metrics() == [{"epoch": 0, "k": "inf"}, {"epoch": 1, "k": 7.0}]


def test_metrics_after_a_checkpoint_are_forgotten(directory: RunDirectory) -> None:
    for epoch in range(5):
        directory.append({"epoch": epoch})
    with directory.metrics_file.open("a") as file:
        file.write('{"epoch": 5, "acc')  # killed while writing
    directory.truncate(3)
    directory.append({"epoch": 3})
    assert [row["epoch"] for row in directory.metrics()] == [0, 1, 2, 3]


@pytest.mark.parametrize("rest", ['{"epoch": 0}\n', '{"epoch": 0}\n{"epoch": 1}'])
def test_a_checkpoint_without_its_metrics_is_refused(directory: RunDirectory, rest: str) -> None:
    directory.metrics_file.write_text(rest)
    with pytest.raises(CheckpointError, match="after 2 epochs"):
        directory.truncate(2)
    assert directory.metrics_file.read_text() == rest


def test_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"options\.json"):
        RunDirectory(tmp_path).options()
    (tmp_path / "options.json").write_text('{"colour": "blue"}')
    with pytest.raises(CheckpointError, match="colour"):
        RunDirectory(tmp_path).options()


def test_a_run_is_unfinished_until_its_result_is_there(directory: RunDirectory) -> None:
    assert not directory.unfinished and not directory.finished
    directory.checkpoint_file.write_bytes(b"state")
    assert directory.unfinished and not directory.finished
    directory.finish({"accuracy": 1.0})
    assert directory.finished and not directory.unfinished
    assert not directory.checkpoint_file.exists()
    assert directory.result() == {"accuracy": 1.0}


def test_a_new_run_leaves_nothing_of_the_old_one(directory: RunDirectory) -> None:
    directory.append({"epoch": 0})
    directory.finish({"accuracy": 1.0})
    for name in ("curves.png", "table.md", "model.pt", "model.onnx", "model.pt2"):
        (directory.path / name).write_bytes(b"old")
    (directory.path / "notes.txt").write_text("the user's own")
    directory.start(Options(seed=9))
    assert sorted(file.name for file in directory.path.iterdir()) == ["metrics.jsonl", "notes.txt", "options.json"]
    assert directory.metrics() == []


def test_two_commands_cannot_train_in_one_folder(directory: RunDirectory) -> None:
    before = {file.name: file.read_bytes() for file in directory.path.iterdir()}
    second, asked = RunDirectory(directory.path), Options(mode="expand", seed=2, k=7.0)
    with directory.held():
        for resume in (False, True):
            with pytest.raises(ConfigurationError) as refused:
                runner.run(MOONS, asked, second, Observers(), resume=resume)
            assert str(refused.value) == (
                f"another process trains in {second.path}; wait until it has ended, or choose another folder with --out"
            )
    assert {file.name: file.read_bytes() for file in directory.path.iterdir() if file.name != ".lock"} == before
    with second.held():
        pass
