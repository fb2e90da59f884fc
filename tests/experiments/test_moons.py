"""The two moons: sizes are those of the exported network, and what is in the folder fits together."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import npn
from npn.errors import ConfigurationError
from npn.experiments.data.moons import moons as data
from npn.experiments.engine import runner
from npn.experiments.engine.options import Options
from npn.experiments.engine.recipe import Outcome
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.moons import bench, figures
from npn.experiments.moons import recipe as moons

from .conftest import Recorder

Finished = tuple[Outcome, RunDirectory]
UNDRAWN = replace(moons.EXPERIMENT, draw=lambda *_: [])  # pictures take most of a short run's time


def load_small(directory: RunDirectory) -> moons.MoonsNet:
    return npn.load(directory.model_file, moons.MoonsNet())


def test_the_projection_is_data_preparation(finished: Finished) -> None:
    net = moons.MoonsNet()
    assert not net.projection.weight.requires_grad
    outcome, directory = finished
    if outcome.result["mode"] == "sparsify":  # every row left is one of those that were drawn at the start
        torch.manual_seed(1)
        before = moons.MoonsNet().projection.weight
        after = load_small(directory).projection.weight
        assert all(bool((before == row).all(1).any()) for row in after)


def test_reported_sizes_are_those_of_the_saved_model(finished: Finished) -> None:
    outcome, directory = finished
    result, small = outcome.result, load_small(directory)
    features, hidden = small.hidden.in_features, small.hidden.out_features
    assert result["architecture"] == f"{features}-{hidden}-2"
    assert result["params"] == small.hidden.weight.numel() + small.output.weight.numel()
    assert result["params_with_biases"] == sum(p.numel() for p in small.parameters() if p.requires_grad)
    assert result["params_total"] == npn.count_params(small)
    assert result["macs"] == npn.count_macs(small, torch.zeros(1, 2)) == result["params"] + 2 * features


def test_reported_accuracy_is_that_of_the_saved_model(finished: Finished) -> None:
    outcome, directory = finished
    test = data(1).test
    accuracy = (load_small(directory)(test.x).argmax(1) == test.y).float().mean()
    assert outcome.result["accuracy"] == pytest.approx(float(accuracy))
    assert outcome.rows[-1]["accuracy"] == outcome.result["accuracy"] == outcome.result["stages"][-1]["accuracy"]


def test_units_come_or_go_in_the_plastic_stage_only(finished: Finished) -> None:
    outcome, _ = finished
    stages = outcome.result["stages"]
    assert [(stage["stage"], stage["epochs"], stage["k"]) for stage in stages] == [
        ("pretrain", 3, "inf"),
        ("plastic", 12, 7.0),
        ("finetune", 3, "inf"),
    ]
    assert stages[1]["params"] == stages[2]["params"]
    if outcome.result["mode"] == "sparsify":
        assert stages[0]["architecture"] == "100-80-2"
        assert stages[1]["params"] < stages[0]["params"]
    else:
        assert stages[0]["architecture"] == "3-3-2"
        assert max(row["params"] for row in outcome.rows) > stages[0]["params"]


def test_the_folder_holds_what_is_promised(finished: Finished) -> None:
    outcome, directory = finished
    files = {file.name for file in directory.files()}
    pictures = {"boundary.png", "curves.png", "keep_probability.png", "gates.png"}
    assert files == {"result.json", "metrics.jsonl", "options.json", "model.pt", "report.html"} | pictures
    result = json.loads(directory.result_file.read_text())
    assert result == outcome.result
    report = (directory.path / "report.html").read_text(encoding="utf-8")
    assert 'id="curves"' in report and "Not finished" not in report
    assert result["macs_at_start"] == (8360 if outcome.result["mode"] == "sparsify" else 21)  # 2 f + f h + 2 h
    expected = {"accuracy", "params", "macs", "architecture", "stages", "seconds", "command", "versions", "machine"}
    assert expected <= set(result)
    rows = directory.metrics()
    assert [row["epoch"] for row in rows] == list(range(18))
    assert all(sum(row["keep"][name]) >= row["units"][name] for row in rows for name in row["units"])


def test_growth_and_gates_never_see_the_test_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With other test data, everything but the reported test accuracy stays the same."""

    def losses(path: Path) -> list[Any]:
        options = Options(mode="expand", seed=1, epochs="2,5,1")
        rows = runner.run(UNDRAWN, options, RunDirectory(path), Recorder()).rows
        return [{key: value for key, value in row.items() if key != "accuracy"} for row in rows]

    before = losses(tmp_path / "before")
    real = moons.moons

    def garbled(seed: int) -> Any:
        found = real(seed)
        return type(found)(found.train, found.validation, type(found.test)(-found.test.x, found.test.y), 2)

    monkeypatch.setattr(moons, "moons", garbled)
    assert losses(tmp_path / "after") == before


