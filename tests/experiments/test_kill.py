"""A run that is killed again and again, in every stage and even while it writes, ends as if nothing had happened."""

import json
import multiprocessing
import os
import random
import signal

import pytest
import torch

from npn.experiments.engine import runner
from npn.experiments.engine.options import Options
from npn.experiments.engine.recipe import Experiment
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.moons.recipe import EXPERIMENT as MOONS

from .conftest import Recorder

OPTIONS = {
    "sparsify": Options(mode="sparsify", seed=3, epochs="4,14,4", penalty=1e-2),
    "expand": Options(mode="expand", seed=3, epochs="4,14,4"),
}
STEPS = 22 * 4  # updates of the weights in one run, and as many of the gates


def train(experiment, options, path, resume, kill_after=None, kill_in_write=False):
    """Run in this process; SIGKILL it after so many updates, or half-way through the next checkpoint then."""
    torch.set_num_threads(1)
    seen = 0
    step = torch.optim.Adam.step
    fsync = os.fsync

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, *args, **kwargs):
        nonlocal seen
        seen += 1
        if kill_after is not None and seen > kill_after:
            if not kill_in_write:
                die()
            os.fsync = lambda file: die()
        return step(self, *args, **kwargs)

    torch.optim.Adam.step = counted
    try:
        experiment = Experiment(**{**vars(experiment), "draw": lambda *_: [], "checkpoint_every": 1})
        runner.run(experiment, options, RunDirectory(path), Recorder(), resume=resume)
    finally:
        torch.optim.Adam.step, os.fsync = step, fsync


def in_child(*args):
    process = multiprocessing.get_context("fork").Process(target=train, args=args)
    process.start()
    process.join()
    return process.exitcode


forks = pytest.mark.skipif(
    torch.version.cuda is not None, reason="CUDA builds of PyTorch allow no backward pass after a fork"
)


@forks
@pytest.mark.parametrize(("mode", "kills"), [("sparsify", 5), ("expand", 5)])
def test_ten_kills_change_nothing(tmp_path, mode, kills):
    check_kills(tmp_path, MOONS, OPTIONS[mode], kills, STEPS)


def check_kills(tmp_path, experiment, options, kills, steps):
    """A whole run and one that is killed so often come to the same end."""
    experiment.build(options.over(experiment.defaults(options)))  # what it imports and traces, every child inherits
    assert in_child(experiment, options, tmp_path / "whole", False) == 0
    rng = random.Random(7)
    path = tmp_path / "killed"
    for number in range(kills):  # each run gets a little further than the last checkpoint before it dies
        after = rng.randrange(steps // kills, 2 * steps // kills)
        resume = RunDirectory(path).unfinished
        assert in_child(experiment, options, path, resume, after, number % 3 == 2) == -signal.SIGKILL
        assert not RunDirectory(path).finished
    assert in_child(experiment, options, path, True) == 0

    def end(folder):
        result = json.loads((folder / "result.json").read_text())
        content = torch.load(folder / "model.pt", weights_only=True)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return result, content["model"], rows

    (result, model, rows), (whole, expected, all_rows) = end(path), end(tmp_path / "whole")
    assert rows == all_rows
    assert all(torch.equal(model[name], value) for name, value in expected.items()) and set(model) == set(expected)
    assert {row["stage"] for row in rows} == {"pretrain", "plastic", "finetune"}
    assert [result[key] for key in ("accuracy", "params", "macs")] == [
        whole[key] for key in ("accuracy", "params", "macs")
    ]
