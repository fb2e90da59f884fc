"""The bench of residual networks: which runs it makes, and the files it writes of them."""

import json
from functools import partial

import pytest

from npn.errors import ConfigurationError
from npn.experiments.engine import runner
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.resnet import bench as resnet_bench
from npn.experiments.resnet.options import ResNetOptions

from .conftest import Recorder, unrendered
from .test_resnet56 import tiny  # noqa: F401 - few images, for every test here

MODES = ("dense", "scratch", "sparsify", "expand")


def train(asked, experiment, options, path, resume):
    asked.append(path.name)
    runner.run(experiment, options, RunDirectory(path), Recorder(), resume=resume)


@pytest.fixture
def bench(tmp_path):
    asked = []
    options = ResNetOptions(depth=8, epochs="1,2,1", decay="cosine")
    whole = partial(resnet_bench.bench, tmp_path / "results" / "r", tmp_path / "runs", options)

    def bench(seeds, modes, budgets, rendered=()):
        with unrendered(*rendered):
            return whole(seeds, modes, budgets, partial(train, asked)), asked

    return bench


def test_every_mode_seed_and_budget_once(bench):
    files, asked = bench([0], MODES, [0.5], rendered=("r.png", "r-sparsify-curves.png"))
    assert asked == ["dense-0", "scratch-0.5-0", "sparsify-0.5-0", "expand-0.5-0"]
    assert [file.name for file in files] == ["r.json", "r.md", "r.png", *(f"r-{mode}-curves.png" for mode in MODES)]
    assert all(file.stat().st_size > 0 for file in files)
    summary = json.loads(files[0].read_text())
    assert [(p["mode"], p["budget"], p["runs"], p["epochs"]) for p in summary["points"]] == [
        ("sparsify", 0.5, 1, 4), ("expand", 0.5, 1, 4), ("scratch", 0.5, 1, 4), ("dense", None, 1, 4)
    ]  # fmt: skip
    assert summary["depth"] == 8 and summary["options"]["decay"] == "cosine"
    page = files[1].read_text()
    assert page.startswith("# ResNet-8 on CIFAR-10\n")
    assert "| full net | 4 | 1 | 12.24 M | 100.0% |" in page
    assert "## Shrunk by npn, seed 0" in page and "![full net, seed 0](r-dense-curves.png)" in page
    again, _ = bench([0, 1], ("dense", "scratch"), [0.5])
    assert asked[4:] == ["dense-1", "scratch-0.5-1"], "what is there is not made again"
    assert [p["runs"] for p in json.loads(again[0].read_text())["points"]] == [2, 2]


def test_runs_of_one_arm_may_differ_in_length(tmp_path):
    made = []
    for seed, epochs in enumerate(("2", "3")):
        made.append(("scratch-macs", RunDirectory(tmp_path / str(seed))))
        options = ResNetOptions(mode="scratch", depth=8, epochs=epochs, decay="cosine", budget=0.5, seed=seed)
        experiment = resnet_bench.EXPERIMENT
        with unrendered():
            runner.run(experiment, options.over(experiment.defaults(options)), made[-1][1], Recorder())
    with unrendered():
        files = resnet_bench.write(tmp_path / "r", made)
    assert json.loads(files[0].read_text())["points"][0]["epochs"] == "2-3"
    assert "| plain net, as many training MACs as shrinking, budget 0.5 | 2-3 | 2 |" in files[1].read_text()


def test_modes_that_there_are_not(bench):
    with pytest.raises(ConfigurationError) as error:
        bench([0], ["sparsify", "grow"], [0.5])
    assert str(error.value) == (
        "modes must be among sparsify, sparsify-8, expand, expand-pair, expand-split, expand-select, expand-over-1, "
        "expand-over-2, scratch, scratch-macs, scratch-macs-grown, dense, got 'grow'"
    )
