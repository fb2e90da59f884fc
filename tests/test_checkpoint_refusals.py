"""Checkpoints that do not fit, or are damaged: nothing is half done."""

import math
import os
import pickle
import re

import pytest
import torch

import npn
from npn.errors import CheckpointError, ConfigurationError
from npn.export import write_model

from .checkpoints import build, everything, same, train

pytestmark = pytest.mark.usefixtures("traces_are_shared")


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


def spoiled(tmp_path, kind, good):
    path = tmp_path / f"{kind}.npn"
    data = good.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "cut-by-a-byte":
        path.write_bytes(data[:-1])
    elif kind == "another-byte":
        weight = next(iter(torch.load(good, weights_only=True)["model"].values()))
        at = data.find(weight.numpy().tobytes())
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
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
    elif kind == "hollow":
        torch.save({"format": "npn", "version": 1}, path)
    elif kind == "without-groups":
        content = torch.load(good, weights_only=True)
        del content["groups"], content["rng"]
        torch.save(content, path)
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
    ("another-byte", r"cannot be read as a checkpoint \(BadZipFile\)"),
    ("empty", "cannot be read as a checkpoint"),
    ("text", "cannot be read as a checkpoint"),
    ("pickle", "cannot be read as a checkpoint"),
    ("torch-pickle", "cannot be read as a checkpoint"),
    ("state-dict", "was not written by npn.save; nothing was loaded"),
    ("list", "was not written by npn.save; nothing was loaded"),
    ("hollow", "damaged or incomplete: it has no attributes, extra, model, stateful. Nothing was loaded; go back"),
    ("without-groups", "damaged or incomplete: it has no groups, rng. Nothing was loaded; go back to an older file"),
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
    model, mixed = tiny["dropping"].attach()
    gates = torch.optim.Adam(mixed.logits())
    mixed.track(torch.optim.AdamW([model[0].weight, *mixed.weights()[2:], torch.nn.Parameter(torch.zeros(1))]), gates)
    refused(
        mixed, "other parameters in its group 0: 0.bias, a parameter that is not the model's are in one of them only"
    )
    _, partly = tiny["dropping"].attach(skip="4")
    refused(partly, r"has groups \['0', '4'\], the model has \['0'\]")  # not that it tracks nothing yet
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


def classifier(kernel, inputs=1):
    return torch.nn.Sequential(
        torch.nn.Conv2d(inputs, 3, kernel, padding=kernel // 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(12, 2),
    )  # fmt: skip


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("parametrised", [True, False])
def test_no_units_no_change_of_length(tmp_path, attached, parametrised):
    """A 5x5 kernel does not go into a layer that was built for 3x3; nor three input channels for one."""

    def build(kernel, inputs=1):
        model = classifier(kernel, inputs)
        if parametrised:
            torch.nn.utils.parametrizations.weight_norm(model[0])
        return model, (npn.attach(model, torch.zeros(2, inputs, 6, 6)) if attached else model)

    npn.save(tmp_path / "large.npn", build(5)[1])
    model, target = build(3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    leaf = "parametrizations.weight.original1" if parametrised else "weight"
    with pytest.raises(CheckpointError) as refused:
        npn.load(tmp_path / "large.npn", target)
    assert str(refused.value) == (
        f"{tmp_path / 'large.npn'} has 0.{leaf} as (3, 1, 5, 5), the model as (3, 1, 3, 3); no units live along axis "
        "2, so its length cannot change: build the model as the saved one was. Nothing was loaded"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    if attached:
        npn.save(tmp_path / "colours.npn", build(3, inputs=3)[1])
        with pytest.raises(CheckpointError, match=r"\(3, 3, 3, 3\), the model as \(3, 1, 3, 3\); no units live along"):
            npn.load(tmp_path / "colours.npn", target)


def test_units_left_out_take_the_saved_size(tmp_path):
    """Gates on one layer only: the other one's units, compacted before, come back at the size they had."""
    x = torch.randn(2, 3)

    def build():
        return torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4), torch.nn.Linear(4, 2))

    plastic = npn.attach(build(), x)
    plastic.close("0", [0, 1])
    plastic.compact()
    small = plastic.export()
    npn.save(tmp_path / "run.npn", npn.attach(small, x, only="2"))
    fresh = build()
    npn.load(tmp_path / "run.npn", npn.attach(fresh, x, only="2"))
    assert torch.equal(fresh(x), small(x)) and fresh[0].weight.shape == (4, 3)


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
        patch.setattr(torch, "save", broken)
        with pytest.raises(OSError, match=r"disk full"):
            npn.save(path, run[1])
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", broken)
        with pytest.raises((OSError, AttributeError)):
            npn.save(path, run[1])
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["run.npn"]
    npn.save(tmp_path / "new" / "folder" / "x.npn", run[1])
    assert (tmp_path / "new" / "folder" / "x.npn").exists()


def test_paths_at_which_there_can_be_no_file(tmp_path):
    model = torch.nn.Linear(2, 2)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        CheckpointError, match=r"^\S+ is a folder; give .* such as \S+model.npn, or call npn.save_folder$"
    ):
        npn.save(tmp_path, model)
    for write, path in ((npn.save, tmp_path / "file" / "new" / "a.npn"), (npn.save_folder, tmp_path / "file")):
        with pytest.raises(CheckpointError, match=r"cannot be written, because \S+file is a file; give another path$"):
            write(path, model)
    for path, reason in ((tmp_path, "is a folder"), (tmp_path / "file" / "a", "is a file")):
        with pytest.raises(ConfigurationError, match=reason):
            write_model(model, torch.zeros(2, 2), path, "pt2")
    assert os.listdir(tmp_path) == ["file"]


