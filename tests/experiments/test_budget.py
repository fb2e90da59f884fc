"""A budget is reached: on the moons the network ends at the size that was asked for, or a unit or two below it."""

from dataclasses import replace
from pathlib import Path

import pytest

from npn.experiments.engine import runner
from npn.experiments.engine.options import Options
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.moons.recipe import EXPERIMENT

from .conftest import Recorder


@pytest.mark.parametrize(("budget", "target"), [(300, 300.0), (0.1, 844.2)])
def test_the_size_that_was_asked_for(tmp_path: Path, budget: float, target: float) -> None:
    options = Options(mode="sparsify", seed=0, budget=budget, epochs="20,400,1")
    undrawn = replace(EXPERIMENT, draw=lambda *_: [], checkpoint_every=10**9)
    outcome = runner.run(undrawn, options, RunDirectory(tmp_path), Recorder())
    result, plastic = outcome.result, outcome.rows[20:420]
    assert target - 2 * max(outcome.rows[-1]["units"].values()) <= result["params_total"] <= target
    assert plastic[-1]["params_total"] == pytest.approx(target, rel=0.05)  # before the last cut
    assert plastic[0]["bound"] > 7500 and outcome.rows[19]["bound"] is None
    assert plastic[180]["bound"] == pytest.approx((plastic[0]["bound"] * target) ** 0.5, rel=0.02)  # half of the path
    assert all(row["bound"] == int(target) for row in plastic[360:])
    assert all(row["cost"] == pytest.approx(row["bound"], rel=0.06) for row in plastic[60:])
    assert min(row["validation_accuracy"] for row in plastic) >= outcome.rows[19]["validation_accuracy"] - 0.02
    assert result["accuracy"] > 0.95
