"""The GPT: model, sizes, both modes on a little text, and stops that change nothing."""

import math
from dataclasses import replace

import pytest
import torch

import npn
from npn.errors import ConfigurationError
from npn.experiments.engine import runner, training
from npn.experiments.engine.recipe import Experiment
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.engine.stopping import Interrupted
from npn.experiments.language import recipe as language
from npn.experiments.language.model import GPT, HEAD, rotated
from npn.experiments.language.options import LanguageOptions
from npn.experiments.language.sizes import BRANCHES, macs, measure, plain

from .conftest import Recorder
from .test_resnet56 import Disturbed, same

UNDRAWN = Experiment(**{**vars(language.EXPERIMENT), "draw": lambda *_: []})
BUDGETS = {"sparsify": 0.6, "expand": 0.9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of words that follow each other in a fixed order."""
    path = tmp_path_factory.mktemp("text")
    for i in range(8):
        (path / f"{i}.txt").write_text(f"one two three four {i}\n" * 8)
    return path


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Few windows in small batches."""
    monkeypatch.setattr(language, "WINDOWS", 16)
    monkeypatch.setattr(language, "HELD_OUT", 4)
    monkeypatch.setattr(language, "WARMUP", 2)


def options(folder, mode="sparsify", **more):
    given = {"width": 64, "layers": 2, "context": 16, "epochs": "2,4,1", "text": str(folder)} | more
    return LanguageOptions(mode=mode, **given)


def built(*args, **more):
    given = options(*args, **more)
    torch.manual_seed(0)
    return language.build(given.over(language.defaults(given)))


def drawn_anew(model):
    """Without branches that are nothing at the start."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


# -- model


def test_products_of_rotated_vectors_depend_on_the_distance_only():
    q, k = torch.randn(2, HEAD).expand(7, 2, HEAD).transpose(0, 1)
    products = rotated(q) @ rotated(k).T
    for distance in range(-6, 7):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along))
    assert products[0].unique().numel() == 7
    torch.testing.assert_close(rotated(q).norm(dim=-1), q.norm(dim=-1))


@pytest.mark.parametrize(("norm", "positions"), [("rms", "rotary"), ("layer", "learned")])
def test_logits_see_no_later_byte(norm, positions):
    torch.manual_seed(0)
    model = drawn_anew(GPT(64, 2, norm=norm, positions=positions, context=12))
    ids = torch.randint(256, (1, 12))
    other = ids.clone()
    other[0, 7] += 1
    one, two = model(ids), model(other)
    torch.testing.assert_close(one[:, :7], two[:, :7])
    assert (one[:, 7:] - two[:, 7:]).abs().amax((0, 2)).min() > 1e-4


def test_a_branch_opens_without_changing_the_function_and_then_learns():
    torch.manual_seed(0)
    model, ids = GPT(64, 2), torch.randint(256, (2, 9))
    plastic = npn.attach(model, ids[:1], branches=BRANCHES)
    before = model(ids)
    plastic.close("branches", [2, 3])
    torch.testing.assert_close(model(ids), before, rtol=0, atol=0)
    plastic.backward(lambda: model(ids).square().mean())
    assert not model.blocks[1].mlp.out.weight.grad.any()
    plastic.open("branches", [3])
    torch.testing.assert_close(model(ids), before, rtol=0, atol=0)
    plastic.backward(lambda: model(ids).square().mean())
    assert model.blocks[1].mlp.out.weight.grad.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"norm": "batch"}, "norm must be one of 'rms', 'layer', got 'batch'"),
        ({"positions": "sine"}, "positions must be one of 'rotary', 'learned', got 'sine'"),
        ({"width": 100}, "width must be a multiple of 32, the width of a head, got 100"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
    ],
)
def test_settings_that_there_are_not(wrong, message):
    with pytest.raises(ConfigurationError) as error:
        GPT(**wrong)
    assert str(error.value) == message


# -- sizes


@pytest.mark.parametrize(("norm", "positions"), [("rms", "rotary"), ("layer", "learned")])
def test_sizes_are_those_of_the_exported_network(norm, positions):
    torch.manual_seed(0)
    model, ids = drawn_anew(GPT(64, 3, norm=norm, positions=positions, context=20)), torch.randint(256, (1, 20))
    plastic = npn.attach(model, ids, branches=BRANCHES)
    counted = []
    for closed in ({}, {"blocks.0.mlp.up": range(100), "blocks.1.attention.query": [1]}, {"branches": [0, 3]}):
        for name, units in closed.items():
            plastic.close(name, units)
        small, found = plastic.export(), measure(plastic, context=20)
        assert found["macs"] == npn.count_macs(small, ids)
        assert found["params_with_biases"] == npn.count_params(small)
        assert found["params"] == sum(p.numel() for p in small.parameters() if p.dim() > 1)
        counted.append((found["architecture"], found["blocks"]))
    assert counted == [
        ("2(256) 2(256) 2(256)", 3), ("2(156) 1(256) 2(256)", 3), ("0(156) 1(0) 2(256)", 3)
    ]  # fmt: skip
    plastic.compact()
    assert measure(plastic, context=20) == found, "the same, once it is removed"


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_plain_net_uses_its_budget_up(share):
    most = share * macs(160, [(5, 640)] * 6, 256)
    heads, hidden = plain(160, 6, 256, most)
    assert macs(160, [(heads, hidden)] * 6, 256) <= most < macs(160, [(heads, hidden + 1)] * 6, 256)
    assert abs(heads / 5 - hidden / 640) < 1 / 4


# -- training


def test_windows_follow_from_seed_and_epoch(folder):
    data = built(folder).data
    assert len(data.train) > data.epoch == 16

    def order(seed, epoch):
        return torch.cat([x for x, _ in training.shuffled(data, 5, seed, epoch)])

    assert order(0, 3).shape == (16, 16)
    torch.testing.assert_close(order(0, 3), order(0, 3))
    assert not torch.equal(order(0, 3), order(0, 4)) and not torch.equal(order(0, 3), order(1, 3))


def test_bits_per_byte_are_the_loss_in_bits(folder):
    recipe = built(folder)
    model, validation = drawn_anew(recipe.plastic.model), recipe.data.validation
    row = training._measured(recipe, 0, recipe.schedule.stages[0], 0.0)
    logits = model(validation.x)
    picked = logits.log_softmax(-1).gather(-1, validation.y.unsqueeze(-1))
    assert row["validation_loss"] == pytest.approx(-picked.mean().item(), rel=1e-5)
    assert row["validation_bits_per_byte"] == pytest.approx(row["validation_loss"] / math.log(2.0))
    assert "accuracy" not in row and row["bits_per_byte"] != row["validation_bits_per_byte"]


@pytest.mark.parametrize("mode", ["sparsify", "expand"])
def test_a_run_follows_its_budget_and_resumes_exactly(tmp_path, folder, mode, monkeypatch):
    monkeypatch.setattr(language, "GATE_LEARNING_RATE", 0.2)
    chosen = options(folder, mode, seed=1, budget=BUDGETS[mode])
    outcome = runner.run(UNDRAWN, chosen, RunDirectory(tmp_path / "whole"), Recorder())
    result, rows = outcome.result, outcome.rows
    whole = result["base"]["macs"]
    assert rows[-2]["bound"] == pytest.approx(BUDGETS[mode] * whole)
    assert rows[-2]["macs"] < whole and rows[-2]["stage"] == "plastic"
    assert result["macs"] == result["stages"][-1]["macs"]
    assert result["bits_per_byte"] < rows[0]["bits_per_byte"] < 8.1
    assert result["text"]["folder"] == str(folder) and len(result["text"]["sha256"]) == 64
    if mode == "expand":
        assert rows[-1]["params"] > rows[0]["params"]
        assert [row["units"]["branches"] for row in rows[:2]] == [2, 4], "the second block opens in the first stage"
        grown = [row["units"].get("blocks.0.mlp.up", 0) for row in rows]
        assert rows[0]["units"]["blocks.0.attention.query"] == 2 and grown[0] == grown[2] < max(grown)
    stopped = RunDirectory(tmp_path / "stopped")
    with pytest.raises(Interrupted):
        runner.run(UNDRAWN, chosen, stopped, Disturbed(3))
    runner.run(UNDRAWN, chosen, stopped, Recorder(), resume=True)
    same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("epochs", ["2,2,1", "1,3,1"])
def test_growth_without_a_budget_reaches_the_full_size(folder, epochs):
    recipe = built(folder, "expand", width=96, layers=1, epochs=epochs)
    assert recipe.plastic.sizes() == {"blocks.0.attention.query": 2, "blocks.0.mlp.up": 77, "branches": 2}
    units = [row["units"] for _, row in training.epochs(recipe, 0)]
    assert units[-1] == {"blocks.0.attention.query": 3, "blocks.0.mlp.up": 384, "branches": 2}
    first = int(epochs[0])
    assert [row["blocks.0.mlp.up"] for row in units[:first]] == [77] * first, "grows in the plastic stage"


def test_branches_have_gates_where_they_are_asked_for_and_in_growth(folder):
    for mode, more, expected in (
        ("sparsify", {}, False),
        ("sparsify", {"blocks": True}, True),
        ("expand", {}, True),
        ("dense", {}, False),
    ):
        sizes = built(folder, mode, **({"epochs": "1"} if mode == "dense" else {}), **more).plastic.sizes()
        assert ("branches" in sizes) == expected and sizes["blocks.0.mlp.up"] > 0


def test_the_sizes_that_a_run_found_are_trained_with_new_weights(tmp_path, folder):
    small, directory = built(folder, blocks=True).plastic, RunDirectory(tmp_path)
    drawn_anew(small.model)
    small.close("blocks.0.mlp.up", range(200))
    small.close("branches", [2])
    directory.start(options(folder))
    npn.save(directory.model_file, small.export())
    directory.finish({"experiment": "gpt-text"})
    recipe = built(folder, "scratch", like=str(tmp_path), epochs="1")
    assert measure(recipe.plastic, 16)["architecture"] == "2(56) 0(256)"
    assert not recipe.plastic.model.blocks[0].mlp.out.weight.any()
    assert recipe.plastic.model.blocks[0].mlp.up.weight.std().item() == pytest.approx(0.02, rel=0.1)
    with pytest.raises(ConfigurationError, match=r"^like names a run whose sizes \"scratch\" trains anew, got it for"):
        built(folder, "dense", like=str(tmp_path))


def test_weights_of_matrices_decay_and_the_rate_falls_to_nothing(folder):
    recipe = built(folder, "dense", epochs="3")
    decayed, free = recipe.weights.param_groups
    assert {p.dim() for p in decayed["params"]} == {2} and {p.dim() for p in free["params"]} == {1}
    assert (decayed["weight_decay"], free["weight_decay"]) == (language.WEIGHT_DECAY, 0.0)
    stage, rates = recipe.schedule.stages[0], []
    for position, batch in ((0, 0), (0, 1), (1, 0), (2, 1)):
        recipe.step(stage, position, batch)
        rates.append(decayed["lr"] / language.LEARNING_RATE)
    cosine = [0.5 * (1 + math.cos(math.pi * done / 6)) for done in (0, 1, 2, 5)]
    assert rates == pytest.approx([0.5 * cosine[0], *cosine[1:]])


def test_sample_takes_every_setting(folder):
    given = replace(options(folder, norm="layer", positions="learned"), device="cuda")
    model, ids = language.sample(given.over(language.defaults(given)))
    assert model(ids).shape == (2, 16, 256) and model.positions.weight.shape == (16, 64)
