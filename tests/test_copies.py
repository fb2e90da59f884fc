"""Copies that `plastic.follow` keeps in step with the model: averages, target networks, teachers."""

import copy
import gc
import re
import types
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import npn
from npn.errors import ConfigurationError, ResizeError

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = (X.mean((1, 2, 3)) > 0).long()


def net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(5 * 36, 2),
    )  # fmt: skip


def averaged(model):
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)


def update(copied, model):
    if isinstance(copied, AveragedModel):
        copied.update_parameters(model)
        return
    with torch.no_grad():
        for ours, theirs in zip(copied.parameters(), model.parameters(), strict=True):
            ours.lerp_(theirs, 0.1)


def trained(make, steps=4, follow=True):
    """A model, its handle and a copy, which has been updated after each of a few steps."""
    model = net()
    plastic = npn.attach(model, X)
    copied = make(model)
    if follow:
        assert plastic.follow(copied) is copied
    optimizer = torch.optim.Adam(plastic.weights(), lr=1e-2)
    plastic.track(optimizer)

    def step():
        optimizer.zero_grad()
        plastic.backward(lambda: F.cross_entropy(model(X), Y))
        optimizer.step()
        update(copied, model)

    for _ in range(steps):
        step()
    return model, plastic, copied, step


def inner(copied):
    return copied.module if isinstance(copied, AveragedModel) else copied


COPIES = pytest.mark.parametrize("make", [averaged, copy.deepcopy], ids=["AveragedModel", "deepcopy and lerp"])


@COPIES
def test_a_copy_follows_every_resize(make):
    model, plastic, copied, step = trained(make)
    own, ids = copy.deepcopy(inner(copied).state_dict()), [id(p) for p in copied.parameters()]
    assert not torch.equal(own["0.weight"], model[0].weight), "the copy has values of its own"
    plastic.close("0", [1, 4])
    plastic.close("3", [0])
    copied.eval()
    before = copied(X)
    plastic.compact()
    rows, columns = [0, 2, 3, 5], [1, 2, 3, 4]
    now = inner(copied).state_dict()
    assert torch.equal(now["0.weight"], own["0.weight"][rows])
    assert torch.equal(now["1.running_mean"], own["1.running_mean"][rows])
    assert torch.equal(now["3.weight"], own["3.weight"][columns][:, rows])
    torch.testing.assert_close(copied(X), before)
    plastic.grow({"0": 2, "3": 3})
    ours, theirs = inner(copied), model
    assert {n: p.shape for n, p in ours.state_dict().items()} == {n: p.shape for n, p in theirs.state_dict().items()}
    assert (ours[0].out_channels, ours[1].num_features, ours[3].in_channels) == (6, 6, 6)
    assert torch.equal(ours[0].weight[-2:], theirs[0].weight[-2:]) and ours[0].weight[-2:].abs().min() > 0
    assert torch.equal(ours[1].running_var[-2:], theirs[1].running_var[-2:])
    assert torch.equal(ours[0].weight[:4], own["0.weight"][rows]), "what stays keeps the copy's own values"
    torch.testing.assert_close(copied(X), before)
    assert [id(p) for p in copied.parameters()] == ids
    step()
    assert not torch.equal(copied(X), before)


@COPIES
def test_units_closed_in_the_model_are_closed_in_the_copy(make):
    model, plastic, copied, _ = trained(make)
    plastic.k = 7.0
    copied.eval()
    before = copied(X)
    plastic.close("0", [2, 3])
    masked = copied(X)
    assert not torch.allclose(masked, before)
    plain = plastic.export(of=copied)
    assert type(plain) is nn.Sequential and plain[0].out_channels == 4 and not plain._forward_hooks
    torch.testing.assert_close(plain.eval()(X), masked)
    assert not torch.equal(plain[6].weight, plastic.export()[6].weight)
    plastic.open("0", [2, 3])
    torch.testing.assert_close(copied(X), before)
    with torch.no_grad():
        model[0].weight.zero_()
    torch.testing.assert_close(copied(X), before)


def test_a_training_is_the_same_with_and_without_a_copy():
    ends = []
    for follow in (True, False):
        model, plastic, _, _ = trained(copy.deepcopy, follow=follow)
        plastic.grow({"0": 2})
        ends.append((copy.deepcopy(model.state_dict()), torch.rand(3)))
    assert all(torch.equal(v, ends[1][0][n]) for n, v in ends[0][0].items()) and torch.equal(ends[0][1], ends[1][1])


def test_copies_made_before_attach_and_in_another_precision():
    model = net()
    copied = copy.deepcopy(model).double()
    plastic = npn.attach(model, X)
    plastic.follow(copied)
    plastic.close("3", [1])
    plastic.compact()
    plastic.grow({"3": 2})
    assert copied[3].weight.dtype == torch.float64 and copied[3].weight.shape == model[3].weight.shape
    assert torch.equal(copied[3].weight.float(), model[3].weight)
    torch.testing.assert_close(copied(X.double()), model.double()(X.double()))


def test_branches_and_columns_of_a_copy_follow():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.outside = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x):
            return self.outside(torch.relu(self.inside(x)))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.last = nn.ModuleList([Block(), Block()]), nn.Linear(4, 2)

        def forward(self, x):
            for block in self.blocks:
                x = x + block(x)
            return self.last(x)

    model, x = Net(), torch.randn(5, 4)
    plastic = npn.attach(model, x, branches=["blocks.0", "blocks.1"], columns="last")
    copied = plastic.follow(copy.deepcopy(model))
    plastic.close("branches", [1])
    plastic.close("last.columns", [2])
    before = copied(x)
    plastic.compact()
    torch.testing.assert_close(copied(x), before)
    assert len(list(copied.parameters())) == len(list(model.parameters())) == 6
    assert copied.last.weight.shape == (2, 3)
    torch.testing.assert_close(plastic.export(of=copied)(x), before)


