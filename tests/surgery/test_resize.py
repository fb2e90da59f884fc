"""Resizes keep identities, layouts and attributes, and go on for ever."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import npn
from npn.errors import ResizeError

from .training import steps, trained


@pytest.mark.parametrize("name", ["mlp", "conv", "residual", "recurrent", "depthwise"])
def test_removed_is_masked_is_exported(tiny, tools, name):
    spec = tiny[name]
    model, plastic = spec.attach()
    x, _ = spec.data()
    torch.manual_seed(1)
    for group in plastic.groups:
        plastic.close(group, [0, group.size - 1])
    masks = tools.masks_of(plastic, torch.cat([g.gate.mask for g in plastic.groups]))
    for training in (True, False):
        model.train(training)
        wanted = spec.masked_copy(model, masks)(x)
        small = plastic.export()
        assert type(small) is type(model) and npn.count_params(small) < npn.count_params(model)
        torch.testing.assert_close(model(x), wanted)
    model.eval()
    small, wanted = plastic.export(), model(x)
    plastic.compact()
    torch.testing.assert_close(small(x), wanted)
    torch.testing.assert_close(model(x), wanted)
    assert tools.same(small, model)


@pytest.mark.parametrize("name", ["mlp", "conv", "residual", "recurrent", "depthwise"])
def test_growth_keeps_the_function_and_then_learns(tiny, name):
    spec = tiny[name]
    model, plastic = spec.attach(penalty=npn.Penalty(weight=0.0))
    x, y = spec.data()
    sgd = torch.optim.SGD(plastic.weights(), lr=0.1, momentum=0.9)
    plastic.track(sgd)
    for training in (True, False):
        model.train(training)
        state = {n: b.clone() for n, b in model.named_buffers()}
        wanted = model(x)
        model.load_state_dict(state, strict=False)
        report = plastic.grow({g.name: 2 for g in plastic.groups})
        assert (
            report.changes == {g.name: (g.size - 2, g.size) for g in plastic.groups}
            and report.params[1] > report.params[0]
        )
        torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-6)
    model.train()
    new = {g.name: range(g.size - 2, g.size) for g in plastic.groups}
    read = [(model.get_parameter(s.tensor), s.axis, s.index[list(new[g.name])].reshape(-1))
            for g in plastic.groups for s in g.slots if s.reads]  # fmt: skip
    assert all(bool((p.index_select(a, i) == 0).all()) for p, a, i in read)
    made = [
        (model.get_parameter(g.slots[0].tensor), g.slots[0].index[list(new[g.name])].reshape(-1))
        for g in plastic.groups
    ]
    assert all(bool((p[i].flatten(1) != 0).any(1).all()) for p, i in made)
    before = [p[i].detach().clone() for p, i in made]
    loss = [float(steps(model, plastic, (sgd,), x, y)) for _ in range(6)]
    assert all(bool((p.index_select(a, i) != 0).any()) for p, a, i in read), "the fan-out of new units moves"
    assert all(not torch.equal(p[i], b) for (p, i), b in zip(made, before, strict=True)), "their fan-in, too"
    assert loss[-1] < loss[0]


def test_attributes_follow(tiny):
    model, plastic = tiny["depthwise"].attach()
    plastic.close("0", [1, 4])
    plastic.close("6", [0])
    plastic.compact()
    stem, norm, deep, point, head = model[0], model[1], model[3], model[6], model[10]
    assert (stem.out_channels, norm.num_features, model[4].num_features) == (4, 4, 4)
    assert (deep.groups, deep.in_channels, deep.out_channels) == (4, 4, 4)
    assert (point.in_channels, point.out_channels, head.in_features, head.out_features) == (4, 4, 4, 2)
    plastic.grow({"0": 3, "6": 1})
    assert (deep.groups, deep.in_channels, deep.out_channels, stem.out_channels, norm.num_features) == (7,) * 5
    assert (point.in_channels, point.out_channels, head.in_features) == (7, 5, 5)
    assert "groups=7" in repr(deep) and "in_features=5" in repr(head)


def test_recurrent_hidden_size_follows(tiny):
    model, plastic = tiny["recurrent"].attach()
    plastic.close("lstm", [2])
    plastic.close("stem", [0])
    plastic.compact()
    assert (model.lstm.hidden_size, model.lstm.input_size, model.head.in_features) == (3, 2, 3)
    plastic.grow({"lstm": 2})
    assert model.lstm.hidden_size == 5 and model(tiny["recurrent"].data()[0]).shape == (5, 2)


def test_batch_norm_buffers_follow(tiny):
    model, plastic, *_ = trained(tiny)
    mean, count = model[1].running_mean.clone(), model[1].num_batches_tracked.clone()
    buffer = model[1].running_mean
    plastic.close("0", [0])
    plastic.compact()
    plastic.grow({"0": 1})
    assert model[1].running_mean is buffer and torch.equal(model[1].running_mean[:2], mean[1:])
    assert (
        model[1].running_mean[2] == 0
        and model[1].running_var[2] == 1
        and torch.equal(model[1].num_batches_tracked, count)
    )
    assert model[1].weight[2] == 1 and model[1].bias[2] == 0


class KeepsTable(nn.Module):
    """Attention whose biases, one per head, are looked up once in eval(), and again after each change to train()."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.kept = 3, {}
        self.q, self.o = nn.Linear(4, 6), nn.Linear(6, 2)
        self.biases = nn.Parameter(torch.randn(3, 5))
        self.register_buffer("at", torch.arange(5)[:, None] * torch.arange(5) % 5)

    def train(self, mode: bool = True) -> "KeepsTable":
        if mode:
            self.kept = {}
        return super().train(mode)

    def forward(self, x):
        table = self.biases[:, self.at]
        if not self.training:
            table = self.kept.setdefault("table", table)
        q = self.q(x).view(2, 5, self.heads, -1).transpose(1, 2)
        y = (q @ q.transpose(2, 3) + table).softmax(-1) @ q
        return self.o(y.transpose(1, 2).reshape(2, 5, -1))


