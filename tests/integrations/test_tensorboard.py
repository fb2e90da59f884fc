"""What TensorBoard reads back is what was written, each step once."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import npn
from npn.cli import app
from npn.experiments.engine import runner
from npn.experiments.moons import recipe as moons
from npn.integrations import tensorboard

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read(folder):
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0}).Reload()


def curve(board, name):
    return [(event.step, event.value) for event in board.Scalars(name)]


def test_gates_and_scalars_are_read_back(tmp_path):
    plastic = npn.attach(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4))
    plastic.k = 7.0
    with tensorboard.PlasticityWriter(tmp_path) as writer:
        writer.write(plastic, 0, loss=0.5)
        plastic.close("0", [1, 2, 3])
        writer.write(plastic, 1, loss=0.25)
    board = read(tmp_path)
    assert curve(board, "loss") == [(0, 0.5), (1, 0.25)]
    assert curve(board, "k") == [(0, 7.0), (1, 7.0)]
    assert curve(board, "units/0") == [(0, 8.0), (1, 5.0)]
    assert curve(board, "params") == [(0, 58.0), (1, 58.0)]
    first, second = (event.histogram_value for event in board.Histograms("keep/0"))
    assert (first.num, second.num) == (8, 8)
    # the bins of 0.95 and of 0.05, give or take a rounding
    assert sum(first.bucket[-3:]) == 8
    assert sum(second.bucket[-3:]) == 5 and sum(second.bucket[:4]) == 3


def test_a_resumed_run_shows_no_step_twice(tmp_path, monkeypatch):
    out = tmp_path / "moons"
    command = ["run", "moons", "--epochs", "1,3,1", "--out", str(out), "--tensorboard"]
    append, saved = runner.RunDirectory.append, []

    def crash(directory, row):  # with an epoch on record that no checkpoint has seen
        append(directory, row)
        if row["epoch"] == 2:
            saved.append((out / "checkpoint.pt").read_bytes())
        if row["epoch"] == 3:
            (out / "checkpoint.pt").write_bytes(saved[0])
            raise KeyboardInterrupt

    monkeypatch.setattr(
        moons, "EXPERIMENT", dataclasses.replace(moons.EXPERIMENT, checkpoint_every=1, draw=lambda *_: [])
    )
    monkeypatch.setattr(runner.RunDirectory, "append", crash)
    CliRunner().invoke(app, command)
    assert [step for step, _ in curve(read(out / "tensorboard"), "loss")] == [0, 1, 2]
    monkeypatch.setattr(runner.RunDirectory, "append", append)
    result = CliRunner().invoke(app, [*command, "--resume"])
    assert result.exit_code == 0, result.output
    board = read(out / "tensorboard")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert curve(board, "accuracy") == [(row["epoch"], pytest.approx(row["accuracy"])) for row in rows]
    assert [value for _, value in curve(board, "k")] == [float(row["k"]) for row in rows]
    assert [event.step for event in board.Histograms("keep/" + next(iter(rows[0]["units"])))] == [0, 1, 2, 3, 4]


def test_without_tensorboard_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    with pytest.raises(npn.PlasticityError, match=r"^tensorboard is not installed; pip install 'npn\[tensorboard\]'$"):
        tensorboard.PlasticityWriter(tmp_path)