def test_what_is_no_copy_of_the_model():
    model = net()
    plastic = npn.attach(model, X)

    def refused(other, message):
        with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
            plastic.follow(other)

    start = "expected a copy with the model's names and shapes, got a "
    instead = "make it from the model as it is now: copy.deepcopy(plastic.model)"
    wider = net()
    wider[0] = nn.Conv2d(3, 7, 3)
    refused(
        wider, f"{start}Sequential in which 0.weight has shape (7, 3, 3, 3) where the model has (6, 3, 3, 3); {instead}"
    )
    refused(nn.Linear(3, 2), f"{start}Linear in which there is no 0.weight; {instead}")
    more = nn.Sequential(*net(), nn.Linear(2, 2))
    refused(more, f"{start}Sequential in which there is 7.weight, which the model does not have; {instead}")
    shared = "the copy shares 0.weight with the model, and would be resized twice; give copy.deepcopy(plastic.model)"
    refused(model, shared)
    refused(nn.Sequential(*model), shared)
    message = "this Sequential does not follow the model: give it to plastic.follow first"
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        plastic.export(of=copy.deepcopy(model))
    assert not plastic.followers


def test_a_copy_resized_by_hand_stops_the_resize_before_anything_changes():
    model, plastic, copied, _ = trained(copy.deepcopy)
    copied[0].bias.data = torch.zeros(5)
    plastic.close("0", [1])
    with pytest.raises(ResizeError, match=r"^0.bias has shape \(5,\) where \(6,\) was planned"):
        plastic.compact()
    assert model[0].weight.shape[0] == copied[0].weight.shape[0] == 6


def test_following_ends_with_the_copy_with_detach_and_with_a_load(tmp_path):
    plastic = npn.attach(net(), X)
    copied = plastic.follow(averaged(plastic.model))
    assert len(plastic.followers) == 1
    del copied
    gc.collect()
    assert not plastic.followers
    copied = plastic.follow(copy.deepcopy(plastic.model))
    assert plastic.follow(copied) is copied
    gc.collect()
    assert len(plastic.followers) == 1, "following twice is following once"
    plastic.close("0", [1])
    plastic.compact()
    npn.save(tmp_path / "small.npn", plastic)
    model = net()
    other = npn.attach(model, X)
    stale = other.follow(copy.deepcopy(model))
    message = (
        "a copy no longer follows the model, which has been loaded: 0.weight has shape (6, 3, 3, 3) where the model "
        "has (5, 3, 3, 3). Make the copy anew, copy.deepcopy(plastic.model), and give it to plastic.follow"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        npn.load(tmp_path / "small.npn", other)
    assert not stale._forward_hooks and stale(X).shape == (16, 2)
    plastic.close("0", [0])
    closed = copied(X)
    plastic.detach()
    assert not copied._forward_hooks and not torch.allclose(copied(X), closed)


class Closing(nn.Module):
    """Functions of its own have taken parts of it: a hook, one in a list, a default; and one has not."""

    def __init__(self):
        super().__init__()
        self.b, self.h, self.feats = nn.Sequential(nn.Linear(6, 16), nn.ReLU()), nn.Linear(16, 2), {}
        self.scale = nn.Parameter(torch.rand(16))
        keep = self.keep
        self.b[1].register_forward_hook(lambda module, args, output: keep(output))

        def scaled(x):
            return x * self.scale

        layers, self.kept = [self.h], types.SimpleNamespace()
        kept = self.kept
        self.steps, self.last = [lambda x: scaled(x)], lambda x, layers=layers: layers[0](x)
        self.h.register_forward_hook(lambda module, args, output: setattr(kept, "output", output))
        self.other, self.plain = (lambda x, keep=[]: x), F.relu

    def keep(self, output):
        self.feats["a"] = output

    def forward(self, x):
        self.b(x)
        self.last(self.steps[0](self.plain(self.other(self.feats["a"]))))
        return vars(self.kept).pop("output")


@pytest.mark.parametrize("compacted", [True, False])
def test_functions_that_have_taken_the_model_are_the_copys_own(compacted):
    model, x, z = Closing(), torch.randn(5, 6), torch.randn(5, 6)
    plastic = npn.attach(model, x)
    plastic.close("b.0", [0, 1])
    if compacted:
        plastic.compact()
    wanted = model(z)
    small = plastic.export()
    assert small.b[0].out_features == 14 and small.other is model.other and small.plain is F.relu
    model.feats.clear()  # torch copies no tensor with a history
    twin = copy.deepcopy(plastic)
    model(x)
    torch.testing.assert_close(small(z), wanted)
    with torch.no_grad():
        model.b[0].weight.zero_()
    torch.testing.assert_close(twin.model(z), wanted)
    alive = weakref.ref(model)
    del model, plastic, wanted, twin
    gc.collect()
    assert alive() is None, "the copy keeps nothing of the original"
    pruned = npn.prune(Closing(), x, target=0.5, criterion="magnitude")
    assert pruned.b[0].out_features < 16 and not torch.equal(pruned(x), pruned(z))


def test_functions_that_find_the_model_in_a_global_variable_are_named():
    scope = {"model": net()}
    scope["model"][2].register_forward_hook(
        eval("lambda module, args, output: model.__dict__.update(seen=output)", scope)
    )
    plastic = npn.attach(scope["model"], X)
    with pytest.warns(
        UserWarning, match=r"<lambda> at <string>:1 reads the global variable model, a part of this model"
    ):
        plastic.export()
