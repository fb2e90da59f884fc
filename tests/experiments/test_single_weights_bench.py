"""The bench of single weights: its files, on a few synthetic digits."""

import json

import pytest

from npn.errors import ConfigurationError
from npn.experiments.engine import runner
from npn.experiments.engine.options import Options
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.lenet5 import recipe as lenet5
from npn.experiments.lenet300 import recipe as lenet300
from npn.experiments.single_weights.bench import bench

from .conftest import Recorder, squares, unrendered


def train(experiment, options, path, resume):
    with unrendered():
        return runner.run(experiment, options, RunDirectory(path), Recorder(), resume=resume)


def test_both_networks_beside_plain_nets_and_published_figures(tmp_path, monkeypatch):
    for module in (lenet300, lenet5):
        monkeypatch.setattr(module, "mnist", lambda folder=None: squares(100, 30))
    given = Options(epochs="1,1,1"), ["lenet300", "lenet5"], [0, 1], ["weights", "scratch"]
    files = bench(tmp_path / "out" / "weights", tmp_path / "runs", *given, train)
    assert [file.name for file in files] == ["weights.json", "weights.md", "weights.png"]
    summary = json.loads(files[0].read_text())
    for entry, budget in zip(summary["networks"], (4000, 1500), strict=True):
        gates, plain = entry["points"]
        assert (gates["mode"], plain["mode"]) == ("weights", "scratch")
        assert gates["budget"] == plain["budget"] == budget
        assert plain["params"]["max"] <= budget and plain["epochs"] == gates["epochs"] == 3
        assert set(gates["layers"]) == {"0", "1"} and entry["differences"][0]["accuracy"]["pairs"] == 2
    page = files[1].read_text()
    assert "| SparseVD | 3,900 | 98.08% |" in page and "### Differences" in page
    assert files[2].stat().st_size > 10_000


def test_an_unknown_network(tmp_path):
    with pytest.raises(ConfigurationError, match=r"^networks must be among lenet300, lenet5, got 'vgg'$"):
        bench(tmp_path / "out", tmp_path / "runs", Options(), ["lenet300", "vgg"], [0], ["weights"], train)
    assert not (tmp_path / "runs").exists(), "nothing is trained before"
