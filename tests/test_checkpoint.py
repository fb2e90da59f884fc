"""Checkpoints: nothing lost, nothing unpickled."""

import math
import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import npn
from npn import checkpoint
from npn.errors import CheckpointError

from .checkpoints import build, everything, same, seed_all, train

pytestmark = pytest.mark.usefixtures("traces_are_shared")


@pytest.mark.parametrize("name", ["dropping", "conv"])
@pytest.mark.parametrize("estimator", npn.step.ESTIMATORS)
def test_training_goes_on_bit_for_bit(tiny, tmp_path, estimator, name):
    """Train, shrink, grow, save, train on == load into a fresh full-size model, train on."""
    path = tmp_path / "run.npn"
    seed_all(5)
    run = build(tiny, name, estimator, penalty=npn.Budget("params", 0.8, steps=6))
    plastic = run[1]
    train(tiny, *run, 2, name)
    plastic.k = 3.0
    train(tiny, *run, 3, name)
    plastic.close("0", [1])
    plastic.compact()
    plastic.grow({plastic.groups[1].name: 2}, grace=3)
    train(tiny, *run, 1, name)
    npn.save(path, plastic, extra={"epoch": 7, "log": [0.5, torch.ones(2)]})
    train(tiny, *run, 3, name)
    wanted, draws = everything(plastic), (torch.rand(1), random.random(), np.random.rand())
    seed_all(99)
    again = build(tiny, name, estimator, seed=3, penalty=npn.Budget("params", 0.8, steps=6))
    assert npn.load(path, again[1]) is again[1]
    assert (again[1].k, again[1].group("0").size) == (3.0, plastic.group("0").size)
    assert again[1].groups[1].gate.grace.tolist()[-2:] == [2, 2]
    train(tiny, *again, 3, name)
    assert same(wanted, everything(again[1]))
    assert (torch.rand(1), random.random(), np.random.rand()) == draws
    assert repr(again[0]) == repr(run[0])
    assert again[1].penalty.state_dict() == plastic.penalty.state_dict()
    assert plastic.penalty.state_dict()["done"] == 7 and plastic.penalty.state_dict()["start"] > 0
    extra = npn.read_extra(path)
    assert extra["epoch"] == 7 and torch.equal(extra["log"][1], torch.ones(2))
    again[1].k = math.inf
    assert again[1].grow({"0": 1}), "and it can be resized again"


def test_the_file_holds_no_code(tiny, tmp_path):
    path = tmp_path / "run.npn"
    run = build(tiny)
    train(tiny, *run, 2)
    npn.save(path, run[1], scheduler=torch.optim.lr_scheduler.StepLR(run[2], 2))
    content = torch.load(path, weights_only=True)
    assert content["format"] == "npn" and set(content["model"]) == set(run[0].state_dict())
    assert all(torch.equal(v, content["model"][n]) for n, v in run[0].state_dict().items())


