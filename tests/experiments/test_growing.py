"""Starts of new units in the recipes, and the bench that compares them."""

import json
from pathlib import Path
from typing import Any

import pytest

import npn
from npn.errors import ConfigurationError
from npn.experiments.engine import runner
from npn.experiments.engine.options import Options
from npn.experiments.engine.recipe import Experiment, Outcome
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.growing.bench import bench
from npn.experiments.moons import recipe as moons
from npn.experiments.report.tables import paired

from .conftest import Recorder, unrendered

Finished = tuple[Outcome, RunDirectory]


@pytest.mark.parametrize("init", ["pair", "select"])
def test_a_run_grows_as_it_was_told(init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float]] = []
    grow = npn.Plasticity.grow

    def watched(self: npn.Plasticity, more: Any, **options: Any) -> npn.ResizeReport:
        seen.append((options["init"], float(options["loss"]()) if "loss" in options else 0.0))
        return grow(self, more, **options)

    monkeypatch.setattr(npn.Plasticity, "grow", watched)
    options = Options(mode="expand", seed=1, epochs="1,4,1", growth_init=init)
    directory = RunDirectory(tmp_path / "run")
    with unrendered():
        outcome = runner.run(moons.EXPERIMENT, options, directory, Recorder())
    assert seen and all(name == init and (init == "pair" or loss > 0) for name, loss in seen)
    assert outcome.result["options"]["growth_init"] == init
    assert directory.options(moons.EXPERIMENT.options).growth_init == init


def test_a_start_without_growth_is_refused() -> None:
    message = "growth_init is for the mode 'expand', which adds units, got mode 'sparsify'"
    with pytest.raises(ConfigurationError, match=message):
        Options(mode="sparsify", growth_init="pair").checked_mode(["sparsify"])
    options = Options(mode="expand", growth_init="best")
    with pytest.raises(ConfigurationError, match="init must be one of 'zero', 'pair', 'select', 'split', got 'best'"):
        moons.build(options.over(moons.defaults(options)))


def test_the_bench_pairs_by_seed(tmp_path: Path) -> None:
    def train(experiment: Experiment, options: Options, path: Path, resume: bool) -> Outcome:
        assert options.mode == "expand" and not resume
        with unrendered():
            return runner.run(experiment, options, RunDirectory(path), Recorder())

    arguments = tmp_path / "growth", tmp_path / "runs", "moons", Options(epochs="1,2,1"), [0, 1], ["zero", "split"]
    files = bench(*arguments, train)
    assert [file.name for file in files] == ["growth.json", "growth.md", "growth.png"]
    summary = json.loads(files[0].read_text())
    zero, split = (summary["starts"][init] for init in ("zero", "split"))
    wanted = [
        b["validation_accuracy"] - a["validation_accuracy"] for a, b in zip(zero["seeds"], split["seeds"], strict=True)
    ]
    assert split["difference"]["validation_accuracy"]["mean"] == pytest.approx(sum(wanted) / 2)
    assert [seed["seed"] for seed in split["seeds"]] == [0, 1]
    rows = RunDirectory(tmp_path / "runs" / "moons-split-1").metrics()
    assert split["seeds"][1]["validation_accuracy"] == rows[-1]["validation_accuracy"]
    assert zero["difference"]["accuracy"] == {"mean": 0.0, "error": 0.0, "above": 0, "below": 0}
    assert "to zero, in points" in files[1].read_text() and files[2].stat().st_size > 1000

    def again(*given: Any) -> Outcome:
        raise AssertionError("finished runs are used as they are")

    assert bench(*arguments, again) == files


def test_pairs_have_an_error_of_their_own() -> None:
    found = paired([a - b for a, b in zip([0.9, 0.8, 0.7], [0.5, 0.7, 0.8], strict=True)])
    assert found["mean"] == pytest.approx(0.4 / 3)
    assert found["error"] == pytest.approx(0.25166 / 3**0.5, rel=1e-4)
    assert (found["above"], found["below"]) == (2, 1)


@pytest.mark.parametrize(
    ("name", "inits", "message"),
    [
        ("mnist", ["zero"], "experiment must be one of 'moons', .*'resnet56-cifar10', .*got 'mnist'"),
        ("gpt-text", ["zero"], "experiment must be one of 'moons', .*'resnet56-cifar10', got 'gpt-text'"),
        ("moons", ["zero", "best"], "inits must be among zero, pair, select, split, got 'best'"),
    ],
)
def test_what_the_bench_does_not_know(name: str, inits: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        bench(tmp_path / "a", tmp_path / "runs", name, Options(), [0], inits, lambda *_: pytest.fail("trained"))
