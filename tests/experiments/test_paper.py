"""The paper's own recipe: its settings, its prices, and both modes on a few examples."""

import json
import math
from dataclasses import replace

import pytest
import torch

from npn.errors import ConfigurationError
from npn.experiments.engine import paper, runner, training
from npn.experiments.engine.options import Options
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.lenet5 import recipe as lenet5
from npn.experiments.lenet5.options import LeNetOptions
from npn.experiments.moons import recipe as moons
from npn.experiments.moons.options import MoonsOptions

from .conftest import Recorder, squares

NETWORKS = {"lenet5": (lenet5, LeNetOptions), "moons": (moons, MoonsOptions)}


@pytest.fixture(autouse=True)
def few_digits(monkeypatch):
    monkeypatch.setattr(lenet5, "mnist", lambda folder=None: squares(128, 60))


def built(network, **options):
    module, kind = NETWORKS[network]
    given = kind(preset="paper", **options)
    torch.manual_seed(0)
    return module.build(given.over(module.defaults(given)))


@pytest.mark.parametrize("mode", ["sparsify", "expand"])
@pytest.mark.parametrize("network", list(NETWORKS))
def test_the_settings_are_the_papers(network, mode):
    recipe = built(network, mode=mode)
    plastic, (first, plastic_stage, last) = recipe.plastic, recipe.schedule.stages
    assert plastic.estimator == "arm" and plastic_stage.k == {"sparsify": 7.0, "expand": 1.0}[mode]
    assert first.k == last.k == math.inf and recipe.batch_size == 128
    for optimizer in (recipe.weights, recipe.gates):
        assert type(optimizer) is torch.optim.Adam
        assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(1e-3, 0)]
    plastic.k = plastic_stage.k
    for group in plastic.groups:
        torch.testing.assert_close(group.gate.keep_probability().detach(), torch.full((group.size,), 0.95))
    full = lenet5.FULL if network == "lenet5" else moons.FULL
    start = full if mode == "sparsify" else (3,) * len(full)
    assert [group.size for group in plastic.groups if "columns" not in group.name] == list(start)
    assert (recipe.growth is None) == (mode == "sparsify")
    if recipe.growth is not None:
        assert recipe.growth.units == {"*": 1} and recipe.growth.grace == 0
        assert list(recipe.growth.limits.values()) == list(full)
        assert not recipe.grow_first and recipe.grows(plastic_stage, plastic_stage.epochs - 1)


def test_epochs_and_rates_of_lenet5():
    recipe = built("lenet5")
    assert [stage.epochs for stage in recipe.schedule.stages] == [100, 250, 150]
    rates = []
    for stage, position in zip(recipe.schedule.stages[1:], (249, 49), strict=True):
        for at in (position, position + 1):
            recipe.step(stage, at, 0)
            rates.append(recipe.weights.param_groups[0]["lr"])
    assert rates == [1e-3, 1e-3, 1e-3, 1e-4]


def test_a_unit_pays_for_its_own_weights_of_the_full_network():
    """By hand: 10 x 25, 0.5 x 500, 0.1 x 500 and 10 x 10 weights over N, whatever the other layers have left."""
    plastic = built("lenet5").plastic
    prices = {"conv1": 250, "conv2": 250, "fc1.columns": 50, "fc1": 100}
    plastic.close("conv1", range(15))
    plastic.k = math.inf  # closed units are removed
    plastic.compact()
    plastic.k = 7.0
    for name, price in prices.items():
        with torch.no_grad():
            before = float(plastic.penalty.loss(plastic))
            logits = plastic.group(name).gate.logits
            probability = float(plastic.group(name).gate.keep_probability()[0])
            logits[0] = -100.0
            assert before - float(plastic.penalty.loss(plastic)) == pytest.approx(price / 128 * probability, rel=1e-3)


def test_the_price_has_the_gradient_of_its_formula():
    plastic = built("moons").plastic
    plastic.k = 2.0
    plastic.penalty.loss(plastic).backward()
    for name, price in (("projection", 0.35 * 80 / 8160), ("hidden", 14 * 2 / 8160)):
        gate = next(group.gate for group in plastic.groups if group.name.startswith(name))
        pi = gate.keep_probability().detach()
        torch.testing.assert_close(gate.logits.grad, price * 2.0 * pi * (1 - pi))


@pytest.mark.parametrize(
    ("prices", "message"),
    [({"*": -1.0}, "prices must be finite numbers >= 0, got -1.0"), ({"*": math.inf}, "got inf")],
)
def test_prices_that_cannot_be(prices, message):
    with pytest.raises(ConfigurationError, match=message):
        paper.UnitPrices(prices)
    plastic = built("moons").plastic
    with pytest.raises(ConfigurationError, match="nothing"):
        paper.UnitPrices({"nothing*": 1.0}).bind(plastic)


@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize("mode", ["sparsify", "expand"])
def test_a_short_run_of_both_modes(tmp_path, network, mode):
    module, kind = NETWORKS[network]
    undrawn = replace(module.EXPERIMENT, draw=lambda *_: None, checkpoint_every=10**9)
    options = kind(mode=mode, preset="paper", epochs="1,2,1", seed=0)
    outcome = runner.run(undrawn, options, RunDirectory(tmp_path), Recorder())
    saved = json.loads((tmp_path / "options.json").read_text())
    assert saved["preset"] == "paper" and saved["budget"] is saved["penalty"] is None and saved["estimator"] == "arm"
    assert [stage["stage"] for stage in outcome.result["stages"]] == ["pretrain", "plastic", "finetune"]
    assert outcome.result["options"]["k"] == {"sparsify": 7.0, "expand": 1.0}[mode]


def test_full_layers_grow_by_one_unit_after_each_better_epoch():
    recipe = built("lenet5", mode="expand", epochs="1,5,1")
    rows = [row for _, row in training.epochs(recipe, seed=0)]
    best, expected = math.inf, 3
    for row in rows:
        assert row["units"]["conv1"] == expected
        if row["stage"] == "plastic" and row["validation_loss"] < best:
            best, expected = row["validation_loss"], expected + 1
    assert expected > 4, "nothing grew: the test shows nothing"


@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preset": "short"}, "preset must be \"paper\", got 'short'"),
        ({"mode": "scratch"}, "the preset 'paper' is for the modes sparsify and expand, got 'scratch'; leave it out"),
        (
            {"budget": 0.5, "penalty": 1e-6},
            "the preset 'paper' is a whole recipe, with prices of its own: leave out penalty, budget",
        ),
    ],
)
def test_what_contradicts_the_recipe_is_refused(network, given, message):
    module, kind = NETWORKS[network]
    with pytest.raises(ConfigurationError) as error:
        module.defaults(kind(**({"preset": "paper"} | given)))
    assert str(error.value) == message


def test_weight_decay_and_a_teacher_are_refused_as_well():
    with pytest.raises(ConfigurationError, match=r"leave out weight_decay, augment, teacher$"):
        lenet5.defaults(LeNetOptions(preset="paper", weight_decay=0.1, augment=True, teacher="there"))


def test_other_runs_are_as_they_were():
    assert moons.defaults(Options()).preset is None and moons.defaults(Options()).budget == moons.BUDGET
    assert lenet5.defaults(Options(mode="expand")).budget == lenet5.BUDGET["expand"]