def sgd(order):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    plastic = npn.attach(model, torch.zeros(2, 4))
    groups = [
        {"params": order([*plastic.weights(), *plastic.logits()])},
        {"params": [torch.nn.Parameter(torch.ones(2))]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    plastic.track(optimizer)
    return model, plastic, optimizer


@pytest.mark.parametrize("named", [True, False])
def test_the_state_of_optimizers_goes_to_its_parameters(tmp_path, named):
    """Whatever their order; files of before, without their names, go by the order."""
    path = tmp_path / "run.npn"
    model, plastic, optimizer = sgd(list)
    x = torch.randn(8, 4)
    plastic.backward(lambda: model(x).square().sum())
    optimizer.step()
    plastic.close("0", [3])
    plastic.compact()
    npn.save(path, plastic)
    if not named:
        content = torch.load(path, weights_only=True)
        del content["parameters"]
        torch.save(content, path)
    again, other, theirs = sgd((lambda given: sorted(given, key=lambda p: p.dim())) if named else list)
    npn.load(path, other)
    for (name, ours), wanted in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(theirs.state[ours]["momentum_buffer"], optimizer.state[wanted]["momentum_buffer"]), name


def test_stateful_objects_go_along(tiny, tmp_path):
    path = tmp_path / "run.npn"
    run = build(tiny)
    steps = torch.optim.lr_scheduler.StepLR(run[2], 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    train(tiny, *run, 1)
    steps.step(), steps.step()
    npn.save(path, run[1], steps=steps, scaler=scaler)
    fresh = build(tiny)
    theirs, other = torch.optim.lr_scheduler.StepLR(fresh[2], 2), torch.amp.GradScaler("cpu")
    before = everything(fresh[1])
    with pytest.raises(CheckpointError, match=r"keeps the state of \['scaler', 'steps'\], load was given \['steps'\]"):
        npn.load(path, fresh[1], steps=theirs)
    with pytest.raises(CheckpointError, match=r"pass the same names"):
        npn.load(path, fresh[1], steps=theirs, scaler=other, growth=other)
    with pytest.raises(CheckpointError, match=r"pass the same names"):
        npn.load(path, tiny["dropping"].model(), wrong=theirs)
    assert same(before, everything(fresh[1])) and theirs.last_epoch == 0
    npn.load(path, fresh[1], steps=theirs, scaler=other)
    assert (
        theirs.last_epoch == 2
        and other.get_scale() == 8.0
        and fresh[2].param_groups[0]["lr"] == run[2].param_groups[0]["lr"]
    )


def test_gradients_of_the_old_size_go(tiny, tmp_path):
    run = build(tiny)
    run[1].close("0", [0, 1])
    run[1].compact()
    npn.save(tmp_path / "run.npn", run[1])
    fresh = build(tiny)
    fresh[1].k = 3.0
    x, y = tiny["dropping"].data()
    fresh[1].backward(lambda: F.cross_entropy(fresh[0](x), y))
    assert all(logits.grad is not None for logits in fresh[1].logits())
    npn.load(tmp_path / "run.npn", fresh[1])
    assert [logits.grad for logits in fresh[1].logits()] == [None, None]
    assert all(p.grad is None or p.grad.shape == p.shape for p in fresh[1].weights())
    train(tiny, *fresh, 1)


def test_another_kind_of_device_draws_from_a_seed(tiny, tmp_path, monkeypatch):
    """A GPU's generator has a state of 16 bytes; and there may have been more GPUs."""
    run = build(tiny)
    npn.save(tmp_path / "run.npn", run[1])
    content, draws = torch.load(tmp_path / "run.npn", weights_only=True), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    placed = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device="cuda": placed.append((state, device)))
    for byte in (1, 1, 2):
        content["plastic"]["generator"] = torch.full((16,), byte, dtype=torch.uint8)
        content["rng"]["cuda"] = ["first", "second"]
        fresh = build(tiny)
        checkpoint.unpack(content, "the checkpoint", fresh[1], {})
        draws.append(fresh[1].gates.draw())
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert placed == [("first", 0)] * 3


@pytest.mark.parametrize("name", ["mlp", "conv", "residual", "recurrent", "depthwise"])
def test_plain_model_into_a_fresh_one(tiny, tools, tmp_path, name):
    """What export made, with its groups and hidden sizes, comes back in a full-size model of the same class."""
    spec = tiny[name]
    _, plastic = spec.attach()
    for group in plastic.groups:
        plastic.close(group, [0, 1])
    plastic.compact()
    plastic.grow({plastic.groups[-1].name: 5})
    small = plastic.export().eval()
    npn.save(tmp_path / "small.npn", small)
    fresh = spec.model(seed=8)
    identity = [id(p) for p in fresh.parameters()]
    assert npn.load(tmp_path / "small.npn", fresh) is fresh
    assert tools.same(fresh, small) and [id(p) for p in fresh.parameters()] == identity
    x, y = spec.data()
    assert torch.equal(fresh.eval()(x), small(x)) and repr(fresh) == repr(small)
    F.cross_entropy(fresh(x), y).backward()
    assert all(p.grad.shape == p.shape for p in fresh.parameters())
    assert npn.attach(fresh, x).grow({plastic.groups[-1].name: 1}), "and is a model like any other"


class Skip(torch.nn.Module):
    """Its last layer reads the input next to units: part of that axis is fixed."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 8), torch.nn.Linear(12, 2)

    def forward(self, x):
        return self.b(torch.cat([x, self.a(x).relu()], -1))


@pytest.mark.parametrize("options", [{}, {"columns": "b"}, {"unstructured": "a.weight"}, {"skip": "a", "columns": "b"}])
def test_an_axis_that_is_partly_units_takes_the_saved_length(tmp_path, options):
    x = torch.randn(3, 4)
    plastic = npn.attach(Skip(), x)
    plastic.close("a", [0, 3])
    plastic.compact()
    plastic = npn.attach(plastic.export(), x, **options)
    npn.save(tmp_path / "run.npn", plastic)
    fresh = npn.load(tmp_path / "run.npn", Skip())
    assert torch.equal(fresh(x), plastic.model(x)) and fresh.b.in_features == 10


class Blur(torch.nn.Module):
    """A fixed kernel for each channel that the state_dict leaves out."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("kernel", torch.arange(1.0, width + 1).view(-1, 1, 1, 1).expand(-1, 1, 2, 2), False)

    def forward(self, x):
        return F.conv2d(x, self.kernel, groups=x.shape[1])


@pytest.mark.parametrize("attached", [True, False])
def test_buffers_that_the_state_dict_leaves_out(tmp_path, attached):
    x = torch.randn(2, 3, 8, 8)

    def build():
        layers = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), Blur(8), torch.nn.Conv2d(8, 2, 1)
        return torch.nn.Sequential(*layers)

    model = build()
    plastic = npn.attach(model, x)
    plastic.close("0", [1, 3])
    plastic.compact()
    plastic.grow({"0": 2})  # the size it had, with other kernels
    for units in (8, 6):
        npn.save(tmp_path / "run.npn", plastic if attached else model)
        fresh = build()
        npn.load(tmp_path / "run.npn", npn.attach(fresh, x) if attached else fresh)
        assert torch.equal(fresh[2].kernel, model[2].kernel)
        torch.testing.assert_close(fresh(x), model(x))
        assert len(fresh[2].kernel) == units and "2.kernel" not in fresh.state_dict()
        if units == 8:
            plastic.close("0", [0, 7])
            plastic.compact()


def test_live_graph_while_loading(tiny, tmp_path):
    """A loss that is still alive remembers the full-size parameters."""
    _, plastic, *_ = build(tiny)
    plastic.close("0", [0, 1])
    plastic.compact()
    npn.save(tmp_path / "a.npn", plastic)
    run = build(tiny)
    x, y = tiny["dropping"].data()
    alive = F.cross_entropy(run[0](x), y)
    npn.load(tmp_path / "a.npn", run[1])
    train(tiny, *run, 2)
    F.cross_entropy(run[0](x), y).backward()
    assert run[0][0].weight.grad.shape == (6, 3) and alive.requires_grad


SCRIPT = """
    import os, signal, sys, torch, torch._dynamo, torch.nn.functional as F, npn  # all that a run imports
    from pathlib import Path
    from torch import nn

    def net():
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))

    tracing = sys.modules["npn.tracing.trace"]  # one trace for all runs
    traced = tracing.trace_units(net(), torch.zeros(4, 3))
    tracing.trace_units = lambda *_: traced

    def train(path, end, say):
        torch.manual_seed(0)
        model = net()
        plastic = npn.attach(model, torch.zeros(4, 3), estimator="disarm", penalty=npn.Penalty(weight=1e-2))
        weights, gates = torch.optim.Adam(plastic.weights(), lr=0.02), torch.optim.Adam(plastic.logits(), lr=0.2)
        plastic.track(weights, gates)
        start = 0
        if path.exists():
            npn.load(path, plastic)
            start = npn.read_extra(path)["step"]
        for step in range(start, 60):
            plastic.k = float("inf") if step < 5 or step >= 50 else 2.0
            x = torch.randn(8, 3)
            weights.zero_grad(), gates.zero_grad()
            plastic.backward(lambda: F.cross_entropy(model(x), (x[:, 0] > 0).long()))
            weights.step(), gates.step()
            if step % 15 == 14:
                plastic.compact(below=0.3)
            if step == 20:
                plastic.grow({"0": 3}, grace=10)
            npn.save(path, plastic, extra={"step": step + 1})
            os.write(say, f"{step}\\n".encode())
        npn.save(end, model)

    # one process per run, forked before torch has started a thread
    folder = Path(sys.argv[1])
    for run in sys.argv[2:]:
        name, kill_after = run.split(":")
        hear, say = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(hear)
            train(folder / f"{name}.npn", folder / f"{name}-end.npn", say)
            os._exit(0)
        os.close(say)
        with os.fdopen(hear) as lines:
            for line in lines:
                if line.strip() == kill_after:
                    os.kill(child, signal.SIGKILL)
                    break
        _, status = os.waitpid(child, 0)
        assert status == (signal.SIGKILL if kill_after else 0), (run, status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_and_resumed_ends_the_same(tmp_path):
    """SIGKILL in each stage, at steps drawn at random; what was on disk is enough to end bit for bit the same."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    chosen = random.Random(3)
    kills = [f"killed:{chosen.randrange(low, high)}" for low, high in ((1, 5), (8, 45), (50, 57))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), "whole:", *kills, "killed:"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    a, b = (torch.load(tmp_path / n, weights_only=True)["model"] for n in ("whole-end.npn", "killed-end.npn"))
    assert list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)
    assert a["0.weight"].shape[0] != 8, "no resize took place: the test shows nothing"
    x, y = (torch.load(tmp_path / n, weights_only=True) for n in ("whole.npn", "killed.npn"))
    for one, two in zip(x["plastic"]["gates"].values(), y["plastic"]["gates"].values(), strict=True):
        assert all(torch.equal(one[k], two[k]) for k in one)
