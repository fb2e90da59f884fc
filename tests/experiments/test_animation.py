"""Animations: evenly spread frames, that outlive a stop, of the run as it was."""

import importlib
from dataclasses import replace

import pytest
import torch
from matplotlib.animation import FFMpegWriter
from PIL import Image

from npn.experiments.engine import moving, runner
from npn.experiments.engine.observers import Observers
from npn.experiments.engine.recipe import Outcome
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.moons.animation import animate
from npn.experiments.moons.options import MoonsOptions
from npn.experiments.moons.recipe import EXPERIMENT
from npn.experiments.report import animation
from npn.experiments.report.figures import canvas


@pytest.mark.parametrize(("epochs", "frames", "expected"), [
    (5, 60, [0, 1, 2, 3, 4]),
    (7, 3, [0, 3, 6]),
    (1400, 2, [0, 1399]),
    (10, 1, [0, 9]),
])  # fmt: skip
def test_frames_are_spread_evenly(epochs, frames, expected):
    assert [epoch for epoch in range(epochs) if runner._begins_frame(epoch, epochs, frames)] == expected


def test_a_run_keeps_its_frames_and_shows_them(tmp_path, monkeypatch):
    seen = []
    experiment = replace(EXPERIMENT, draw=lambda *_: None, animate=lambda *a: seen.append(a))
    directory = RunDirectory(tmp_path / "run")
    outcome = runner.run(experiment, MoonsOptions(epochs="2,3,2", seed=1), directory, Observers(), frames=3)
    assert seen == [(directory.path, outcome)]
    assert [int(frame["epoch"]) for frame in outcome.frames] == [0, 3, 6]
    for frame in outcome.frames:
        keep = {name.removeprefix("keep/"): value for name, value in frame.items() if name.startswith("keep/")}
        sizes = [len(value) for value in keep.values()]
        assert sizes == [100, 80] and all((value.diff() <= 0).all() for value in keep.values())
        assert frame["confidence"].shape == (161, 161)
    last = outcome.snapshots["finetune"]["confidence"]
    torch.testing.assert_close(outcome.frames[-1]["confidence"], last, rtol=0, atol=0)

    monkeypatch.setattr(animation, "HELD", 0)
    files = animate(directory.path, outcome)
    assert [file.name for file in files] == ["animation.gif", "animation.mp4"][: 1 + FFMpegWriter.isAvailable()]
    with Image.open(files[0]) as picture:
        assert picture.n_frames == 3 and picture.size == (648, 297)
    directory.start(MoonsOptions())
    assert not files[0].exists(), "an earlier run's animation is deleted with its pictures"


def test_without_frames_nothing_is_animated(tmp_path):
    def never(path, outcome):
        raise AssertionError

    experiment = replace(EXPERIMENT, draw=lambda *_: None, animate=never)
    outcome = runner.run(experiment, MoonsOptions(epochs="1,1,1"), RunDirectory(tmp_path / "run"), Observers())
    assert isinstance(outcome, Outcome) and outcome.frames == []


@pytest.mark.parametrize("units", [30, 500], ids=["dots", "bars"])
def test_a_run_without_a_picture_of_its_own_shows_accuracy_over_size(tmp_path, monkeypatch, units):
    monkeypatch.setattr(animation, "HELD", 0)
    drawn = []
    monkeypatch.setattr(animation, "_dots", lambda axis, groups: drawn.append(("dots", groups)))
    monkeypatch.setattr(animation, "_bars", lambda axis, groups: drawn.append(("bars", groups)))
    rows = [
        {"epoch": epoch, "stage": "plastic", "params": 1000 // (epoch + 1), "accuracy": 0.9 + 0.01 * epoch}
        for epoch in range(3)
    ]
    frames = [{"epoch": torch.tensor(epoch), "keep/fc": torch.rand(units - epoch)} for epoch in (0, 2)]
    result = {"experiment": "lenet5-mnist", "mode": "sparsify", "seed": 0}
    (file, *_) = moving.animate(tmp_path, Outcome(result, rows, {}, frames))
    assert file == tmp_path / "animation.gif"
    with Image.open(file) as picture:
        assert picture.n_frames == 2
    kind = "dots" if units <= 400 else "bars"
    assert [(name, [(len(keep), most) for keep, most in groups.values()]) for name, groups in drawn[:2]] == [
        (kind, [(units, units)]),
        (kind, [(units - 2, units)]),
    ]


def test_bars_count_what_is_there_and_what_is_likely_to_stay():
    _, axes = canvas(1, 1, 2.0, 2.0)
    animation._bars(axes[0, 0], {"fc": (torch.tensor([0.9, 0.6, 0.2]), 10)})
    assert [bar.get_width() for bar in axes[0, 0].patches] == pytest.approx([1.0, 0.3, 0.2])


@pytest.mark.parametrize("name", ["lenet5", "lenet300", "resnet", "language", "moons"])
def test_every_experiment_can_be_animated(name):
    assert importlib.import_module(f"npn.experiments.{name}.recipe").EXPERIMENT.animate is not None