def test_confidence_has_rows_from_bottom_to_top() -> None:
    class Above(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.zeros(len(x)), 50 * (x[:, 1] - x[:, 0])], dim=1)

    grid = figures.confidence(Above(), torch.device("cpu"))
    assert grid.shape == (figures.GRID, figures.GRID)
    assert grid[-1, 0] > 0.99  # top left: y > x
    assert grid[0, -1] < 0.01  # bottom right


@pytest.mark.parametrize("mode", ["sparsify", "expand"])
@pytest.mark.parametrize(("budget", "bound"), [(0.5, 4221), (1.0, 8442), (300.0, 300)])
def test_a_budget_is_a_share_of_the_full_net_in_either_mode(mode: str, budget: float, bound: int) -> None:
    given = Options(mode=mode, budget=budget)
    penalty = moons.build(given.over(moons.defaults(given))).plastic.penalty
    assert isinstance(penalty, npn.Budget) and penalty.bound == bound


def test_the_bound_waits_for_growth_and_for_what_has_grown(tmp_path: Path) -> None:
    """The path begins once growth has ended and its last units are no longer held open."""
    options = Options(mode="expand", seed=1, epochs="2,60,1")
    rows = runner.run(UNDRAWN, options, RunDirectory(tmp_path), Recorder()).rows
    began = next(row["epoch"] for row in rows if row["bound"])
    largest = max(rows[2:62], key=lambda row: row["params"])
    assert began > largest["epoch"]
    assert all(row["bound"] is None for row in rows[:began])
    bounds = [row["bound"] for row in rows[began:62]]
    assert all(after <= before for before, after in pairwise(bounds))
    assert 0.8 * largest["cost"] < bounds[0] <= largest["cost"] and bounds[-1] < 0.7 * bounds[0]


def test_a_share_that_is_next_to_nothing_is_not_taken_for_a_larger_one() -> None:
    given = Options(mode="sparsify", budget=1e-4)
    with pytest.raises(ConfigurationError, match="allows 2 params, but with one unit left in every group"):
        moons.build(given.over(moons.defaults(given)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(mode="sideways"), "'sparsify', 'expand'"),
        (Options(mode="expand", penalty=1e-3, budget=50.0), "not both"),
        (Options(estimator="guess"), "reinmax"),
        (Options(epochs="1,2"), "one per"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(
    options: Options, message: str, tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(ConfigurationError, match=message):
        runner.run(UNDRAWN, options, directory, Recorder())
    assert not directory.path.exists()


def test_a_bench_writes_table_and_pictures(finished: Finished, tmp_path: Path) -> None:
    outcome, _ = finished
    other = Outcome({**outcome.result, "params": 2 * outcome.result["params"]}, outcome.rows, outcome.snapshots)
    files = bench.write(tmp_path / "results" / "moons", {"sparsify": [outcome, outcome], "expand": [other]})
    assert [file.name for file in files] == ["moons.json", "moons.md", "moons.png", "moons-sizes.png"]
    summary = json.loads(files[0].read_text())
    assert summary["size_ratio"] == 2.0
    assert summary["modes"]["sparsify"]["runs"] == 2
    page = files[1].read_text()
    assert "n = 2" in page and "factor 2.00" in page and summary["command"] in page
