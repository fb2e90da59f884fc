"""CIFAR-100 through the whole bench of the residual networks, from files in the official layout."""

import json
from dataclasses import replace
from functools import partial

import numpy as np

from npn.experiments.data import cifar
from npn.experiments.engine import runner
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.resnet import bench
from npn.experiments.resnet import recipe as resnet56
from npn.experiments.resnet.options import ResNetOptions

from .conftest import Recorder

MODES = ("dense", "scratch", "sparsify", "expand")


def test_all_four_modes_on_images_in_any_order(tmp_path, monkeypatch):
    """Files of the right sizes are enough: their images may come in any order, so there is no checksum to match."""
    source = replace(cifar.SOURCES["cifar100"], train={"train.bin": 40}, test={"test.bin": 8})
    monkeypatch.setitem(cifar.SOURCES, "cifar100", source)
    rng = np.random.default_rng(0)
    (tmp_path / "data" / source.folder).mkdir(parents=True)
    for file, count in (source.train | source.test).items():
        labels = np.stack([np.full(count, 7), 99 - np.arange(count) % 5], 1)  # coarse, fine
        pixels = rng.integers(0, 256, (count, cifar.PIXELS))
        np.concatenate([labels, pixels], 1).astype(np.uint8).tofile(tmp_path / "data" / source.folder / file)
    monkeypatch.setattr(resnet56, "cifar", partial(cifar.cifar, validation=8))
    monkeypatch.setattr(resnet56, "BATCH_SIZE", 16)
    monkeypatch.setattr(bench.figures, "learning_curves", lambda *_: None)  # pictures take most of the time
    monkeypatch.setattr(bench, "draw", lambda *_: None)
    recipes = []

    def train(experiment, options, path, resume):
        build = experiment.build
        kept = replace(experiment, build=lambda options: recipes.append(build(options)) or recipes[-1], draw=tables)
        return runner.run(kept, options, RunDirectory(path), Recorder(), resume=resume)

    options = ResNetOptions(depth=8, dataset="cifar100", epochs="3", data=str(tmp_path / "data"))
    files = bench.bench(tmp_path / "c100", tmp_path / "runs", options, [0], MODES, [0.5], train)
    summary = json.loads(files[0].read_text())
    assert summary["dataset"] == "cifar100" and summary["base"] == resnet56.base(8, 100)
    assert {point["mode"] for point in summary["points"]} == set(MODES)
    assert files[1].read_text().startswith("# ResNet-8 on CIFAR-100\n")
    for recipe in recipes:
        assert recipe.plastic.model.fc.out_features == 100 and set(recipe.data.train.y.tolist()) == set(range(95, 100))
    results = {
        mode: RunDirectory(path).result() for mode, path in zip(MODES, sorted_runs(tmp_path / "runs"), strict=True)
    }
    full = resnet56.base(8, 100)["zero_padding"]["macs"]
    assert results["dense"]["macs"] == full and 0.4 * full < results["scratch"]["macs"] <= 0.5 * full


def tables(path, outcome):
    (path / "table.md").write_text("-")


def sorted_runs(folder):
    return [folder / name for name in ("dense-0", "scratch-0.5-0", "sparsify-0.5-0", "expand-0.5-0")]
