"""The ResNet recipe on a few synthetic images: both modes, streams, measures, and stops that change nothing."""

import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch

import npn
from npn.errors import ConfigurationError
from npn.experiments.data.splits import Data, Split
from npn.experiments.engine import runner, training
from npn.experiments.engine.options import Options
from npn.experiments.engine.recipe import Experiment
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.engine.stopping import Interrupted, OutOfTime
from npn.experiments.resnet import figures, sizes
from npn.experiments.resnet import recipe as resnet56
from npn.experiments.resnet.options import ResNetOptions

from .conftest import Recorder


def images(dataset="cifar10", folder=None, training=48):
    """Two classes, of bright and of dark images, which a small net learns at once."""
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        y = torch.arange(count) % 2
        noise = torch.randint(0, 60, (count, 3, 32, 32), generator=generator)
        return Split((noise + 190 * y.view(-1, 1, 1, 1)).to(torch.uint8), y)

    return Data(draw(training), draw(8), draw(8), classes=10)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Few images in small batches."""
    monkeypatch.setattr(resnet56, "cifar", images)
    monkeypatch.setattr(resnet56, "BATCH_SIZE", 16)


BUDGETS = {"sparsify": 0.3, "expand": 0.9}
UNDRAWN = Experiment(**{**vars(resnet56.EXPERIMENT), "draw": lambda *_: []})


def recipe_of(**options):
    given = ResNetOptions(**({"depth": 8, "epochs": "2,6,2"} | options))
    torch.manual_seed(0)
    return resnet56.build(given.over(resnet56.defaults(given)))


class Disturbed(Recorder):
    """Interrupts after the given epochs."""

    def __init__(self, *epochs):
        super().__init__()
        self.when = epochs

    def epoch(self, row, epochs):
        super().epoch(row, epochs)
        if row["epoch"] in self.when:
            os.kill(os.getpid(), signal.SIGINT)


def run(path, options, observer=None, **more):
    return runner.run(UNDRAWN, options, RunDirectory(path), observer or Recorder(), **more)


def same(one, two):
    assert (one / "metrics.jsonl").read_bytes() == (two / "metrics.jsonl").read_bytes()
    models = [torch.load(folder / "model.pt", weights_only=True)["model"] for folder in (one, two)]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.fixture(scope="module", params=["sparsify", "expand"])
def finished(request, tmp_path_factory):
    """A whole run of each mode, and its settings for as long as the run is used."""
    path = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet56, "cifar", images)
        patch.setattr(resnet56, "BATCH_SIZE", 16)
        if request.param == "sparsify":  # gates that move within the few steps of a test
            patch.setattr(resnet56, "GATE_LEARNING_RATE", 0.1)
        options = ResNetOptions(mode=request.param, depth=8, epochs="1,5,1", seed=1, budget=BUDGETS[request.param])
        yield runner.run(resnet56.EXPERIMENT, options, RunDirectory(path), Recorder()), path


def test_a_short_run_leaves_what_a_long_one_does(finished):
    outcome, path = finished
    result, rows = outcome.result, outcome.rows
    assert result["accuracy"] == 1.0
    assert (rows[-1]["params"] > rows[0]["params"]) == (result["mode"] == "expand")
    assert all((path / name).stat().st_size > 0 for name in ("curves.png", "keep_probability.png", "model.pt"))
    assert set(result["base"]) == {"zero_padding", "projection"} and result["blocks"] == 3
    table = (path / "table.md").read_text().splitlines()
    assert len(table) == 7
    base = result["base"]["zero_padding"]
    assert f"{base['params']:,} | 0.0%" in table[2] and f"| {base['macs'] / 1e6:.2f} M | 0.0% |" in table[2]
    last = f"{100 * (1 - result['params'] / base['params']):.1f}% | {result['macs'] / 1e6:.2f} M"
    assert table[-1].startswith("| finetune |") and last in table[-1] and "100.00%" in table[-1]
    json.dumps(result)


def test_the_exported_model_has_the_size_that_was_reported(finished):
    outcome, path = finished
    model = npn.load(path / "model.pt", resnet56.ResNet(8))
    assert outcome.result["params"] == sum(
        v.numel() for k, v in torch.load(path / "model.pt", weights_only=True)["model"].items() if v.dim() > 1
    )
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("finished", ["expand"], indirect=True)
def test_an_interrupted_run_with_augmentation_ends_the_same(finished, tmp_path):
    _, whole = finished
    epochs = (0, 2, 5)  # the last of a stage, in the middle of one, at the next change of stage
    options, observer = RunDirectory(whole).options(ResNetOptions), Disturbed(*epochs)
    for turn in range(len(epochs)):
        with pytest.raises(Interrupted):
            run(tmp_path, options, observer, resume=turn > 0)
        torch.manual_seed(999)  # another process has another state
    run(tmp_path, ResNetOptions(), observer, resume=True)
    assert observer.epochs == list(range(7))
    same(whole, tmp_path)


@pytest.mark.parametrize("finished", ["sparsify"], indirect=True)
def test_running_out_of_time_is_an_interruption_that_changes_nothing(finished, tmp_path):
    _, whole = finished
    options, observer = RunDirectory(whole).options(ResNetOptions), Recorder()
    for turn in range(2):
        with pytest.raises(OutOfTime):  # a limit that is less than any epoch takes
            run(tmp_path, options, observer, resume=turn > 0, stop_after=1e-6)
        assert observer.epochs == list(range(turn + 1)) and RunDirectory(tmp_path).unfinished
    run(tmp_path, Options(), observer, resume=True, stop_after=1e6)
    same(whole, tmp_path)


def test_a_limit_that_cannot_be(tmp_path):
    with pytest.raises(ConfigurationError) as error:
        run(tmp_path, ResNetOptions(), stop_after=0.0)
    assert str(error.value) == "the minutes to stop after must be above 0, got 0.0"


@pytest.mark.parametrize("stream", [False, True])
def test_measures_agree_with_counts_of_the_compact_model(stream):
    plastic = recipe_of(stream=stream).plastic
    names = ["blocks.0.branch.conv1", "blocks.1.branch.conv1", "blocks.2.branch.conv1"]
    streams = ["conv1", "blocks.1.branch.conv2", "blocks.2.branch.conv2"]
    assert sorted(plastic.sizes()) == sorted([*names, "fc.columns", *streams * stream])
    for number, group in enumerate(plastic.groups):
        plastic.close(group.name, range(2 + number))
    image = torch.zeros(1, 3, 32, 32)
    small = plastic.export()
    expected = {
        "params": npn.count_params(small, biases=False),
        "params_with_biases": npn.count_params(small),
        "macs": npn.count_macs(small, image),
    }
    measured = resnet56.measure(plastic)  # closed units are still there
    assert {key: measured[key] for key in expected} == expected
    plastic.compact()
    assert resnet56.measure(plastic) == measured
    assert plastic.pricing.costs.at("macs", {}) == expected["macs"], "the budget counts one image"
    if not stream:
        assert measured["architecture"] == "16(14) 32(29) 64(60)" and measured["channels"] == [14, 29, 60]


@pytest.mark.parametrize("stream", [False, True])
def test_measures_without_a_block(stream):
    """The second block, whose shortcut changes the shape, is closed, then gone."""
    plastic = recipe_of(stream=stream, blocks=True).plastic
    assert plastic.group("branches").traced.paths == tuple(f"blocks.{number}.branch" for number in range(3))
    plastic.close("branches", [1])
    for name, number in (("blocks.0.branch.conv1", 2), ("blocks.2.branch.conv1", 4)):
        plastic.close(name, range(number))
    small = plastic.export()
    measured = resnet56.measure(plastic)
    assert measured["params"] == npn.count_params(small, biases=False)
    assert measured["params_with_biases"] == npn.count_params(small)
    assert measured["macs"] == npn.count_macs(small, torch.zeros(1, 3, 32, 32))
    assert measured["architecture"] == "16(14) 32(0) 64(60)"
    assert measured["channels"] == [14, 0, 60] and measured["blocks"] == 2
    plastic.compact()
    assert resnet56.measure(plastic) == measured
    assert plastic.pricing.costs.at("macs", {}) == measured["macs"]


def losing(options):
    """The recipe, but for the second block, which closes in the second plastic epoch."""
    recipe = resnet56.build(options)

    def step(stage, position, batch):
        recipe.step(stage, position, batch)
        if (stage.name, position, batch) == ("plastic", 1, 0):
            recipe.plastic.close("branches", [1])

    return replace(recipe, step=step)


def test_a_run_that_loses_a_block(tmp_path):
    """Interrupted before and after the loss, it ends the same; pictures, table and the saved model know of it."""
    options = ResNetOptions(depth=8, epochs="1,3,1", seed=1, budget=0.9, blocks=True)
    drawn = replace(resnet56.EXPERIMENT, build=losing)
    outcome = runner.run(drawn, options, RunDirectory(tmp_path / "whole"), Recorder())
    assert [row["blocks"] for row in outcome.rows] == [3, 3, 2, 2, 2] and outcome.result["blocks"] == 2
    assert [row["units"].get("blocks.1.branch.conv1") for row in outcome.rows] == [32, 32, None, None, None]
    assert [row["units"]["branches"] for row in outcome.rows] == [3, 3, 2, 2, 2]
    table = (tmp_path / "whole" / "table.md").read_text().splitlines()
    assert [line.split("|")[3].strip() for line in table[2:]] == ["3", "3", "3", "2", "2"]
    assert all((tmp_path / "whole" / name).stat().st_size > 0 for name in ("curves.png", "keep_probability.png"))
    small = npn.load(tmp_path / "whole" / "model.pt", resnet56.ResNet(8))
    assert npn.count_params(small, biases=False) == outcome.result["params"]
    assert npn.count_macs(small, torch.zeros(1, 3, 32, 32)) == outcome.result["macs"]

    undrawn, observer = replace(drawn, draw=lambda *_: []), Disturbed(1, 2)
    for turn in range(2):
        with pytest.raises(Interrupted):
            runner.run(undrawn, options, RunDirectory(tmp_path / "parts"), observer, resume=turn > 0)
    runner.run(undrawn, ResNetOptions(), RunDirectory(tmp_path / "parts"), observer, resume=True)
    assert observer.epochs == list(range(5))
    same(tmp_path / "whole", tmp_path / "parts")


def test_histograms_by_section():
    histograms = {"blocks.3.branch.conv1": [1, 2], "branches": [0, 4], "conv1": [5, 0], "fc.columns": [0, 9]}
    found = figures.by_section(histograms, 2)
    assert found == {
        "blocks of section 1": [0, 0],
        "blocks of section 2": [1, 2],
        "blocks of section 3": [0, 0],
        "branches": [0, 4],
        "streams": [5, 0],
        "inputs of the last layer": [0, 9],
    }


def test_a_budget_is_a_share_of_the_base_in_either_mode():
    base = resnet56.base(8, 10)["zero_padding"]["macs"]
    for mode in ("sparsify", "expand"):
        assert recipe_of(mode=mode).plastic.penalty.bound == int(0.5 * base)
    absolute = recipe_of(budget=3e6, epochs="2,90,2").plastic.penalty
    assert absolute.bound == 3_000_000
    assert absolute.rate == 2 * resnet56.PRICE["rate"], "half the epochs, twice the pace"
    penalty = recipe_of(penalty=1e-9).plastic.penalty
    assert (penalty.cost, penalty.weight) == ("macs", 1e-9)


def test_growth_stops_at_the_base_width_where_there_is_no_budget():
    recipe = recipe_of(mode="expand", stream=True, penalty=1e-9)
    blocks = [f"blocks.{name}" for name in ("0.branch.conv1", "1.branch.conv1", "1.branch.conv2", "2.branch.conv1")]
    names = ["conv1", *blocks, "blocks.2.branch.conv2"]
    assert recipe.plastic.sizes() == {**dict(zip(names, [3, 3, 6, 6, 13, 13], strict=True)), "fc.columns": 13}
    assert recipe.growth.limits == dict(zip(names, [16, 16, 32, 32, 64, 64], strict=True))
    assert recipe.growth.units == {"*": pytest.approx(1.0)}, "five times the pace of a full schedule"
    assert recipe_of(mode="expand", epochs=None).growth.units == {"*": 0.2}


@pytest.mark.parametrize("stream", [False, True])
def test_growth_stops_somewhat_above_the_budget(stream):
    recipe = recipe_of(mode="expand", stream=stream)
    plastic, limits = recipe.plastic, recipe.growth.limits
    plastic.grow({name: limits[name] - plastic.group(name).size for name in limits})
    share = resnet56.measure(plastic)["macs"] / recipe.plastic.penalty.bound
    assert 1.0 < share <= resnet56.OVERSHOOT
    assert all(limit >= 1 for limit in recipe_of(mode="expand", stream=stream, budget=0.2).growth.limits.values())


def test_the_price_waits_for_growth():
    """Growth may go on after the first four of six plastic epochs; the last of them is not followed by any."""
    recipe = recipe_of(mode="expand", budget=0.06, stream=True)
    recipe.growth.limits = {}  # growth has no end of its own
    assert [recipe.grows(recipe.schedule.stages[1], position) for position in range(6)] == [True] * 4 + [False] * 2
    prices = {}
    for stage, _ in training.epochs(recipe, seed=0):
        prices.setdefault(stage.name, []).append(float(recipe.plastic.penalty.multiplier))
    one_step = recipe.plastic.penalty.scale * (math.exp(recipe.plastic.penalty.rate) - 1.0)
    first, rest = prices["plastic"][:4], prices["plastic"][4:]
    assert all(price <= 1.01 * one_step for price in first) and all(price > 2 * one_step for price in rest)


def test_learning_rates_fall_at_the_papers_epochs():
    recipe = recipe_of(epochs=None)
    found = {}
    for epoch in recipe.schedule:
        stage = recipe.schedule.enter(epoch, recipe.plastic)
        start = next(span[1] for span in recipe.schedule.spans() if span[0] == stage.name)
        recipe.step(stage, epoch - start, 0)
        found[epoch] = tuple(o.param_groups[0]["lr"] for o in (recipe.weights, recipe.gates))
    changes = [epoch for epoch in range(1, 220) if found[epoch] != found[epoch - 1]]
    assert changes == [60, 120, 180] and len(found) == 220
    for epoch, weights, gates in ((0, 0.1, 1e-3), (60, 1e-2, 1e-3), (120, 1e-3, 1e-4), (180, 1e-4, 1e-5)):
        assert found[epoch] == pytest.approx((weights, gates))


def test_a_cosine_falls_with_every_step_and_gates_hurry_in_a_short_schedule():
    recipe = recipe_of(decay="cosine", epochs="1,90,1")
    first, plastic, last = recipe.schedule.stages
    recipe.step(first, 0, 0)
    rates = [tuple(o.param_groups[0]["lr"] for o in (recipe.weights, recipe.gates))]
    assert rates[0] == (0.1, 2e-3)
    for stage, position, batch in ((first, 0, 1), (plastic, 45, 0), (last, 0, 2)):
        recipe.step(stage, position, batch)
        rates.append(tuple(o.param_groups[0]["lr"] for o in (recipe.weights, recipe.gates)))
    assert rates[2] == pytest.approx((0.05, 1e-3))
    assert rates[0] > rates[1] > rates[2] > rates[3] and rates[3][0] > 0.0, "three batches of 16 an epoch"
    assert recipe_of(epochs="1,10,1").gates.param_groups[0]["lr"] == 8e-3, "eight times is the most"


def test_the_last_cut_keeps_multiples():
    """As the gates leave them there is nothing to round; with one that has closed, its set goes."""
    recipe = recipe_of(mode="sparsify", epochs="1,1,1", budget=0.9, round_to=4)
    names = [group.name for group in recipe.plastic.groups if group.name.startswith("blocks.")]
    for stage, _ in training.epochs(recipe, seed=0):
        if stage.name == "plastic":
            recipe.plastic.close(names[0], [0])
    sizes = recipe.plastic.sizes()
    assert sizes[names[0]] < 16 and all(sizes[name] % 4 == 0 for name in names), sizes


def test_a_rounding_that_cannot_be():
    with pytest.raises(ConfigurationError, match=r"^round_to must be .*got 0"):
        recipe_of(round_to=0)


def test_a_decay_that_there_is_not():
    with pytest.raises(ConfigurationError) as error:
        recipe_of(decay="linear")
    assert str(error.value) == "decay must be one of 'steps', 'cosine', got 'linear'"


def test_plain_nets_train_in_one_stage_and_keep_their_size(tmp_path):
    base = resnet56.base(8, 10)["zero_padding"]
    for mode, most in (("dense", 1.0), ("scratch", 0.5)):
        options = ResNetOptions(mode=mode, depth=8, epochs="2")
        outcome = run(tmp_path / mode, options)
        assert [(row["stage"], row["k"]) for row in outcome.rows] == [("train", "inf")] * 2
        assert 0.45 * base["macs"] < outcome.result["macs"] <= most * base["macs"]
        assert outcome.result["macs"] == outcome.rows[0]["macs"]
    assert outcome.result["options"]["budget"] == 0.5
    with pytest.raises(ConfigurationError, match="one number of at least 1, got"):
        recipe_of(mode="dense", epochs="1,2,1")


def test_a_plain_net_is_the_widest_within_its_budget():
    def macs(width):
        return npn.count_macs(resnet56.ResNet(20, width=width, stream=False).eval(), torch.zeros(1, 3, 32, 32))

    budget = 0.3 * macs(1.0)
    width = sizes.plain_width(20, 10, budget)
    assert macs(width) <= budget < macs(width + 1 / 64)
    assert sizes.plain_width(20, 10, 1.0) == 1 / 64, "one channel at least"


def test_a_checkpoint_is_the_weights_their_momentum_and_little_else(tmp_path):
    """8 bytes per parameter: 6.8 MB for ResNet-56, 13.9 MB for ResNet-110."""
    recipe = recipe_of(depth=20)
    for parameter in recipe.plastic.weights():
        parameter.grad = torch.zeros_like(parameter)
    recipe.weights.step()  # now there is momentum to keep
    npn.save(tmp_path / "c.pt", recipe.plastic)
    size = (tmp_path / "c.pt").stat().st_size
    assert 1.0 < size / (8 * npn.count_params(recipe.plastic.model)) < 1.15
