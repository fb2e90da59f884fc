"""Checkpoints: nothing lost, nothing half done, nothing unpickled."""

import math
import os
import pickle
import random
import re
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


def build(tiny, name="dropping", estimator="reinmax", seed=0, **options):
    model, plastic = tiny[name].attach(seed, estimator=estimator, **options)
    weights = torch.optim.AdamW(plastic.weights(), lr=0.02)
    gates = torch.optim.Adam(plastic.logits(), lr=0.05)
    plastic.track(weights, gates)
    return model, plastic, weights, gates


def train(tiny, model, plastic, weights, gates, steps, name="dropping"):
    for _ in range(steps):
        x, y = tiny[name].data(seed=random.randrange(1000))
        x = x + 0.1 * torch.randn_like(x) + float(np.random.rand())
        weights.zero_grad()
        gates.zero_grad()
        plastic.backward(lambda x=x, y=y: F.cross_entropy(model(x), y))
        weights.step()
        gates.step()


def everything(plastic):
    tensors = [*plastic.model.state_dict().values(), *(p.detach() for p in plastic.logits())]
    for o in plastic.optimizers:
        for group in o.param_groups:
            for p in group["params"]:
                tensors += [v for v in o.state.get(p, {}).values() if isinstance(v, torch.Tensor)]
    return [t.clone() for t in tensors]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def seed_all(n):
    torch.manual_seed(n), random.seed(n), np.random.seed(n)


@pytest.mark.parametrize("name", ["dropping", "conv"])
@pytest.mark.parametrize("estimator", npn.step.ESTIMATORS)
def test_training_goes_on_bit_for_bit(tiny, tmp_path, estimator, name):
    """Train, shrink, grow, save, train on == load into a fresh full-size model, train on."""
    path = tmp_path / "run.npn"
    seed_all(5)
    run = build(tiny, name, estimator, penalty=npn.Budget("params", 0.8))
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
    again = build(tiny, name, estimator, seed=3, penalty=npn.Budget("params", 0.8))
    assert npn.load(path, again[1]) is again[1]
    assert (again[1].k, again[1].group("0").size) == (3.0, plastic.group("0").size)
    assert again[1].groups[1].gate.grace.tolist()[-2:] == [2, 2]
    train(tiny, *again, 3, name)
    assert same(wanted, everything(again[1]))
    assert (torch.rand(1), random.random(), np.random.rand()) == draws
    assert repr(again[0]) == repr(run[0])
    assert float(again[1].penalty.multiplier) == float(plastic.penalty.multiplier)
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


def schedule(*epochs):
    return npn.Schedule(*(npn.Stage(f"stage {number}", count, k=7.0) for number, count in enumerate(epochs)))


def refuse(optimizer, state):
    raise ValueError("no such state")


def refuse_late(optimizer):
    raise ValueError("no such state")


@pytest.mark.parametrize("refused", ["stateful", "optimizer", "optimizer, late", "both"])
def test_what_is_refused_late_changes_nothing(tiny, tmp_path, refused):
    """Not even what took its state before another object refused."""
    path = tmp_path / "run.npn"
    run = build(tiny)
    steps, stages = torch.optim.lr_scheduler.StepLR(run[2], 1), schedule(1, 2)
    train(tiny, *run, 2)
    steps.step(), stages.enter(1, run[1])
    run[1].close("0", [0, 1])
    run[1].compact()
    npn.save(path, run[1], steps=steps, stages=stages)

    fresh = build(tiny, seed=3)
    train(tiny, *fresh, 1)
    ours, other = torch.optim.lr_scheduler.StepLR(fresh[2], 1), schedule(1, 2 if refused.startswith("opt") else 3)
    if refused == "optimizer, late":
        fresh[3].register_load_state_dict_post_hook(refuse_late)
    elif refused != "stateful":
        fresh[3].register_load_state_dict_pre_hook(refuse)

    def now():
        states = [thing.state_dict() for thing in (*fresh[2:], ours, other, fresh[1])]
        return repr((fresh[0], fresh[1].structure, states)), everything(fresh[1]), torch.get_rng_state()

    before = now()
    if refused == "stateful":
        error = (
            "'stages' that the given Schedule refuses: the state belongs to other stages: expected [['stage 0', 1], "
            "['stage 1', 3]], got [['stage 0', 1], ['stage 1', 2]]; build those"
        )
    else:
        error = "'Adam' that the given Adam refuses: no such state"
    message = f"{path} holds a state of {error}; build it as the saved one was. Nothing was loaded"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        npn.load(path, fresh[1], steps=ours, stages=other)
    after = now()
    assert before[0] == after[0] and same(before[1], after[1]) and torch.equal(before[2], after[2])
    if refused == "stateful":
        plain = tiny["dropping"].model()
        with pytest.raises(CheckpointError, match=r"'stages' that the given Schedule refuses"):
            npn.load(path, plain, steps=ours, stages=other)
        assert plain[0].out_features == 8 and after[0] == now()[0]
        npn.load(path, fresh[1], steps=ours, stages=schedule(1, 2))
        assert fresh[0][0].out_features == 6 and ours.last_epoch == 1
        assert same(everything(run[1]), everything(fresh[1]))


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
        draws.append(fresh[1].draw())
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert placed == [("first", 0)] * 3


