"""What `npn bench estimators` measures, against a gradient known exactly, and its files from a tiny run."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn
from npn.errors import ConfigurationError
from npn.experiments.engine import runner
from npn.experiments.engine.options import Options
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.engine.timing import interleaved
from npn.experiments.estimators import bench as estimators
from npn.experiments.estimators import gradients
from npn.experiments.lenet5 import recipe as lenet5
from npn.functional import exact_gradient

from .conftest import Recorder, squares

K = 2.0


@pytest.fixture(scope="module")
def tiny():
    """Six hidden units, their gates off centre, one batch, and the true gradient of the logits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    x, y = torch.randn(16, 3), torch.randint(0, 2, (16,))
    plastic = npn.attach(model, x)
    plastic.k = K
    with torch.no_grad():
        plastic.logits()[0].copy_(torch.linspace(-0.6, 0.9, 6))
        model[2].weight.mul_(4)
    hidden = torch.tanh(model[0](x)).detach()

    def loss_of(mask):
        return F.cross_entropy(F.linear(hidden * mask, model[2].weight, model[2].bias), y).detach()

    truth = exact_gradient(loss_of, plastic.logits()[0], K).double()
    return plastic, lambda net: F.cross_entropy(net(x), y), truth


@pytest.fixture(scope="module")
def reference(tiny):
    """Many draws of an unbiased estimator; the first of them are those of a smaller number."""
    plastic, loss, _ = tiny
    return gradients.draws(plastic, loss, "double_cv", 2500, seed=1)


@pytest.mark.parametrize("name", gradients.UNBIASED)
def test_many_draws_of_an_unbiased_estimator_are_the_true_gradient(tiny, reference, name):
    plastic, loss, truth = tiny
    found = reference[:600] if name == "double_cv" else gradients.draws(plastic, loss, name, 600, seed=1)
    error = (found.var(0) / len(found)).sqrt()
    assert found.shape == (600, 6)
    assert (found.mean(0) - truth).abs().le(4.5 * error + 1e-6).all()
    assert error.norm() < 0.5 * truth.norm(), "else the line above says nothing"


def test_measured_bias_is_noise_for_the_unbiased_and_the_true_one_for_straight_through(tiny, reference):
    plastic, loss, truth = tiny
    unbiased = gradients.quality(gradients.draws(plastic, loss, "double_cv", 400, seed=2), reference)
    assert unbiased["norm"] == pytest.approx(float(truth.norm()), rel=0.1)
    assert unbiased["bias"] < 2 * unbiased["floor"]
    singles = gradients.draws(plastic, loss, "straight_through", 1500, seed=2)
    biased = gradients.quality(singles, reference)
    expected = float((singles.mean(0) - truth).norm() / truth.norm())
    assert biased["excess"] == pytest.approx(expected, abs=2 * biased["floor"])
    assert biased["bias"] > 3 * biased["floor"]
    cosine = F.cosine_similarity(singles, truth[None], dim=1).mean()
    assert biased["cosine"] == pytest.approx(float(cosine), abs=0.05)


def test_draws_leave_weights_gates_gradients_and_masks_alone(tiny):
    plastic, loss, _ = tiny
    before = [p.detach().clone() for p in (*plastic.weights(), *plastic.logits())]
    generator, kind = plastic.gates.generator.get_state(), plastic.estimator
    first = gradients.draws(plastic, loss, "arm", 4, seed=5)
    assert torch.equal(first, gradients.draws(plastic, loss, "arm", 4, seed=5))
    assert not torch.equal(first, gradients.draws(plastic, loss, "arm", 4, seed=6))
    after = (*plastic.weights(), *plastic.logits())
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))
    assert torch.equal(plastic.gates.generator.get_state(), generator) and plastic.estimator == kind


def test_quality_of_draws_with_known_moments():
    generator = torch.Generator().manual_seed(0)
    g = torch.tensor([3.0, 4.0], dtype=torch.float64)

    def draw(count, centre):
        noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
        return centre + 2 * (noise - noise.mean(0)) / noise.std(0)  # the moments are these without sampling error

    found = gradients.quality(draw(2000, g + torch.tensor([1.0, 0.0])), draw(2000, g))
    assert found["variance"] == pytest.approx(8 / 25, rel=0.01)  # two axes of variance 4
    assert found["excess"] == pytest.approx(1 / 5, rel=0.01)
    assert found["reference_error"] == pytest.approx(math.sqrt(8 / 2000) / 5, rel=0.01)