def test_what_a_model_keeps_of_its_weights_is_dropped_by_a_resize() -> None:
    torch.manual_seed(0)
    model, x = KeepsTable().eval(), torch.randn(2, 5, 4)
    with torch.no_grad():
        model(x)
    plastic = npn.attach(model, x)
    with torch.no_grad():
        model(x)
        plastic.close("q", [1])
        expected = model(x)
        assert model.kept
        torch.testing.assert_close(plastic.export()(x), expected)
        plastic.compact()
        torch.testing.assert_close(model(x), expected)
        plastic.grow({"q": 2})
        torch.testing.assert_close(model(x), expected)
    assert not model.training and not model.q.training


def test_the_last_unit_stays(tiny):
    model, plastic = tiny["mlp"].attach()
    plastic.k = 3.0
    with torch.no_grad():
        plastic.group("0").gate.logits.copy_(torch.tensor([-9.0, -8.0, -7.0, -8.5]))
    weight = model[0].weight[2].detach().clone()
    report = plastic.compact()
    assert report.changes == {"0": (4, 1)} and report.removed == {"0": (0, 1, 3)}
    assert torch.equal(model[0].weight, weight[None])
    assert not plastic.compact(), "and stays the next time"


def test_a_closed_layer_keeps_its_likeliest_unit(tiny):
    """Said aloud; and what is trained, exported and compacted is the same network."""
    model, plastic = tiny["mlp"].attach()
    x, _ = tiny["mlp"].data()
    plastic.close("0", [0, 1, 2])
    with torch.no_grad():
        plastic.group("0").gate.logits[1] += 0.1
    with pytest.warns(UserWarning, match=r"every unit of '0' is closed; unit 1 stays open"):
        plastic.close("0", [3])
    masks = {"0": torch.tensor([0.0, 1.0, 0.0, 0.0]), "2": torch.ones(3)}
    wanted = tiny["mlp"].masked_copy(model, masks)(x)
    torch.testing.assert_close(model(x), wanted)
    torch.testing.assert_close(plastic.export()(x), wanted)
    plastic.compact()
    assert model[0].out_features == 1
    torch.testing.assert_close(model(x), wanted)


def test_a_single_unit_grows_again(tiny):
    model, plastic = tiny["mlp"].attach()
    x, _ = tiny["mlp"].data()
    plastic.close("0", [0, 1, 3])
    plastic.compact()
    wanted = model(x)
    assert plastic.grow({"0": 3}).changes == {"0": (1, 4)}
    torch.testing.assert_close(model(x), wanted)


def test_what_is_kept_and_what_goes(tiny):
    """Under the threshold, or closed by hand and still closed; never in a grace period."""
    _, plastic = tiny["mlp"].attach()
    plastic.k = 2.0
    plastic.close("0", [0, 1])
    with torch.no_grad():
        plastic.group("0").gate.logits[1] = 0.5  # reopened by training
        plastic.group("0").gate.logits[2] = -5.0
        plastic.group("2").gate.logits[0] = -0.5  # closed, but not for good
        plastic.group("2").gate.logits[1] = -9.0
        plastic.group("2").gate.grace[1] = 2
    assert plastic.compact().removed == {"0": (0, 2)}
    plastic.k = math.inf
    assert plastic.compact().removed == {"2": (0,)}


def test_no_grad_and_inference_mode(tiny):
    model, plastic, optimizers, x, y = trained(tiny)
    plastic.close("0", [0])
    with torch.inference_mode(), pytest.raises(ResizeError, match=r"inside torch.inference_mode"):
        plastic.compact()
    with torch.inference_mode(), pytest.raises(ResizeError, match=r"inside torch.inference_mode"):
        plastic.grow({"0": 1})
    with torch.no_grad():
        plastic.compact()
        plastic.grow({"0": 2})
    assert all(p.requires_grad for p in model.parameters())
    steps(model, plastic, optimizers, x, y)


