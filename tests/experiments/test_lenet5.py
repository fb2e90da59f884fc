"""LeNet-5: the official files, and a run of both modes on a few synthetic digits."""

import gzip
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from npn.errors import ConfigurationError
from npn.experiments.data import mnist
from npn.experiments.engine import runner
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.lenet5 import recipe as lenet5
from npn.experiments.lenet5.options import LeNetOptions

from .conftest import Recorder, squares, unrendered


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Four small files in the official layout."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 5010), ("t10k", 6)):
        images = bytes(16) + rng.integers(0, 256, count * 784, dtype=np.uint8).tobytes()
        labels = bytes(8) + rng.integers(0, 10, count, dtype=np.uint8).tobytes()
        for name, content in ((f"{part}-images-idx3-ubyte.gz", images), (f"{part}-labels-idx1-ubyte.gz", labels)):
            (tmp_path / name).write_bytes(gzip.compress(content))
            monkeypatch.setitem(mnist.SHA256, name, hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    return tmp_path


def test_the_files_become_normalised_images_and_a_validation_split(official):
    data = mnist.mnist(official)
    assert data.train.x.shape == (10, 1, 28, 28) and len(data.validation) == 5000 and len(data.test) == 6
    raw = gzip.decompress((official / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    pixel = data.train.x[0, 0, 3, 5] * mnist.STD + mnist.MEAN
    assert float(pixel) == pytest.approx(raw[3 * 28 + 5] / 255, abs=1e-6)
    labels = gzip.decompress((official / "train-labels-idx1-ubyte.gz").read_bytes())[8:]
    assert data.validation.y[-1] == labels[-1] and data.train.y.tolist() == list(labels[:10])


def test_the_environment_names_the_folder(official, monkeypatch):
    monkeypatch.setenv("NPN_DATA", str(official))
    assert len(mnist.mnist().test) == 6


def test_another_file_or_none_is_refused(official):
    (official / "t10k-labels-idx1-ubyte.gz").write_bytes(b"other")
    with pytest.raises(
        ConfigurationError, match=r"t10k-labels-idx1-ubyte.gz is not the official file: its SHA-256 differs"
    ):
        mnist.mnist(official)
    (official / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ConfigurationError, match=r"expected MNIST's t10k-labels-idx1-ubyte.gz in .*; name the folder"):
        mnist.mnist(official)


def digits(folder=None):
    return squares(128, 60)


@pytest.mark.parametrize("mode", ["sparsify", "expand"])
def test_a_short_run_of_both_modes(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(lenet5, "mnist", digits)
    monkeypatch.setattr(lenet5, "BATCH_SIZE", 16)
    options = LeNetOptions(mode=mode, seed=0, epochs="3,4,5")  # eight steps each
    seldom = replace(lenet5.EXPERIMENT, checkpoint_every=10**9)
    outcome = runner.run(seldom, options, RunDirectory(tmp_path), Recorder())
    assert outcome.result["accuracy"] > 0.9
    for name in ("curves.png", "filters.png", "table.md", "model.pt"):
        assert (tmp_path / name).stat().st_size > 0
    first, second, flat, hidden = map(int, outcome.result["architecture"].split("-"))
    assert flat <= 16 * second
    assert outcome.result["params"] == 25 * first + 25 * first * second + flat * hidden + 10 * hidden
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (rows[-1]["params"] > rows[0]["params"]) == (mode == "expand")


@pytest.mark.parametrize(("mode", "widths"), [("dense", "20-50-800-500"), ("scratch", "5-6-96-12")])
def test_nets_that_keep_their_size_are_trained_beside(tmp_path, monkeypatch, mode, widths):
    monkeypatch.setattr(lenet5, "mnist", digits)
    options = LeNetOptions(mode=mode, seed=0, epochs="2", budget=None if mode == "dense" else 2304.0)
    with unrendered():
        outcome = runner.run(lenet5.EXPERIMENT, options, RunDirectory(tmp_path), Recorder())
    assert outcome.result["architecture"] == widths
    assert [(row["stage"], row["k"]) for row in outcome.rows] == [("train", "inf")] * 2


def test_the_counts_are_the_papers():
    """Table I's dense network: 431k parameters with biases, 430,500 weights."""
    import npn

    plastic = npn.attach(lenet5.LeNet5(), torch.zeros(2, 1, 28, 28), columns="fc1")
    measured = lenet5.measure(plastic)
    assert measured == {"params": 430500, "params_with_biases": 431080, "architecture": "20-50-800-500"}
    assert npn.count_params(plastic.model) == 431080