def spoiled(tmp_path, kind, good):
    path = tmp_path / f"{kind}.npn"
    data = good.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "cut-by-a-byte":
        path.write_bytes(data[:-1])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "torch-pickle":
        torch.save({"format": "npn", "version": 1, "bomb": Bomb()}, path)
    elif kind == "state-dict":
        torch.save({"0.weight": torch.zeros(2)}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "newer":
        torch.save(torch.load(good, weights_only=True) | {"version": 99}, path)
    return path


class Bomb:
    exploded = False

    def __reduce__(self):
        return (setattr, (Bomb, "exploded", True))


@pytest.mark.parametrize(("kind", "message"), [
    ("truncated", "cannot be read as a checkpoint .*damaged, incomplete.*go back to an older file"),
    ("cut-by-a-byte", "cannot be read as a checkpoint"),
    ("empty", "cannot be read as a checkpoint"),
    ("text", "cannot be read as a checkpoint"),
    ("pickle", "cannot be read as a checkpoint"),
    ("torch-pickle", "cannot be read as a checkpoint"),
    ("state-dict", "was not written by npn.save; nothing was loaded"),
    ("list", "was not written by npn.save; nothing was loaded"),
    ("newer", "has format version 99, this npn reads version 1; use the npn that wrote it"),
    ("absent", "there is no checkpoint at"),
])  # fmt: skip
def test_bad_files(tiny, tmp_path, kind, message):
    run = build(tiny)
    train(tiny, *run, 1)
    good = tmp_path / "good.npn"
    npn.save(good, run[1])
    path = spoiled(tmp_path, kind, good)
    before = everything(run[1])
    for target in (run[1], tiny["dropping"].model()):
        with pytest.raises(CheckpointError, match=message):
            npn.load(path, target)
    with pytest.raises(CheckpointError, match=message):
        npn.read_extra(path)
    assert same(before, everything(run[1])) and not Bomb.exploded


def test_mismatches_touch_nothing(tiny, tmp_path):
    path = tmp_path / "run.npn"
    run = build(tiny)
    train(tiny, *run, 1)
    run[1].close("0", [0])
    run[1].compact()
    npn.save(path, run[1])

    def refused(plastic, message):
        before, rng = everything(plastic), torch.get_rng_state()
        attributes = repr(plastic.model)
        with pytest.raises(CheckpointError, match=message):
            npn.load(path, plastic)
        assert same(before, everything(plastic)) and repr(plastic.model) == attributes
        assert torch.equal(rng, torch.get_rng_state()) and plastic.k == math.inf

    refused(build(tiny, "conv")[1], "is of another model: .* are in one of them only; nothing was loaded")
    _, untracked = tiny["dropping"].attach()
    refused(untracked, re.escape("holds optimizers ['AdamW', 'Adam'], plastic.track was given []; track the same"))
    _, other = tiny["dropping"].attach()
    other.track(torch.optim.SGD(other.weights(), lr=0.1), torch.optim.Adam(other.logits()))
    refused(other, r"plastic.track was given \['SGD', 'Adam'\]")
    model, fewer = tiny["dropping"].attach()
    fewer.track(torch.optim.AdamW([model[0].weight]), torch.optim.Adam(fewer.logits()))
    refused(fewer, r"holds AdamW with \[8\] parameters in its groups, the tracked one has \[1\]; .*Nothing was loaded")
    _, partly = tiny["dropping"].attach(skip="4")
    partly.track(torch.optim.AdamW(partly.weights()), torch.optim.Adam(partly.logits()))
    refused(partly, r"has groups \['0', '4'\], the model has \['0'\]; attach it with the same options")
    refused(build(tiny, penalty=npn.Budget("params", 0.5))[1], "the state belongs to another penalty")
    double = build(tiny)
    double[0].double()
    refused(
        double[1], r"has 0.weight as \(7, 3\) torch.float32, the model as \(8, 3\) torch.float64; nothing was loaded"
    )
    plain = tmp_path / "plain.npn"
    npn.save(plain, tiny["dropping"].model())
    path = plain
    refused(build(tiny)[1], "holds a plain model without gates; load it into the model before npn.attach")


def test_failing_write_leaves_the_old_file(tiny, tmp_path, monkeypatch):
    path = tmp_path / "run.npn"
    run = build(tiny)
    npn.save(path, run[1])
    old = path.read_bytes()
    train(tiny, *run, 1)

    def broken(content, file):
        file.write(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", broken)
        with pytest.raises(OSError, match=r"disk full"):
            npn.save(path, run[1])
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", broken)
        with pytest.raises((OSError, AttributeError)):
            npn.save(path, run[1])
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["run.npn"]
    npn.save(tmp_path / "new" / "folder" / "x.npn", run[1])
    assert (tmp_path / "new" / "folder" / "x.npn").exists()


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
    import os, signal, sys, torch, torch.nn.functional as F, npn
    from pathlib import Path
    from torch import nn

    torch.set_num_threads(1)

    def train(path, end, say):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
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
