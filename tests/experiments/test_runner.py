"""Stopping, crashing and resuming change nothing in the result."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from npn.errors import CheckpointError, ConfigurationError
from npn.experiments.data.splits import Data, Split
from npn.experiments.engine import runner, training
from npn.experiments.engine.options import Options
from npn.experiments.engine.recipe import Outcome, Row
from npn.experiments.engine.rundir import RunDirectory, write_json
from npn.experiments.engine.runner import Interrupted
from npn.experiments.moons import recipe as moons

from .conftest import EPOCHS, Recorder

Finished = tuple[Outcome, RunDirectory]
UNDRAWN = replace(moons.EXPERIMENT, draw=lambda *_: [])  # pictures take most of a short run's time


class Crash(Exception):
    """The machine went down."""


class Disturbed(Recorder):
    """An observer during which something happens at the given epochs."""

    def __init__(self, epochs: set[int], what: Callable[[], None]) -> None:
        super().__init__()
        self.when, self.what = epochs, what

    def epoch(self, row: Row, epochs: int) -> None:
        super().epoch(row, epochs)
        if row["epoch"] in self.when:
            self.what()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def crash() -> None:
    raise Crash


def settings(directory: RunDirectory) -> Options:
    return directory.options(moons.EXPERIMENT.options)


def same_result(one: RunDirectory, two: RunDirectory) -> None:
    assert one.metrics_file.read_bytes() == two.metrics_file.read_bytes()
    results = [directory.result() for directory in (one, two)]
    for result in results:
        ended = result["epochs_ended"]
        assert len(ended) == len(one.metrics()) and ended == sorted(ended) and ended[-1] == result["seconds"]
        del result["seconds"], result["epochs_ended"], result["command"]
        for stage in result["stages"]:
            del stage["seconds"]
    assert results[0] == results[1]
    models = [torch.load(directory.model_file, weights_only=True)["model"] for directory in (one, two)]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize("epochs", [{1}, {2}, {4, 9}, {14}, {16}], ids=str)
def test_an_interrupted_run_ends_the_same(finished: Finished, tmp_path: Path, epochs: set[int]) -> None:
    whole = finished[1]
    directory, observer = RunDirectory(tmp_path), Disturbed(epochs, interrupt)
    options = settings(whole)
    for turn in range(len(epochs)):
        with pytest.raises(Interrupted):
            runner.run(UNDRAWN, options, directory, observer, resume=turn > 0)
        assert directory.unfinished
        report = directory.report_file.read_text(encoding="utf-8")
        assert f"npn run moons --resume --out {tmp_path}" in report
        torch.manual_seed(999)  # another process has another state
    ended = runner.run(UNDRAWN, Options(), directory, observer, resume=True)
    assert "--resume" not in directory.report_file.read_text(encoding="utf-8")
    assert observer.epochs == list(range(18))  # the epoch under way was finished: none is run twice
    assert observer.stages == ["pretrain", "plastic", "finetune"]
    same_result(whole, directory)
    drawn = finished[0].snapshots  # of these and the rows the pictures are made
    assert ended.snapshots.keys() == drawn.keys() and all(drawn.values())
    for stage, tensors in drawn.items():
        assert all(torch.equal(ended.snapshots[stage][name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("epochs", [{5}, {10, 11}, {17}], ids=str)
def test_a_crashed_run_ends_the_same(
    finished: Finished, tmp_path: Path, epochs: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finished[1]
    directory, observer = RunDirectory(tmp_path), Disturbed(epochs, crash)
    experiment = replace(UNDRAWN, checkpoint_every=4)
    for turn in range(len(epochs)):
        with pytest.raises(Crash):
            runner.run(experiment, settings(whole), directory, observer, resume=turn > 0)
        observer.when = observer.when - {observer.epochs[-1]}
    runner.run(experiment, Options(), directory, observer, resume=True)
    same_result(whole, directory)


def test_signals_are_the_users_again_after_a_run(finished: Finished, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted):
        runner.run(moons.EXPERIMENT, settings(finished[1]), RunDirectory(tmp_path), Disturbed({0}, interrupt))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_stops_at_once(finished: Finished, tmp_path: Path) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        runner.run(moons.EXPERIMENT, settings(finished[1]), RunDirectory(tmp_path), Disturbed({0}, twice))


def test_a_run_of_an_earlier_version_goes_on_with_the_defaults_that_it_lacks(
    finished: Finished, tmp_path: Path
) -> None:
    directory, observer = RunDirectory(tmp_path), Disturbed({2}, interrupt)
    with pytest.raises(Interrupted):
        runner.run(UNDRAWN, settings(finished[1]), directory, observer)
    before = json.loads(directory.options_file.read_text())
    write_json(directory.options_file, {key: value for key, value in before.items() if key != "function"})
    assert before["function"] == "sigmoid"
    with pytest.raises(ConfigurationError, match="the run to resume has function='sigmoid', got function='hard"):
        runner.run(UNDRAWN, Options(function="hard_sigmoid"), directory, Recorder(), resume=True)
    runner.run(UNDRAWN, Options(function="sigmoid"), directory, Recorder(), resume=True)
    same_result(finished[1], directory)


def test_resuming_refuses_other_settings_and_missing_files(finished: Finished, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    with pytest.raises(CheckpointError, match="without --resume"):
        runner.run(moons.EXPERIMENT, Options(), directory, Recorder(), resume=True)
    with pytest.raises(Interrupted):
        runner.run(moons.EXPERIMENT, settings(finished[1]), directory, Disturbed({2}, interrupt))
    metrics = directory.metrics_file.read_bytes()
    with pytest.raises(ConfigurationError, match="seed=1"):
        runner.run(moons.EXPERIMENT, Options(seed=2), directory, Recorder(), resume=True)
    directory.checkpoint_file.write_bytes(directory.checkpoint_file.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError, match=r"damaged, .*\. A run keeps one checkpoint alone: --overwrite starts it anew"
    ):
        runner.run(moons.EXPERIMENT, Options(), directory, Recorder(), resume=True)
    assert directory.metrics_file.read_bytes() == metrics


def test_evaluation_is_exact_in_batches_and_keeps_the_mode() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
    split = Split(torch.randn(50, 3), torch.randint(0, 2, (50,)))
    loss, accuracy = training.evaluate(model, split, batch_size=7)
    assert model.training
    model.eval()
    assert training.evaluate(model, split) == pytest.approx((loss, accuracy))
    assert not model.training
    logits = model(split.x)
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits.detach(), split.y)))
    assert accuracy == pytest.approx(float((logits.argmax(1) == split.y).float().mean()))


def test_each_epoch_sees_every_example_once_in_an_order_of_its_own() -> None:
    split = Split(torch.arange(10.0), torch.arange(10))
    data = Data(split, split, split, 10)
    orders = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        batches = list(training.shuffled(data, 4, seed, epoch))
        assert [len(y) for _, y in batches] == [4, 4, 2]
        orders[seed, epoch] = tuple(torch.cat([y for _, y in batches]).tolist())
        assert sorted(orders[seed, epoch]) == list(range(10))
        assert torch.cat([x for x, _ in batches]).tolist() == list(orders[seed, epoch])
    assert len(set(orders.values())) == 3
    assert EPOCHS == "3,12,3"  # what the epochs in this file are chosen for


def test_a_run_gives_the_threads_back(finished: Finished, tmp_path: Path) -> None:
    seen = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(Interrupted):
            observer = Disturbed({0}, lambda: (seen.append(torch.get_num_threads()), interrupt())[1])
            runner.run(moons.EXPERIMENT, settings(finished[1]), RunDirectory(tmp_path), observer)
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
