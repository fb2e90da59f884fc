"""Tries of attributes on the meta device: the same groups, attributes and reasons as with fake tensors alone."""

import gc
from collections import OrderedDict

import pytest
import torch
from torch import nn

from npn.tracing.capture.graph import output_shapes
from npn.tracing.rehearsal.rehearsal import Rehearsal
from npn.tracing.trace import trace

X = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))


class Heads(nn.Module):
    """Attention that reads its number of heads from an attribute, beside others of the same value."""

    def __init__(self, device=None, frozen=False):
        super().__init__()
        self.heads, self.layers, self.depth = 4, 4, 16
        self.device, self.frozen = device, frozen
        self.q, self.k, self.v = (nn.Linear(12, 16) for _ in range(3))
        self.out, self.end = nn.Linear(16, 6), nn.Linear(6, 2)

    def forward(self, x):
        heads = 4 if self.frozen else self.heads
        q, k, v = (layer(x).view(2, 3, heads, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        position = torch.arange(3, device=self.device)  # a tensor on the CPU does not meet those of the meta device
        scores = (q @ k.transpose(2, 3) + (position[None] - position[:, None])).softmax(-1)
        return self.end(torch.relu(self.out((scores @ v).transpose(1, 2).reshape(2, 3, heads * 4))))


def found(model):
    structure = trace(model, X)
    return (
        [(g.name, g.size, g.attributes, g.multiple) for g in structure.groups],
        [(f.name, f.reason) for f in structure.frozen],
    )


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_same_as_with_fake_tensors(monkeypatch, device, frozen):
    model = Heads(device, frozen)
    groups, reasons = found(model)
    monkeypatch.setattr(Rehearsal, "_runs_on_meta", False)
    assert (groups, reasons) == found(model)
    heads = [attributes for name, _, attributes, _ in groups if name == "q"]
    assert heads == ([] if frozen else [(("", "heads", 1),)])


def test_the_meta_device_gives_the_shapes_of_fake_tensors():
    model = Heads()
    wider = {"out.weight": (9, 16), "out.bias": (9,), "end.weight": (2, 9)}
    for shapes in ({}, wider):
        assert output_shapes(model, X, shapes, meta=True) == output_shapes(model, X, shapes) == ((2, 3, 2),)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    with pytest.raises(RuntimeError):
        output_shapes(Heads("cpu"), X, {}, meta=True)


class Chain(nn.Module):
    """Layers of different kinds, some of which the code views at the size that they have."""

    def __init__(self, stuck=()):
        super().__init__()
        self.stuck = [letter in stuck for letter in "abcdefghijklmnop"]
        for i, letter in enumerate("abcdefghijklmnop"):
            setattr(self, letter, nn.Linear(6 + i if i else 12, 7 + i))
        self.end = nn.Linear(22, 2)

    def forward(self, x):
        for i, letter in enumerate("abcdefghijklmnop"):
            x = getattr(self, letter)(x).relu()
            x = x.view(2, 3, 7 + i) if self.stuck[i] else x
        return self.end(x)


@pytest.mark.parametrize("stuck", ["", "d", "ap", "abcdefghijklmnop"])
def test_what_fails_is_found_by_halves(monkeypatch, stuck):
    """Of sixteen kinds one that fails takes some runs at the cost of a few, and all are judged as each alone."""
    runs, real = [], Rehearsal.run
    monkeypatch.setattr(Rehearsal, "run", lambda *args, **how: runs.append(args[2]) or real(*args, **how))
    groups, reasons = found(Chain(stuck))
    assert [name for name, *_ in groups] == [letter for letter in "abcdefghijklmnop" if letter not in stuck]
    assert {name[0] for name, reason in reasons if "invalid for input of size" in reason} == set(stuck)
    tries = [names for names in runs if len(names) > 1 or names[0] not in stuck]
    assert len(tries) <= {"": 0, "d": 10, "ap": 18}.get(stuck, 31)


def test_collections_go_on_after_a_trace():
    model = Heads()
    assert gc.isenabled()
    trace(model, X)
    assert gc.isenabled()
    gc.disable()
    try:
        trace(model, X)
        assert not gc.isenabled()
    finally:
        gc.enable()


class Attention(nn.Module):
    """The width of a head follows from the number of heads, so that the code runs at any size."""

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.q, self.k, self.v, self.o = *(nn.Linear(12, 16) for _ in range(3)), nn.Linear(16, 12)

    def forward(self, x):
        q, k, v = (f(x).view(2, 3, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        return x + self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_what_helps_one_layer_is_tried_on_all_others_at_once(monkeypatch):
    tried, whole = [], Rehearsal._resized
    monkeypatch.setattr(Rehearsal, "_resized", lambda self, *a: tried.append(a) or whole(self, *a))

    def number(names):
        tried.clear()
        structure = trace(nn.Sequential(OrderedDict((name, Attention()) for name in names)), X)
        assert {g.name: g.attributes for g in structure.groups} == {f"{n}.q": ((n, "heads", 1),) for n in names}
        return len(tried)

    assert number(["down", "middle", "up", "first", "last"]) == number(["down", "up"])
