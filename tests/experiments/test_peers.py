"""The comparison of methods: each meets its budget on equal terms, resumes, and is tuned on validation data."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import npn
from npn.errors import ConfigurationError
from npn.experiments.data.splits import Data, Split
from npn.experiments.engine import runner
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.engine.runner import Interrupted
from npn.experiments.lenet300.model import LeNet300
from npn.experiments.peers import networks, outside, recipe
from npn.experiments.peers.arms import COMMON, KINDS, NAMES
from npn.experiments.peers.cutting import even_share, threshold
from npn.experiments.peers.options import PeerOptions
from npn.experiments.peers.runs import torch_pruning_problem

from .conftest import Recorder
from .test_runner import Disturbed, interrupt, same_result

PLAIN = networks.NETWORKS["lenet300"].plain
EXAMPLES, BATCH, EPOCHS = 96, 16, "1,4,1"


DENSE = 9 * 12 + 9 * 12 * 16 + 3 * 16  # weights
MACS = 16 * 9 * 12 + 4 * 9 * 12 * 16 + 3 * 16


class Small(nn.Module):
    """Two convolutions with BatchNorm and a linear layer, on (B, 1, 6, 6)."""

    def __init__(self, first=12, second=16):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, first, 3), nn.BatchNorm2d(first)
        self.conv2, self.bn2 = nn.Conv2d(first, second, 3), nn.BatchNorm2d(second)
        self.fc = nn.Linear(second, 3)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def weights(first, second):
    return 9 * first + 9 * first * second + 3 * second


def data(folder=None):
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        y = torch.arange(count) % 3
        x = torch.randn(count, 1, 6, 6, generator=generator)
        x[torch.arange(count), 0, y] += 2.0
        return Split(x, y)

    return Data(draw(EXAMPLES), draw(30), draw(30), classes=3)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    network = replace(
        networks.NETWORKS["lenet300"],
        full=Small,
        plain=lambda scale: Small(max(1, round(12 * scale)), max(1, round(16 * scale))),
        data=data,
        shape=(1, 6, 6),
        last="fc",
        batch_size=BATCH,
        budgets=(0.3,),
    )
    monkeypatch.setitem(networks.NETWORKS, "lenet300", network)
    return network


def train(path: Path, mode: str, observer=None, resume=False, **settings):
    options = PeerOptions(mode=mode, network="lenet300", seed=1, epochs=EPOCHS, **settings)
    return runner.run(recipe.EXPERIMENT, options, RunDirectory(path), observer or Recorder(), resume=resume)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A whole run of a method, made once: its outcome and its folder."""

    @cache
    def of(mode):
        path = tmp_path_factory.mktemp(mode)
        return train(path, mode), path

    return of


ALONE = [name for name in NAMES if KINDS[name].role != "second"]


@pytest.mark.parametrize("mode", ALONE)
def test_every_method_meets_the_budget_in_the_same_steps(trained, mode):
    outcome, path = trained(mode)
    result = outcome.result
    assert 0.05 * result["full"] < result["params"] <= 1.02 * 0.3 * result["full"]  # npn.prune's tolerance
    assert sum(stage["epochs"] for stage in result["stages"]) == 6
    if mode == "dependent":  # its export has gates of its own
        return
    small = npn.load(path / "model.pt", Small())
    nonzero = sum(int(p.count_nonzero()) for p in small.parameters() if p.dim() > 1)
    assert nonzero <= result["params"], "what counts as closed is zero in the exported network"
    if not KINDS[mode].single:
        assert npn.count_params(small, biases=False) == result["params"], "closed units are gone"


@pytest.mark.parametrize(
    "mode", ["hard-concrete", "dependent", "targeted-dropout", "gradual-taylor", "magnitude-weights", "rigl"]
)
def test_an_interrupted_run_ends_the_same(trained, tmp_path, mode):
    _, whole = trained(mode)
    stopping, part = Disturbed({0, 2, 4}, interrupt), tmp_path
    for turn in range(3):
        with pytest.raises(Interrupted):
            train(part, mode, stopping, resume=turn > 0)
        torch.manual_seed(999)
    train(part, mode, stopping, resume=True)
    same_result(RunDirectory(whole), RunDirectory(part))


