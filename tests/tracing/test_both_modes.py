"""Train and eval mode: units that only one of them can resize are frozen, whichever the model is attached in."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn
from npn.tracing import modes


class Net(nn.Module):
    """A layer whose units something happens to in one of the modes."""

    def __init__(self, then) -> None:
        super().__init__()
        self.emb, self.norm, self.drop, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3)
        self.then = then

    def forward(self, x):
        return self.then(self, self.drop(self.norm(self.emb(x))))


ALIKE = {
    "modules alone": lambda net, h: net.head(h),
    "functional dropout": lambda net, h: net.head(F.dropout(h, 0.5, net.training)),
    "noise": lambda net, h: net.head(h + 0.1 * torch.randn_like(h) if net.training else h),
    "drop path": lambda net, h: net.head(h * torch.bernoulli(h.new_full((len(h), 1), 0.5)) if net.training else h),
}
ANOTHER = {
    "unit length in eval()": (lambda net, h: net.head(h if net.training else F.normalize(h)), "mixes every unit"),
    "their spread in train()": (
        lambda net, h: net.head(h * (1 + 0.1 * h.std(1, keepdim=True)) if net.training else h),
        "mixes every unit",
    ),
    "pairs in train()": (lambda net, h: net.head(h + 0.1 * h.flip(1) if net.training else h), "units are other ones"),
    "a price of activity in train()": (
        lambda net, h: (net.head(h), h.square().mean()) if net.training else net.head(h),
        "mixes every unit",
    ),
    "an output in train()": (lambda net, h: (net.head(h), h) if net.training else net.head(h), "the model's output"),
    "a fixed size in eval()": (
        lambda net, h: net.head(h if net.training else h.view(-1, 8)),
        "the code fixes this size",
    ),
    "the first four in eval()": (
        lambda net, h: net.head(h if net.training else torch.cat([2 * h[:, :4], h[:, 4:]], 1)),
        "units are other ones|number of units does not follow the size",
    ),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ALIKE)
def test_what_leaves_units_to_themselves_in_both_modes_has_gates(name, training):
    torch.manual_seed(0)
    model, x = Net(ALIKE[name]).train(training), torch.randn(4, 6)
    plastic = npn.attach(model, x)
    assert [group.size for group in plastic.groups] == [8] and model.training is training


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ANOTHER)
def test_what_one_mode_does_to_units_freezes_them_whichever_is_on(name, training):
    then, reason = ANOTHER[name]
    with pytest.raises(npn.errors.TraceError, match=rf"emb\.weight\[0\]: .*{reason}"):
        npn.attach(Net(then).train(training), torch.randn(4, 6))


def test_the_other_mode_is_traced_only_where_it_calls_something_else(monkeypatch):
    traced = []
    once = modes.single_trace
    monkeypatch.setattr(
        modes, "single_trace", lambda model, *args, **kw: traced.append(model.training) or once(model, *args, **kw)
    )
    npn.attach(Net(ALIKE["functional dropout"]), torch.randn(4, 6))
    assert traced == [True]
    npn.attach(Net(ALIKE["noise"]), torch.randn(4, 6))
    assert traced == [True, True, False]


class Remembers(nn.Module):
    """A running mean that only train mode touches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        h = self.a(x).relu()
        if self.training:
            self.mean.lerp_(h.detach().mean(0), 0.1)
        return self.b(h)


def test_a_buffer_of_train_mode_follows_where_the_model_was_attached_in_eval_mode():
    model, x = Remembers().eval(), torch.randn(4, 6)
    plastic = npn.attach(model, x)
    model.train()(x)
    means = model.mean[2:].clone()
    plastic.close("a", [0, 1])
    plastic.compact()
    torch.testing.assert_close(model.mean, means, rtol=0, atol=0)
    plastic.grow({"a": 3})
    model.train()(x)
    assert model.mean.shape == (9,) and model.eval()(x).shape == (4, 2)


def test_a_mode_that_cannot_be_traced_is_told():
    def then(net, h):
        return net.head(h + 1 if net.training and float(h.sum()) > 0 else h)

    torch.manual_seed(0)
    words = "in train() the forward pass computes something else than in eval(), and it cannot be traced there ("
    why = "the forward pass decides by the value of a tensor at test_both_modes.py"
    for training in (False, True):
        with pytest.warns(UserWarning, match=re.escape(words + why)):
            plastic = npn.attach(Net(then).train(training), torch.randn(4, 6))
        assert [group.size for group in plastic.groups] == [8]


class Sets(nn.Module):
    """Units that come in pairs in eval mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        h = self.a(x)
        return self.b(h.relu() if self.training else h.unflatten(1, (2, -1)).relu().flatten(1, 2))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_sets_of_one_mode_hold_in_both(training):
    model = Sets().train(training)
    plastic, x = npn.attach(model, torch.randn(2, 3, 4, 4)), torch.randn(2, 3, 4, 4)
    assert [group.multiple for group in plastic.groups] == [2]
    plastic.close("a", [0, 1, 4])
    masked = [model.train(mode)(x) for mode in (True, False)]
    assert plastic.compact().changes == {"a": (8, 6)}
    for mode, expected in zip((True, False), masked, strict=True):
        torch.testing.assert_close(model.train(mode)(x), expected)


class Joined(nn.Module):
    """Two layers side by side, read by one head, and by another one in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head, self.aux = nn.Linear(6, 8), nn.Linear(6, 4), nn.Linear(18, 3), nn.Linear(12, 3)

    def forward(self, x):
        h = torch.cat([self.a(x), self.b(x)], 1)
        return (self.head(torch.cat([x, h], 1)), self.aux(h)) if self.training else self.head(torch.cat([x, h], 1))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_groups_that_share_an_axis_are_told_apart(training):
    torch.manual_seed(0)
    model, x = Joined().train(training), torch.randn(4, 6)
    plastic = npn.attach(model, x)
    assert plastic.sizes() == {"a": 8, "b": 4}
    plastic.close("a", [0, 5])
    plastic.close("b", [1])
    masked = model.train()(x), (model.eval()(x),)
    plastic.compact()
    for ours, wanted in zip((model.train()(x), (model.eval()(x),)), masked, strict=True):
        for one, other in zip(ours, wanted, strict=True):
            torch.testing.assert_close(one, other)