@st.composite
def histories(draw):
    moves = st.tuples(
        st.sampled_from(["close", "open", "compact", "grow", "train"]), st.integers(0, 1), st.integers(0, 9)
    )
    return draw(st.lists(moves, min_size=4, max_size=9))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(history=histories(), seed=st.integers(0, 99))
def test_many_resizes_in_a_row(tiny, history, seed):
    """After each, the model is the plain network with its closed columns zeroed, and every state fits."""
    spec = tiny["conv"]
    model, plastic = spec.attach(seed)
    x, y = spec.data()
    optimizers = torch.optim.Adam(plastic.weights(), lr=0.01), torch.optim.Adam(plastic.logits(), lr=0.3)
    plastic.track(*optimizers)
    plastic.k = 1.0
    ids = [id(p) for p in (*model.parameters(), *plastic.logits())]
    for move, which, amount in history:
        group = plastic.groups[which]
        unit = [amount % group.size]
        if move == "compact":
            plastic.compact(below=0.2)
        elif move == "grow" and group.size < 8:
            plastic.grow({group.name: 1 + amount % 3}, grace=amount % 2)
        elif move == "train":
            steps(model, plastic, optimizers, x, y)
        elif move in ("close", "open"):
            getattr(plastic, move)(group, unit)
        a, b = (g.size for g in plastic.groups)
        plain = nn.Sequential(
            nn.Conv2d(2, a, 3, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, b, 3, bias=False),
            nn.BatchNorm2d(b), nn.Tanh(), nn.Flatten(), nn.Linear(4 * b, 2),
        )  # fmt: skip
        assert repr(plain) == repr(model)
        plain.load_state_dict(model.state_dict())
        masks = [g.gate.mask | (g.gate.grace > 0) for g in plastic.groups]
        with torch.no_grad():
            plain[3].weight.mul_(masks[0].float()[:, None, None])
            plain[7].weight.mul_(masks[1].float().repeat_interleave(4))
        model.eval()
        torch.testing.assert_close(model(x), plain.eval()(x))
        model.train()
        for o in optimizers:
            for p, state in o.state.items():
                assert all(v.shape == p.shape for v in state.values() if v.dim())
        assert ids == [id(p) for p in (*model.parameters(), *plastic.logits())]


class Recorded(dict):
    """A dict that keeps which entries have been set."""

    def __init__(self, entries):
        super().__init__(entries)
        self.set = set()

    def __setitem__(self, key, value):
        self.set.add(key)
        super().__setitem__(key, value)


@pytest.mark.parametrize("change", ["compact", "grow", "load"])
def test_a_resize_puts_tensors_into_their_modules_anew(tiny, change, tmp_path):
    """Guards of torch.compile pass over the tensors of modules whose dicts are as they were, in PyTorch 2.11."""
    model, plastic = tiny["conv"].attach()
    group = plastic.groups[0]
    npn.save(tmp_path / "large.pt", plastic)
    plastic.close(group, [0])
    if change == "load":
        plastic.compact()
    places = [(module, kind) for module in model.modules() for kind in ("_parameters", "_buffers")]
    for module, kind in places:
        setattr(module, kind, Recorded(getattr(module, kind)))
    parameters = list(model.parameters())
    if change == "load":
        npn.load(tmp_path / "large.pt", plastic)
    else:
        plastic.compact() if change == "compact" else plastic.grow({group.name: 2})
    for module, kind in places:
        assert getattr(module, kind).set == set(getattr(module, kind))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


class Keeps(nn.Module):
    """Keeps what it computed in a buffer, which has a history then."""

    def __init__(self, in_place):
        super().__init__()
        self.a, self.b, self.in_place = nn.Linear(4, 8), nn.Linear(8, 2), in_place
        self.register_buffer("kept", torch.zeros(3, 8))

    def forward(self, x):
        if self.in_place:
            self.kept[:] = self.a(x).relu()
        else:
            self.kept = self.a(x).relu()
        return self.b(self.kept)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_buffer_that_an_earlier_call_computed(in_place):
    torch.manual_seed(0)
    model, x = Keeps(in_place), torch.randn(3, 4)
    model(x)
    assert not model.kept.is_leaf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plastic = npn.attach(model, x)
        plastic.close("a", [0, 3])
        masked = model(x)
        small = plastic.export()
        plastic.compact()
    for net in (model, small):
        found = net(x)
        torch.testing.assert_close(found, masked)
        found.sum().backward()
        assert net.a.weight.grad.shape == (6, 4) and net.kept.shape == (3, 6)
    if in_place:
        with torch.no_grad():
            before = model(x)
        plastic.grow({"a": 2})
        torch.testing.assert_close(model(x), before)
