"""Training steps that are recorded and replayed: everything but the GPU, which `benchmarks/gpu.py` checks."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn
from npn.cuda_graphs import EAGER
from npn.errors import ConfigurationError
from npn.experiments.engine import training
from npn.experiments.resnet import recipe as resnet56
from npn.experiments.resnet.options import ResNetOptions

from .experiments.test_resnet56 import images

pytestmark = pytest.mark.usefixtures("traces_are_shared")


class Recording:
    """Stands for a CUDA graph: replaying calls again, on the tensors that were there when it was recorded."""

    def __init__(self):
        self.made = self.replayed = 0

    def __call__(self, call, parameters, generator):
        self.made += 1

        def replay():
            self.replayed += 1
            assert all(parameter.grad is None for parameter in parameters)
            return call()

        return replay


@pytest.mark.parametrize("mode", ["sparsify", "expand", "dense"])
def test_replayed_training_is_the_same(mode, monkeypatch):
    """With a path of the bound, units that go or come, a smaller last batch, and back to k = inf."""
    monkeypatch.setattr(resnet56, "cifar", partial(images, training=44))
    monkeypatch.setattr(resnet56, "BATCH_SIZE", 8)
    monkeypatch.setattr(resnet56, "GATE_LEARNING_RATE", 0.1)
    found, recording = [], Recording()
    for replays in (False, True):
        given = ResNetOptions(mode=mode, depth=8, epochs="4" if mode == "dense" else "1,4,1", seed=1)
        torch.manual_seed(0)
        recipe = resnet56.build(given.over(resnet56.defaults(given)))
        recipe = replace(recipe, graphs=npn.CudaGraphs(recipe.plastic, recording) if replays else None)
        rows = [row for _, row in training.epochs(recipe, seed=1)]
        found.append((rows, [p.detach() for p in recipe.plastic.weights()], recipe.plastic.penalty.state_dict()))
    (rows, weights, penalty), others = found[0], found[1]
    assert rows == others[0] and penalty == others[2]
    assert all(torch.equal(one, other) for one, other in zip(weights, others[1], strict=True))
    assert len({row["params"] for row in rows}) > (mode != "dense"), "no resize: the test shows less than it should"
    assert recording.replayed > recording.made > 1


def setting(estimator="reinmax", **more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    plastic = npn.attach(model, torch.zeros(2, 4), estimator=estimator, penalty=npn.Penalty(weight=1e-3), **more)
    plastic.k = 1.0
    recording = Recording()
    graphs = npn.CudaGraphs(plastic, recording)
    generator = torch.Generator().manual_seed(1)

    def step(count=EAGER + 1, size=16):
        for _ in range(count):
            x, y = torch.randn(size, 4, generator=generator), torch.arange(size) % 2
            for parameter in (*plastic.weights(), *plastic.logits()):
                parameter.grad = None
            graphs.backward(lambda x, y: F.cross_entropy(model(x), y), x, y)

    return plastic, graphs, recording, step


@pytest.mark.parametrize(
    "change",
    [
        lambda plastic: setattr(plastic, "k", 2.0),
        lambda plastic: setattr(plastic, "k", math.inf),
        lambda plastic: setattr(plastic, "estimator", "straight_through"),
        lambda plastic: plastic.model.eval(),
        lambda plastic: plastic.grow({"0": 1}),
        lambda plastic: plastic.model[0].weight.requires_grad_(False),
    ],
)
def test_every_change_is_recorded_anew(change):
    plastic, graphs, recording, step = setting()
    step()
    step(2)
    assert (recording.made, recording.replayed, graphs.recorded) == (1, 3, 1)
    change(plastic)
    step(EAGER)
    assert (recording.made, graphs.recorded) == (1, 0)
    step(1)
    assert (recording.made, graphs.recorded) == (2, 1)


def test_another_scale_is_recorded_anew():
    plastic, graphs, recording, _ = setting()
    plastic.k, x, y = math.inf, torch.ones(4, 4), torch.arange(4) % 2
    norms = []
    for scale in [1.0] * (EAGER + 1) + [0.5] * (EAGER + 2):
        for parameter in (*plastic.weights(), *plastic.logits()):
            parameter.grad = None
        graphs.backward(lambda x, y: F.cross_entropy(plastic.model(x), y), x, y, scale=scale)
        norms.append(float(plastic.model[2].bias.grad.norm()) / scale)
    assert (recording.made, graphs.recorded) == (2, 2)
    assert norms == pytest.approx([norms[0]] * len(norms)) and norms[0] > 0


def test_units_closed_by_hand_count_where_logits_rest():
    plastic, _, recording, step = setting()
    plastic.k = math.inf
    step(EAGER + 2)
    plastic.close("0", [1])
    step()
    assert (recording.made, recording.replayed) == (2, 3)


def test_each_size_of_a_batch_has_its_own():
    _, graphs, recording, step = setting()
    step()
    step(size=7)
    step(1)
    assert (recording.made, graphs.recorded) == (2, 2)


def no_k(plastic):
    plastic.k = 0.0


def held(plastic):
    plastic.open("0", [1], grace=100)


@pytest.mark.parametrize("prepare", [no_k, held])
def test_some_steps_are_never_recorded(prepare):
    plastic, _, recording, step = setting()
    prepare(plastic)
    step(3 * EAGER)
    assert recording.made == 0


@pytest.mark.parametrize("more", [{"estimator": "arm"}, {"estimator": "double_cv"}])
def test_two_passes_are_not_recorded(more):
    _, _, recording, step = setting(**more)
    step(3 * EAGER)
    assert recording.made == 0


def test_accumulated_gradients_are_not_recorded():
    """Twice the same step without zeroing between is twice its gradient."""
    plastic, graphs, recording, step = setting()
    plastic.k = math.inf
    step(EAGER + 2)
    before = [parameter.grad.clone() for parameter in plastic.weights()]
    x, y = torch.ones(16, 4), torch.zeros(16, dtype=torch.long)
    graphs.backward(lambda x, y: F.cross_entropy(plastic.model(x), y), x, y)
    more = torch.autograd.grad(F.cross_entropy(plastic.model(x), y), list(plastic.model.parameters()))
    for parameter, one, other in zip(plastic.weights(), before, more, strict=True):
        torch.testing.assert_close(parameter.grad, one + other)
    assert recording.replayed == 2


def test_what_cannot_be_recorded_says_so():
    plastic, graphs, _, _ = setting()
    x, y = torch.randn(16, 4), torch.arange(16) % 2
    with pytest.raises(ConfigurationError, match=r"^a graph reads tensors: expected them in the batch, got float"):
        graphs.backward(lambda x, y, t: F.cross_entropy(plastic.model(x) / t, y), x, y, 2.0)
    with pytest.raises(ConfigurationError, match=r"^CudaGraphs needs the model on a CUDA device, got cpu; call"):
        npn.CudaGraphs(plastic).backward(lambda x, y: F.cross_entropy(plastic.model(x), y), x, y)
    assert all(parameter.grad is None for parameter in plastic.weights())


def test_a_batch_of_any_number_of_tensors():
    plastic, graphs, recording, _ = setting()
    plastic.k = math.inf
    x, y, weight = torch.randn(16, 4), torch.arange(16) % 2, torch.rand(16)

    def loss(x, y, weight):
        return (F.cross_entropy(plastic.model(x), y, reduction="none") * weight).mean()

    for count in range(EAGER + 2):
        for parameter in plastic.weights():
            parameter.grad = None
        value = graphs.backward(loss, x, y, weight * count)
    assert recording.replayed == 2
    torch.testing.assert_close(value, loss(x, y, weight * (EAGER + 1)).detach())


def test_graphs_need_a_gpu_and_no_compiler():
    with pytest.raises(ConfigurationError) as error:
        given = ResNetOptions(graphs=True)
        resnet56.build(given.over(resnet56.defaults(given)))
    assert str(error.value) == "graphs are those of CUDA: expected the device cuda, got 'cpu'"
    with pytest.raises(ConfigurationError, match="give graphs or compile, not both"):
        given = ResNetOptions(graphs=True, compile=True, device="cuda")
        resnet56.build(given.over(resnet56.defaults(given)))
