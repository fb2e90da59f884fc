"""LeNet-300-100 and LeNet-5 with gates on single weights, on a few synthetic digits."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import npn
from npn.errors import ConfigurationError
from npn.experiments.engine import runner
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.engine.single_weights import hold_units_open, measure
from npn.experiments.engine.stopping import Interrupted
from npn.experiments.lenet5 import recipe as lenet5
from npn.experiments.lenet5.options import LeNetOptions
from npn.experiments.lenet300 import recipe as lenet300
from npn.experiments.lenet300.options import LeNet300Options
from npn.experiments.registry import finished_model

from .conftest import Recorder, squares, unrendered


@pytest.fixture(autouse=True)
def few_digits(monkeypatch):
    for module in (lenet300, lenet5):
        monkeypatch.setattr(module, "mnist", lambda folder=None: squares(200, 60))


@pytest.fixture
def narrow(monkeypatch):
    """A third of the units, for tests that train."""
    monkeypatch.setattr(lenet300, "WIDTHS", (100, 33))
    monkeypatch.setattr(lenet300, "WEIGHTS", 784 * 100 + 100 * 33 + 33 * 10)


def nonzero(model):
    return sum(int((p != 0).sum()) for p in model.parameters() if p.dim() > 1)


@pytest.mark.usefixtures("narrow")
def test_lenet300_ends_with_the_weights_of_its_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(lenet300, "BATCH_SIZE", 25)
    monkeypatch.setattr(lenet300, "GATE_LEARNING_RATE", 2e-2)  # a twentieth of the steps of a real run
    monkeypatch.setitem(lenet300.PRICE, "rate", 2e-2)
    options = LeNet300Options(seed=0, epochs="1,20,1", budget=2000.0)
    seldom = replace(lenet300.EXPERIMENT, checkpoint_every=10**9)
    outcome = runner.run(seldom, options, RunDirectory(tmp_path), Recorder())
    assert 1000 < outcome.result["params"] < 3000 and outcome.result["accuracy"] > 0.9
    assert sum(outcome.result["layers"].values()) >= outcome.result["params"] == outcome.result["sparse_macs"]
    model, _ = finished_model(tmp_path)
    assert nonzero(model) == outcome.result["params"]
    inputs, first, second = map(int, outcome.result["architecture"].split("-"))
    assert model.fc1.weight.shape == (first, 784) and model.fc3.weight.shape == (10, second)
    assert int((model.fc1.weight != 0).any(0).sum()) == inputs < 784


def test_lenet300_dense_and_the_modes_that_it_lacks(tmp_path):
    options = LeNet300Options(mode="dense", seed=0, epochs="1")
    with unrendered():
        outcome = runner.run(lenet300.EXPERIMENT, options, RunDirectory(tmp_path), Recorder())
    assert (outcome.result["params"], outcome.result["architecture"]) == (266200, "784-300-100")
    assert outcome.result["params_with_biases"] == 266610
    with pytest.raises(ConfigurationError, match="mode must be one of 'sparsify', 'dense', 'scratch', got 'exp"):
        lenet300.build(LeNet300Options(mode="expand").over(lenet300.defaults(LeNet300Options())))


def test_lenet300_from_scratch_has_the_weights_of_its_budget(tmp_path):
    options = LeNet300Options(mode="scratch", seed=0, epochs="1", budget=0.03)
    with unrendered():
        result = runner.run(lenet300.EXPERIMENT, options, RunDirectory(tmp_path), Recorder()).result
    assert result["architecture"] == "784-9-9" and result["params"] == 784 * 9 + 9 * 9 + 9 * 10 <= 0.03 * 266200


class StopAfter(Recorder):
    """Interrupts a run, as a signal does."""

    def epoch(self, row, epochs):
        super().epoch(row, epochs)
        if len(self.epochs) == 3:
            raise Interrupted


@pytest.mark.usefixtures("narrow")
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path):
    undrawn = replace(lenet300.EXPERIMENT, draw=lambda *_: [])
    options = LeNet300Options(seed=0, epochs="1,4,1", budget=0.5)
    whole = runner.run(undrawn, options, RunDirectory(tmp_path / "whole"), Recorder())
    part = RunDirectory(tmp_path / "part")
    with pytest.raises(Interrupted):
        runner.run(undrawn, options, part, StopAfter())
    resumed = runner.run(undrawn, LeNet300Options(), part, Recorder(), resume=True)
    for key in ("accuracy", "params", "layers", "architecture"):
        assert resumed.result[key] == whole.result[key]
    for a, b in zip(whole.rows, resumed.rows, strict=True):
        assert a["loss"] == b["loss"] and a["cost"] == b["cost"]


def test_lenet5_counts_the_single_weights_of_all_layers(tmp_path):
    options = LeNetOptions(seed=0, weights=True, epochs="1,2,1")
    assert options.over(lenet5.defaults(options)).budget == 1500.0
    with unrendered():
        outcome = runner.run(lenet5.EXPERIMENT, options, RunDirectory(tmp_path), Recorder())
    assert list(outcome.result["layers"]) == ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"]
    assert outcome.result["architecture"].count("-") == 2
    model, _ = finished_model(tmp_path)
    assert nonzero(model) == outcome.result["params"]
    with pytest.raises(ConfigurationError, match="single weights are for the modes 'sparsify' and 'dense', got 'exp"):
        lenet5.build(LeNetOptions(weights=True, mode="expand").over(lenet5.defaults(LeNetOptions(mode="expand"))))


def test_what_is_measured_is_what_is_left():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    plastic = npn.attach(model, torch.zeros(2, 5), unstructured="*")
    hold_units_open(plastic)
    plastic.k = 7.0
    assert bool((plastic.gates.draw(50)[:, :4] < plastic.gates.keep_probability()[:4]).all())
    plastic.close("0.weight", [0, 5, 10, 15, 1])  # no unit reads the first input
    plastic.close("2.weight", [3, 7, 11])  # nothing reads the last unit
    assert measure(plastic)["architecture"] == "4-4"
    plastic.close("0", [0])
    found = measure(plastic)
    assert found["params"] == 20 - 5 - 3 + 12 - 3 - 3  # without the three weights left in the closed unit's row
    assert found["params_with_biases"] == found["params"] + 3 + 3 and found["sparse_macs"] == found["params"]