def test_a_copy_that_follows_is_not_saved_where_it_could_not_be_loaded(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 2))
    plastic = npn.attach(model, torch.zeros(2, 4))
    average = torch.optim.swa_utils.AveragedModel(model)
    plastic.follow(average)
    text = (
        "ema has the sizes of its model, but its state would be loaded before the model has its saved sizes; save "
        "extra={'ema': ema.state_dict()}, and after npn.load give npn.read_extra(path)['ema'] to a new copy of the "
        "model"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(text)}$"):
        npn.save(tmp_path / "run.npn", plastic, ema=average)
    assert os.listdir(tmp_path) == []
    npn.save(tmp_path / "run.npn", plastic, head=torch.nn.Linear(2, 2))


def test_sizes_that_no_resize_changes_have_to_agree(tmp_path):
    """Of a file of a handle; the width between them is the saved one."""

    def net(inputs, width, outputs):
        return torch.nn.Sequential(torch.nn.Linear(inputs, width), torch.nn.ReLU(), torch.nn.Linear(width, outputs))

    path = tmp_path / "a.npn"
    npn.save(path, npn.attach(net(4, 12, 2), torch.zeros(1, 4)))
    assert npn.load(path, net(4, 30, 2))[0].out_features == 12
    for target, tensor in ((net(4, 12, 3), "2.weight"), (net(5, 12, 2), "0.weight")):
        before = [parameter.detach().clone() for parameter in target.parameters()]
        with pytest.raises(CheckpointError, match=f"has {tensor} as .* no units live along axis"):
            npn.load(path, target)
        assert all(torch.equal(a, b) for a, b in zip(before, target.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["torch", "numpy", "python", "absent"])
def test_states_of_random_generators_are_looked_at_before_weights_are_loaded(tiny, tmp_path, kind):
    path = tmp_path / "run.npn"
    run = build(tiny)
    train(tiny, *run, 1)
    npn.save(path, run[1])
    content = torch.load(path, weights_only=True)
    content["rng"] = {} if kind == "absent" else content["rng"] | {kind: torch.zeros(3, dtype=torch.uint8)}
    torch.save(content, path)
    other = build(tiny, seed=3)
    before, rng = everything(other[1]), torch.get_rng_state()
    with pytest.raises(CheckpointError, match=r"holds states of random generators that cannot .*\. Nothing was loaded"):
        npn.load(path, other[1])
    assert same(before, everything(other[1])) and torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize("save", [npn.save, npn.save_folder])
def test_a_model_that_was_changed_by_hand_is_not_saved(tiny, tmp_path, save):
    """Nothing could load the file; what was there before stays."""
    model, plastic = tiny["mlp"].attach()
    path = tmp_path / "run"
    save(path, plastic)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    model[4] = torch.nn.Linear(3, 5)
    with pytest.raises(
        CheckpointError, match=r"^4.weight has shape \(5, 3\) where \(2, 3\) was planned; was the model"
    ):
        save(path, plastic)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