def test_no_bias_is_claimed_that_chance_explains():
    generator = torch.Generator().manual_seed(3)
    spread = torch.linspace(0.1, 2.0, 40, dtype=torch.float64)  # fewer draws than units, and not all alike

    def draw(count, centre=0.0):
        return 1.0 + centre + spread * torch.randn(count, 40, generator=generator, dtype=torch.float64)

    claims = [gradients.quality(draw(20), draw(30))["excess"] > 0 for _ in range(200)]
    assert sum(claims) < 20, "beyond two standard errors in a few of 200 cases"
    assert all(gradients.quality(draw(20, 0.5), draw(30))["excess"] > 0 for _ in range(20))


def test_a_reference_that_is_all_noise_says_so():
    generator = torch.Generator().manual_seed(2)
    found = gradients.quality(torch.ones(3, 2), torch.randn(4, 2, generator=generator))
    reference = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert found["norm"] is not None
    found = gradients.quality(torch.ones(3, 2), reference)
    assert found["norm"] == 0.0 and found["variance"] is None and found["bias"] is None


def test_the_groups_share_the_variance(tiny):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(8, 3)
    plastic = npn.attach(model, x)
    plastic.k = K
    reference = gradients.draws(plastic, lambda net: net(x).square().mean(), "reinmax", 50, seed=1)
    found = gradients.by_group(plastic, reference[:20], reference[20:])
    assert list(found) == ["all", "0", "2"]
    total = sum(found[name]["variance"] * found[name]["norm"] ** 2 for name in ("0", "2"))
    assert total == pytest.approx(found["all"]["variance"] * found["all"]["norm"] ** 2)


def digits(folder=None):
    return squares(128, 30)


def test_the_bench_writes_its_files_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(lenet5, "mnist", digits)
    monkeypatch.setattr(lenet5, "FULL", (4, 6, 20))
    monkeypatch.setattr(gradients, "interleaved", partial(interleaved, repeats=1, warmup=0))
    trained = []

    def train(experiment, options, path, resume):
        trained.append(path.name)
        experiment = replace(experiment, draw=lambda path, outcome: [])  # pictures take most of the time
        runner.run(experiment, options, RunDirectory(path), Recorder(), resume=resume)

    how = estimators.Settings(draws=3, reference=6, batches=1, rounds=1)
    arguments = (Options(epochs="1,3,1", budget=400.0), [0], ["double_cv"], how, train)
    files = estimators.bench(tmp_path / "out", tmp_path / "runs", *arguments)
    assert [file.suffix for file in files] == [".json", ".md", ".png"]
    summary = json.loads(files[0].read_text())
    assert list(summary["moments"]) == ["start", "middle", "end"]
    for found in summary["moments"].values():
        assert list(found["quality"]) == list(gradients.ESTIMATORS)
        assert list(found["quality"]["arm"]) == ["all", "conv1", "conv2", "fc1", "fc1.columns"]
        assert found["k"] == 7.0 and set(found["reference"]["estimator"]) <= set(gradients.UNBIASED)
    found = [(row["protocol"], row["estimator"]) for row in summary["runs"]]
    assert found == [("equal epochs", "double_cv"), ("equal time", "double_cv")]
    assert "| equal time | double_cv |" in files[1].read_text()
    assert "moments" in trained and "double_cv-1-3-1-0" in trained
    done = list(trained)
    estimators.bench(tmp_path / "out", tmp_path / "runs", *arguments)
    assert trained == done
    estimators.bench(tmp_path / "out", tmp_path / "runs", *arguments[:2], ["reinmax"], *arguments[3:])
    assert trained == done, "the run of the moments is one of those compared"
    with pytest.raises(ConfigurationError, match=r"moments holds a run with other settings: expected .*budget=401.0"):
        other = (replace(arguments[0], budget=401.0), *arguments[1:])
        estimators.bench(tmp_path / "out", tmp_path / "runs", *other)
    (tmp_path / "runs" / "moments" / "middle.npn").unlink()
    with pytest.raises(
        ConfigurationError, match=r"moments holds a finished run that kept no state for middle: not one"
    ):
        estimators.bench(tmp_path / "out", tmp_path / "runs", *arguments)


def test_unknown_estimators_and_too_few_draws_are_refused(tmp_path):
    with pytest.raises(
        ConfigurationError,
        match=r"^estimators must be among arm, disarm, rloo, double_cv, straight_through, reinmax, got 'best'$",
    ):
        estimators.bench(tmp_path, tmp_path, Options(), [0], ["best"], estimators.Settings(), lambda *_: None)
    with pytest.raises(ConfigurationError, match=r"^draws must be at least 2, got 1$"):
        estimators.Settings(draws=1)


def test_equal_time_shortens_the_plastic_stage_alone():
    assert estimators.shortened([3, 10, 5], 2.0) == [3, 5, 5]
    assert estimators.shortened([3, 10, 5], 0.9) == [3, 10, 5]
    assert estimators.shortened([3, 1, 5], 9.0) == [3, 1, 5]
