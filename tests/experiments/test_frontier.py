"""The frontier's files, from results that stand for finished runs, and from runs that are there already."""

import json

import pytest

from npn.errors import ConfigurationError
from npn.experiments.engine.bench import points
from npn.experiments.engine.rundir import RunDirectory, write_json
from npn.experiments.lenet5 import bench as frontier
from npn.experiments.lenet5 import recipe as lenet5
from npn.experiments.lenet5.model import count_weights
from npn.experiments.lenet5.options import LeNetOptions


def result(mode, budget, seed, accuracy=0.99, params=5000):
    return {
        "mode": mode,
        "seed": seed,
        "accuracy": accuracy,
        "params": params,
        "params_with_biases": params + 50,
        "validation_accuracy": accuracy,
        "macs": 10 * params,
        "training_macs": 63_000 * params,
        "seconds": 7.0,
        "stages": [{"epochs": 3}, {"epochs": 60}],
        "architecture": "9-8-100-20",
        "options": {"mode": mode, "seed": seed, "budget": budget, "k": 7.0},
        "machine": {"processor": "P", "cores": 2, "device": "cpu", "threads": 1 + (seed > 1)},
        "versions": {"python": "3", "torch": "2"},
    }


def test_points_are_means_over_seeds_in_order():
    found = points(
        [
            result("expand", 2304.0, 0),
            result("sparsify", 5320.0, 1, 0.992, 5300),
            result("sparsify", 5320.0, 0, 0.990, 5100),
            result("sparsify", 2800.0, 0),
        ]
    )
    assert [(p["mode"], p["budget"], p["runs"]) for p in found] == [
        ("sparsify", 2800.0, 1),
        ("sparsify", 5320.0, 2),
        ("expand", 2304.0, 1),
    ]
    middle = found[1]
    assert middle["accuracy"]["mean"] == pytest.approx(0.991) and middle["params"]["max"] == 5300
    assert [seed["seed"] for seed in middle["seeds"]] == [0, 1]


def test_files(tmp_path):
    results = [result("sparsify", b, s, 0.98 + b * 1e-6, int(b)) for b in (2000.0, 5000.0) for s in (0, 1)]
    results += [result("dense", None, 0, 0.9925, 430_500), result("scratch", 2000.0, 0)]
    for file in (*frontier.PICTURES, "table.md"):
        (tmp_path / file).write_text("| stage | finetune |")
    files = frontier.write(tmp_path / "results" / "lenet5", results, {"sparsify, seed 0": tmp_path})
    assert [file.name for file in files] == [
        "lenet5.json", "lenet5.md", "lenet5.png", "lenet5-sparsify-curves.png", "lenet5-sparsify-filters.png"
    ]  # fmt: skip
    assert files[2].stat().st_size > 10_000
    summary = json.loads(files[0].read_text())
    assert summary["published"]["BC-GHS"] == {"params": 2800, "error": 1.0} and len(summary["points"]) == 4
    page = files[1].read_text()
    assert "| sparsify | 5,000 | 63 | 2 | 5,000 | 5,050 | 50,000 | 0.00 T | 98.50% ± 0.00 | **98.50%** ± 0.00 |" in page
    assert "| dense |" in page and "L0-HC-sep" in page
    assert "## Sparsify, seed 0\n\n| stage | finetune |" in page and "(lenet5-sparsify-filters.png)" in page


def test_runs_that_are_there_are_not_made_again(tmp_path):
    options = LeNetOptions(epochs="1,1,1", data="somewhere")
    for seed in (0, 1):
        directory = RunDirectory(tmp_path / f"sparsify-2800-{seed}")
        chosen = LeNetOptions("sparsify", seed, budget=2800.0, epochs="1,1,1")
        directory.start(chosen.over(lenet5.defaults(chosen)))
        write_json(directory.result_file, result("sparsify", 2800.0, seed))

    def train(experiment, options, path, resume):
        raise AssertionError("nothing is left to train")

    frontier.bench(tmp_path / "out", tmp_path, options, [0, 1], ["sparsify"], [2800.0], train)
    with pytest.raises(ConfigurationError, match="holds a run with other settings"):
        frontier.bench(tmp_path / "out", tmp_path, LeNetOptions(epochs="1,1,2"), [0], ["sparsify"], [2800.0], train)


def test_modes_of_one_stage_train_as_long_as_the_others(tmp_path):
    made = []

    def train(experiment, options, path, resume):
        made.append((options.mode, options.budget, options.epochs))
        directory = RunDirectory(path)
        directory.start(options)
        write_json(directory.result_file, result(options.mode, options.budget, options.seed))

    modes = ["scratch", "dense"]
    frontier.bench(tmp_path / "out", tmp_path, LeNetOptions(epochs="1,2,1"), [0], modes, [2000.0], train)
    assert made == [("scratch", 2000.0, "4"), ("dense", None, "4")]
    made.clear()
    with pytest.raises(ConfigurationError, match=r"^epochs must be one number of at least 3 or 3 numbers"):
        frontier.bench(tmp_path / "out", tmp_path, LeNetOptions(epochs="1,2"), [1], ["sparsify", *modes], None, train)
    assert made == [], "before any training"


def test_what_the_runs_were_made_with_is_on_the_page(tmp_path):
    files = frontier.write(tmp_path / "lenet5", [result("sparsify", 0.0125, seed) for seed in (0, 2)], {})
    summary, page = json.loads(files[0].read_text()), files[1].read_text()
    assert summary["machine"]["threads"] == "1 / 2" and summary["machine"]["cores"] == 2
    assert "1 / 2 threads a run" in page and "with python 3, torch 2." in page
    assert "| sparsify | 0.0125 | 63 |" in page and "| sparsify 0.0125 | 0 |" in page


def test_an_unknown_mode(tmp_path):
    expected = "^modes must be among sparsify, expand, expand-pair, .*, found, .*, scratch-taught, got 'shrink'$"
    with pytest.raises(ConfigurationError, match=expected):
        frontier.bench(tmp_path / "out", tmp_path, LeNetOptions(), [0], ["sparsify", "shrink"], None, lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def test_plain_widths_fit_the_budget():
    for budget in (500, 2304, 5320, 20_000):
        first, second, hidden = lenet5.plain_widths(budget)
        weights = count_weights(first, second, 16 * second, hidden)
        assert 0.8 * budget < weights <= budget
    model = lenet5.LeNet5(8, 10, 18)
    assert sum(p.numel() for p in model.parameters() if p.dim() > 1) == count_weights(8, 10, 160, 18)