def test_scores_on_training_data_cost_multiply_adds(trained):
    taylor, magnitude = (trained(f"gradual-{name}")[0].rows for name in ("taylor", "magnitude"))
    assert taylor[0]["training_macs"] == magnitude[0]["training_macs"] == 3 * EXAMPLES * MACS
    steps = EXAMPLES // BATCH * 4
    assert max(1, round(0.8 * steps / 16)) == 1, "a cut in every step of the path"
    more = taylor[1]["training_macs"] - magnitude[1]["training_macs"]
    assert more > 5 * 3 * EXAMPLES * 0.2 * MACS, "six scores of all examples, at more than the budget's size"


def test_the_smallest_weights_go_along_a_cubic_path(tmp_path):
    rows = train(tmp_path, "magnitude-weights", settings={"learning_rate": 1, "weight_decay": 1, "cuts": 5}).rows
    aim, steps, each = 0.3 * DENSE, EXAMPLES // BATCH * 4, 4  # five cuts on 0.8 of 24 steps, one more at the end
    for epoch, row in enumerate(rows[1:5], 1):
        done = min(1, epoch * EXAMPLES // BATCH // each / 5) if epoch * EXAMPLES // BATCH < steps else 1
        assert row["params"] <= aim + (DENSE - aim) * (1 - done) ** 3 + 1
    assert rows[1]["params"] > 0.5 * DENSE and rows[0]["params"] == DENSE


def test_a_net_of_the_found_widths(trained, tmp_path):
    outcome, path = trained("reinmax")
    found, result = outcome.result, train(tmp_path, "found", like=str(path)).result
    assert result["architecture"] == found["architecture"] and result["training_macs"] < found["training_macs"]


def test_the_order_of_batches_and_the_rate_go_on_after_the_run_that_is_continued(tmp_path, monkeypatch):
    class Still:
        regularize = staticmethod(lambda model: None)

    monkeypatch.setattr(outside, "pruner", lambda *_: Still)
    monkeypatch.setattr(outside, "pruned", lambda model, *_: model)
    train(tmp_path / "first", "group-sparsity", settings={"learning_rate": 1, "weight_decay": 1, "strength": 0.1})
    start = {"start": str(tmp_path / "first")}
    second = train(tmp_path / "second", "torch-pruning", **start)
    assert second.result["before"]["training_macs"] == 5 * 3 * EXAMPLES * MACS
    options = PeerOptions(mode="torch-pruning", epochs=EPOCHS, **start)
    made = recipe.build(options.over(recipe.defaults(options)))
    made.step(made.schedule.stages[0], 0, 3)
    assert made.epochs_before == 5
    assert made.weights.param_groups[0]["lr"] == pytest.approx(2e-3 * 0.5), "half of the last stage is over"


def test_torch_pruning_prunes_to_the_budget():
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    model, example = Small(), torch.randn(2, 1, 6, 6)
    dense = outside.pruner(model, example, "fc", strength=0.1)
    model(example).sum().backward()
    before = model.conv2.weight.grad.clone()
    dense.regularize(model)
    assert not torch.equal(model.conv2.weight.grad, before)
    small = outside.pruned(model, example, "fc", 0.3 * DENSE)
    assert npn.count_params(small, biases=False) <= 0.3 * DENSE and small(example).shape == (2, 3)


def test_what_torch_pruning_cannot_do_is_told_before_any_run(monkeypatch):
    """Seen with its release 1.6.1 on shortcuts that pad channels."""
    example = torch.randn(2, 1, 6, 6)

    class Fails:
        def step(self):
            raise IndexError("index 32 is out of bounds")

    monkeypatch.setattr(outside, "pruner", lambda *_: Fails())
    assert outside.problem(Small(), example, "fc") == "fails on this network (IndexError: index 32 is out of bounds)"
    monkeypatch.setattr(outside, "pruner", lambda *_: SimpleNamespace(step=lambda: None))
    assert outside.problem(Small(), example, "fc") is None
    monkeypatch.setattr(outside, "installed", lambda: False)
    torch_pruning_problem.cache_clear()
    assert torch_pruning_problem("lenet300") == 'not installed: pip install "npn[peers]"'
    torch_pruning_problem.cache_clear()


@pytest.mark.parametrize("mode", ["reinmax", "gradual-fisher"])
def test_half_precision(tmp_path, mode):
    result = train(tmp_path, mode, precision="bf16").result
    assert result["params"] <= 0.3 * result["full"]
    assert all(p.dtype is torch.float32 for p in npn.load(tmp_path / "model.pt", Small()).parameters())


def test_methods_that_are_not_there():
    options = PeerOptions(mode="shrink")
    with pytest.raises(ConfigurationError, match=r"^mode must be one of reinmax, arm, .*, got 'shrink'$"):
        recipe.defaults(options)
    with pytest.raises(ConfigurationError, match=r"^network must be one of lenet300, lenet5, resnet20, got 'vgg'$"):
        recipe.defaults(PeerOptions(network="vgg"))
    options = PeerOptions(mode="arm", precision="fp16")
    with pytest.raises(ConfigurationError, match=r"^precision must be 'fp32' or 'bf16', got 'fp16': no method here"):
        recipe.build(options.over(recipe.defaults(options)))
    options = PeerOptions(mode="torch-pruning")
    with pytest.raises(ConfigurationError, match=r"^torch-pruning continues a run: expected its folder as start"):
        recipe.build(options.over(recipe.defaults(options)))


# -- sizes


def test_the_threshold_is_the_lowest_that_fits():
    torch.manual_seed(0)
    plastic = npn.attach(Small(), torch.randn(2, 1, 6, 6))
    scores = torch.rand(28).double().mul(20).round()  # with equal ones

    def at(least):
        return weights(*(max(1, int((piece >= least).sum())) for piece in scores.split([12, 16])))

    for bound in (DENSE, 900, 400, 100, 15):
        fits = [least for least in [-torch.inf, *sorted(set(scores.tolist()))] if at(least) <= bound]
        assert threshold(plastic, scores, bound) == (fits[0] if fits else scores.max())


def test_the_even_share_is_the_least_that_fits():
    plastic = npn.attach(Small(), torch.randn(2, 1, 6, 6))
    share = even_share(plastic, 400.0)

    def at(share):
        return weights(*(size - int(share * size) for size in (12, 16)))

    assert at(share) <= 400 < at(share - 1e-4)


def test_hand_picked_nets_are_the_largest_that_fit(small):
    for bound in (1000.0, 400.0, 100.0):
        model = small.hand_picked(bound)
        count = npn.count_params(model, biases=False)
        wider = Small(model.conv1.out_channels + 1, model.conv2.out_channels + 1)
        assert count <= bound < npn.count_params(wider, biases=False)
    assert npn.count_params(small.hand_picked(1.0), biases=False) == weights(1, 1), "the smallest there is"


def test_the_real_networks_have_budgets_that_hand_picked_nets_meet():
    kept = replace(networks.NETWORKS["lenet5"], full=LeNet300, plain=PLAIN, budgets=(0.2, 0.1, 0.05))
    for network in (kept, networks.NETWORKS["lenet5"], networks.NETWORKS["resnet20"]):
        for share in network.budgets:
            count = npn.count_params(network.hand_picked(share * network.weights()), biases=False)
            assert 0.75 * share < count / network.weights() <= share


def test_every_method_chooses_learning_rate_and_decay():
    for name, kind in KINDS.items():
        assert set(recipe.defaults(PeerOptions(mode=name)).settings) == {*COMMON, *kind.space}
        assert all(least <= default <= most for default, least, most in kind.space.values())
