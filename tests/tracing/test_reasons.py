"""What `plastic.frozen` says: each dimension once for each reason, and what to do about it."""

import pytest
import torch
from torch import nn

import npn
from npn.tracing import trace

X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


def said(model, x=X, **options):
    return [(entry.name, entry.reason) for entry in npn.attach(model, x, **options).frozen]


class Masked(nn.Module):
    """A layer whose weight is masked by a buffer, as in MADE."""

    def __init__(self, dtype):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 4), nn.Linear(4, 2)
        self.register_buffer("mask", (torch.arange(48).view(6, 8) % 3 > 0).to(dtype))

    def forward(self, x):
        h = nn.functional.linear(self.a(x).relu(), self.b.weight * self.mask, self.b.bias)
        return self.d(self.c(h.relu()).relu())


def test_a_mask_of_booleans_is_told_to_be_floating_point():
    words = "a buffer of booleans or whole numbers; as a floating-point buffer it would be resized with them"
    assert any(name == "b.weight[0]" and reason.endswith(words) for name, reason in said(Masked(torch.bool)))
    assert npn.attach(Masked(torch.float32), X).sizes() == {"a": 8, "b": 6, "c": 4}


class Gated(nn.Module):
    """Units of one layer that are used in two ways, each of which keeps them."""

    def __init__(self):
        super().__init__()
        self.a, self.gate, self.out = nn.Linear(5, 8), nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, x):
        h = self.a(x)
        return self.out(h * self.gate(h).softmax(-1)[:, :1])


def test_nothing_is_said_twice():
    found = said(Gated())
    assert len(found) == len(set(found))
    assert [reason[:8] for name, reason in found if name == "gate.weight[0]"] == ["_softmax"]


class ByHand(nn.Module):
    def __init__(self, length):
        super().__init__()
        self.length = length
        self.a, self.g = nn.Linear(5, 8), nn.Parameter(torch.ones(8))
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = self.a(x)
        h = h / self.length(h) * self.g
        return self.down(self.up(h).relu())


@pytest.mark.parametrize(
    ("op", "length"),
    [
        ("mean", lambda h: (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()),
        ("linalg_vector_norm", lambda h: h.norm(dim=-1, keepdim=True)),
        ("sum", lambda h: h.abs().sum(-1, keepdim=True)),
        ("std", lambda h: h.std(-1, keepdim=True)),
    ],
)
def test_a_norm_by_hand_is_told_of_streams(op, length):
    reasons = dict(said(ByHand(length)))
    assert reasons["a.weight[0]"].startswith(f"{op} mixes every unit of the axis at test_reasons.py:")
    assert reasons["a.weight[0]"].endswith(" (streams=True may let them go)")
    assert "a.weight[0]" not in dict(said(ByHand(length), streams=True))
    assert not any("streams" in reason for _, reason in said(Gated()))


class Between(nn.Module):
    def __init__(self, code, conv=False):
        super().__init__()
        self.a = nn.Conv2d(5, 8, 1) if conv else nn.Linear(5, 8)
        self.b = nn.Conv2d(8, 6, 1) if conv else nn.Linear(8, 6)
        self.c, self.conv, self.code = nn.Linear(6, 2), conv, code

    def forward(self, x):
        h = self.b(self.code(self.a(x[:, :, None, None] if self.conv else x)))
        return self.c(h.flatten(1))


def taken(h):
    return torch.take(h, torch.arange(h.numel())).view(h.shape)


def test_what_reads_units_that_an_op_has_frozen_names_the_op():
    cause = "no rule for take, called at test_reasons.py:"
    for code in (taken, lambda h: torch.tanh(taken(h))[:, :] * 2):
        for conv in (False, True):
            reasons = dict(said(Between(code, conv)))
            assert reasons["a.weight[0]"].startswith(cause)
            assert f", which comes from here: {cause}" in reasons["b.weight[1]"]
            assert reasons["b.weight[1]"].startswith("it reads an input of fixed size at ")
            assert "which comes" not in reasons["a.weight[1]"]


class Tasks(nn.Module):
    """A trunk and a head for each task, named by an argument."""

    def __init__(self):
        super().__init__()
        self.trunk, self.heads = nn.Linear(5, 8), nn.ModuleDict({"a": nn.Linear(8, 2), "b": nn.Linear(8, 3)})

    def forward(self, x, task):
        return self.heads[task](self.trunk(x).relu())


class Every(nn.Module):
    """Calls a model with each task."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return [self.model(x, task) for task in self.model.heads]


def test_weights_that_an_argument_may_choose_are_named():
    message = "heads.b.weight, heads.b.bias take no part in the forward pass on example_inputs, which hold 'a'"
    with pytest.warns(UserWarning, match=message):
        npn.attach(Tasks(), (X, "a"))
    model = Tasks()
    plastic = npn.attach(Every(model), X)
    plastic.close("model.trunk", [1])
    with npn.masked(plastic):
        expected = model(X, "b")
    plastic.compact()
    torch.testing.assert_close(model(X, "b"), expected)


class InOneMemory(nn.Module):
    """Two layers whose weights are two parameters in one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.a, self.b, self.down = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.b.weight.data = self.a.weight.data

    def forward(self, x):
        return self.down(self.b(self.a(self.up(x).tanh()).tanh()).tanh())


def test_two_parameters_in_one_memory_are_not_parted():
    """With each step both change; after a resize of one they would learn apart."""
    model = InOneMemory()
    with pytest.raises(
        npn.PlasticityError, match=r"a.weight and b.weight are two tensors in one memory.*make them one"
    ):
        npn.attach(model, torch.randn(2, 3))
    model.b.weight = model.a.weight
    assert {group.name for group in trace(model, torch.randn(2, 3)).groups} == {"up"}
    model.b.weight = nn.Parameter(model.a.weight.detach().clone())
    assert [group.name for group in trace(model, torch.randn(2, 3)).groups] == ["up", "a", "b"]


def test_a_buffer_in_the_memory_of_a_weight_keeps_its_size():
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
    model[2].register_buffer("seen", model[2].weight.detach())
    with pytest.raises(npn.PlasticityError, match=r"2.weight and 2.seen are two tensors in one memory"):
        npn.attach(model, torch.randn(2, 3))
