"""What a training costs in multiply-adds, and losses with a teacher."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import npn
from npn.errors import ConfigurationError
from npn.experiments.engine import runner
from npn.experiments.engine.building import redrawn
from npn.experiments.engine.options import Options
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.engine.teaching import distillation, taught, untaught
from npn.experiments.engine.training import epochs
from npn.experiments.engine.training_cost import passes
from npn.experiments.lenet5 import recipe as lenet5
from npn.experiments.lenet5.options import LeNetOptions
from npn.experiments.moons import recipe as moons

from .conftest import Recorder, squares, unrendered


def test_passes_of_each_estimator():
    plastic = npn.Stage("plastic", 1, k=7.0)
    found = {
        name: passes(plastic, name) for name in ("arm", "disarm", "rloo", "double_cv", "straight_through", "reinmax")
    }
    assert found == {"arm": 4, "disarm": 4, "rloo": 4, "double_cv": 6, "straight_through": 3, "reinmax": 3}
    assert passes(npn.Stage("rest", 1, k=0.0), "arm") == 3


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A finished run that shrinks, the teacher and the model of others."""
    folder = tmp_path_factory.mktemp("lenet5") / "sparsify"
    with pytest.MonkeyPatch.context() as patch, unrendered():
        patch.setattr(lenet5, "mnist", lambda folder: squares(48, 60))
        patch.setattr(lenet5, "BATCH_SIZE", 8)
        patch.setattr(lenet5, "GATE_LEARNING_RATE", 0.1)  # gates that move within the few steps of a test
        outcome = runner.run(
            lenet5.EXPERIMENT,
            LeNetOptions(mode="sparsify", seed=0, epochs="1,4,2", budget=20_000.0, estimator="arm"),
            RunDirectory(folder),
            Recorder(),
        )
    return folder, outcome


def test_epochs_cost_what_the_network_of_that_epoch_costs(small):
    _, outcome = small
    rows = outcome.rows
    dense = 2_293_000
    assert [row["training_macs"] for row in rows[:2]] == [3 * 48 * dense, 4 * 48 * dense], "pre-training; arm"
    assert rows[-1]["training_macs"] == 3 * 48 * outcome.result["macs"] < 3 * 48 * dense / 2, "as small as it is"
    assert outcome.result["training_macs"] == sum(row["training_macs"] for row in rows)


def test_a_net_of_the_found_widths_is_trained_anew(small, tmp_path, monkeypatch):
    folder, found = small
    monkeypatch.setattr(lenet5, "mnist", lambda folder: squares(128, 60))
    options = LeNetOptions(mode="scratch", seed=1, epochs="1", like=str(folder), teacher=str(folder), augment=True)
    with unrendered():
        outcome = runner.run(lenet5.EXPERIMENT, options, RunDirectory(tmp_path), Recorder())
    for key in ("architecture", "params", "params_with_biases", "macs"):
        assert outcome.result[key] == found.result[key]


def test_like_is_for_scratch(small):
    with pytest.raises(ConfigurationError, match=r"^like names a run whose widths \"scratch\" trains anew, got it for"):
        options = LeNetOptions(mode="dense", like=str(small[0]))
        lenet5.build(options.over(lenet5.defaults(options)))


def test_redrawn_weights_have_the_usual_spread():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 50, 5), nn.BatchNorm2d(50), nn.Flatten(), nn.Linear(200, 80))
    select = nn.Module()
    select.weight, select.bias = nn.Parameter(torch.zeros(300, 64)), nn.Parameter(torch.ones(300))
    model.append(select)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9.0)
    redrawn(model)
    assert float(model[3].weight.std()) == pytest.approx(1 / math.sqrt(3 * 200), rel=0.05)
    assert float(select.weight.std()) == pytest.approx(1 / math.sqrt(3 * 64), rel=0.05)
    assert float(select.bias.abs().max()) <= 1 / 8 and bool((model[1].weight == 1).all())


def test_distillation_mixes_labels_and_answers():
    torch.manual_seed(0)
    s, t, y = torch.randn(5, 4), torch.randn(5, 4), torch.randint(4, (5,))
    p, q = (s / 3).softmax(1), (t / 3).softmax(1)
    divergence = float((q * (q.log() - p.log())).sum(1).mean())
    expected = 0.4 * float(F.cross_entropy(s, y)) + 0.6 * 9 * divergence
    assert float(distillation(s, t, y, 0.6, 3.0)) == pytest.approx(expected, rel=1e-5)
    assert float(distillation(s, t, y, 0.0, 3.0)) == pytest.approx(float(untaught(s, t, y)))


def test_the_teacher_does_not_learn():
    teacher, x = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), torch.randn(6, 4)
    loss, logits = taught(teacher), torch.randn(6, 3, requires_grad=True)
    first = loss(logits, x, torch.zeros(6, dtype=torch.long))
    first.backward()
    assert float(loss(logits, x, torch.zeros(6, dtype=torch.long))) == float(first), "in eval mode"
    assert all(parameter.grad is None for parameter in teacher.parameters()) and logits.grad is not None


def test_gates_start_from_scores_when_the_plastic_stage_begins(tmp_path):
    options = Options(mode="sparsify", seed=0, epochs="1,1,1", penalty=0.0, start_from="magnitude")
    recipe = moons.build(options.over(moons.defaults(options)))
    recipe.gates.param_groups[0]["lr"] = 0.0
    stages = epochs(recipe, 0)
    next(stages)
    hidden = recipe.plastic.groups[-1]
    assert hidden.gate.logits.unique().numel() == 1, "all alike before"
    scores = npn.importance(recipe.plastic, "magnitude")[hidden.name]
    next(stages)
    kept = hidden.gate.keep_probability()
    assert torch.equal(kept.argsort(), scores.argsort()) and float(kept.mean()) == pytest.approx(0.95, abs=1e-3)


def test_a_start_that_there_is_not():
    expected = r"^start_from must be one of 'magnitude', 'taylor', 'fisher', 'bn_scale', 'random', got 'size'$"
    with pytest.raises(ConfigurationError, match=expected):
        moons.build(Options(start_from="size").over(moons.defaults(Options())))
