"""A budget is reached: on the moons the network ends within 5% of the size that was asked for."""

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
    result = runner.run(undrawn, options, RunDirectory(tmp_path), Recorder()).result
    assert result["params_total"] == pytest.approx(target, rel=0.05)
    assert result["accuracy"] > 0.95
