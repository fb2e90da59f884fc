"""Animations: evenly spread frames, that outlive a stop, of the run as it was."""

from dataclasses import replace

import pytest
import torch
from matplotlib.animation import FFMpegWriter
from PIL import Image

from npn.experiments.engine import runner
from npn.experiments.engine.observers import Observers
from npn.experiments.engine.recipe import Outcome
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.moons.animation import animate
from npn.experiments.moons.options import MoonsOptions
from npn.experiments.moons.recipe import EXPERIMENT
from npn.experiments.report import animation


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
