"""Attention heads are units whatever is done to the features of one head: tables of positions, norms, slopes."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import npn

from ..zoo.checks import as_double, check_grow, check_shrink, check_training

P = nn.Parameter


class Heads(nn.Module):
    """Attention over 4 heads of 6 features; `f(self, z)` acts on queries and keys, `g(self, scores)` on the scores."""

    def __init__(self, f: Callable[..., Tensor], g: Callable[..., Tensor], kv: int = 4, **parts: Any) -> None:
        super().__init__()
        self.embed, self.q, self.o, self.head = nn.Linear(5, 8), nn.Linear(8, 24), nn.Linear(24, 8), nn.Linear(8, 3)
        self.k, self.v = nn.Linear(8, kv * 6), nn.Linear(8, kv * 6)
        self.f, self.g = f, g
        for name, make in parts.items():
            value = make()
            if isinstance(value, Tensor) and not isinstance(value, P):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.embed(x))
        q, k, v = (layer(h).unflatten(-1, (-1, 6)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = self.f(self, q), self.f(self, k)
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        a = self.g(self, q @ k.transpose(2, 3)).softmax(-1)
        return self.head(torch.tanh(self.o((a @ v).transpose(1, 2).flatten(2))))


def plain(s: Any, z: Tensor) -> Tensor:
    return z


def angles(length: int, features: int) -> Tensor:
    return torch.arange(length)[:, None] * 0.5 ** torch.arange(features)


def rotated(z: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = z.shape[-1] // 2
    return z * cos + torch.cat([-z[..., half:], z[..., :half]], -1) * sin


def partial(s: Any, z: Tensor, r: int = 4) -> Tensor:
    turn = torch.cat([angles(z.shape[2], r // 2)] * 2, -1)
    return torch.cat([rotated(z[..., :r], turn.cos(), turn.sin()), z[..., r:]], -1)


def partial_last(s: Any, z: Tensor) -> Tensor:
    return partial(s, z.flip(-1)).flip(-1)


def middle(s: Any, z: Tensor) -> Tensor:
    return torch.cat([z[..., :1], z[..., 1:5] * angles(z.shape[2], 4).cos(), z[..., 5:]], -1)


def interleaved(s: Any, z: Tensor) -> Tensor:
    z = z.transpose(1, 2)
    sin, cos = (t.repeat_interleave(2, -1)[:, None] for t in s.table[torch.arange(z.shape[1])].chunk(2, -1))
    turned = torch.stack([-z[..., 1:4:2], z[..., :4:2]], -1).flatten(-2)
    return torch.cat([z[..., :4] * cos + turned * sin, z[..., 4:]], -1).transpose(1, 2)


def slopes(s: Any, scores: Tensor) -> Tensor:
    heads, length = scores.shape[1], scores.shape[-1]
    return scores + (0.5 ** torch.arange(heads))[:, None, None] * torch.arange(length)


def kept_slopes(s: Any, scores: Tensor) -> Tensor:
    return scores + s.slopes * torch.arange(scores.shape[-1])


def normed(s: Any, z: Tensor) -> Tensor:
    return z * (z.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * s.w


def centred(s: Any, z: Tensor) -> Tensor:
    var, mean = torch.var_mean(z, -1, keepdim=True)
    return (z - mean) / (var + 1e-5).sqrt() * (1 + s.w) + s.b


def scaled(s: Any, z: Tensor) -> Tensor:
    return z * s.w


def shared_rotary(s: Any, z: Tensor) -> Tensor:
    return rotated(z, s.cos[: z.shape[2]], s.sin[: z.shape[2]])


def per_head(s: Any, z: Tensor) -> Tensor:
    table = torch.linspace(0.5, 2, z.shape[1] * 4).view(-1, 1, 4)
    return torch.cat([z[..., :4] * table, z[..., 4:]], -1)


def per_head_kept(s: Any, z: Tensor) -> Tensor:
    return torch.cat([z[..., :4] * s.table, z[..., 4:]], -1)


def param(*shape: int) -> Callable[[], Tensor]:
    return lambda: P(1 + 0.3 * torch.randn(*shape))


def fixed(*shape: int) -> Callable[[], Tensor]:
    return lambda: P(torch.randn(*shape), requires_grad=False)


FREE: dict[str, tuple[Any, ...]] = {  # heads, f, g, key and value heads, parts
    "rotary of some features": (4, partial, plain, 4, {}),
    "rotary of the last features": (4, partial_last, plain, 4, {}),
    "rotary of features in the middle": (4, middle, plain, 4, {}),
    "rotary with shared keys": (2, partial, plain, 2, {}),
    "interleaved rotary, the table a buffer": (4, interleaved, plain, 4, {"table": lambda: torch.randn(9, 4)}),
    "slopes in a buffer": (4, plain, kept_slopes, 4, {"slopes": lambda: torch.rand(4, 1, 1)}),
    "a table of each head in a buffer": (4, per_head_kept, plain, 4, {"table": lambda: torch.randn(4, 1, 4)}),
    "a norm by hand": (4, normed, plain, 4, {"w": param(6)}),
    "a norm by hand, shared keys": (2, normed, plain, 2, {"w": param(6)}),
    "a norm by hand with shift": (4, centred, plain, 4, {"w": param(6), "b": param(6)}),
    "a norm by hand with a weight of each head": (4, normed, plain, 4, {"w": param(4, 1, 6)}),
    "a norm before partial rotary": (4, lambda s, z: partial(s, normed(s, z)), plain, 4, {"w": param(6)}),
    "a norm after rotary": (4, lambda s, z: normed(s, partial(s, z, 6)), plain, 4, {"w": param(6)}),
    "a norm of torch": (4, lambda s, z: s.n(z), plain, 4, {"n": lambda: nn.RMSNorm(6)}),
    "a scale of each feature": (4, scaled, plain, 4, {"w": param(6)}),
    "a scale of each head": (4, scaled, plain, 4, {"w": param(4, 1, 1)}),
    "a scale of each feature in a buffer": (4, scaled, plain, 4, {"w": lambda: torch.rand(6)}),
    "a rotary table that is a frozen parameter": (4, shared_rotary, plain, 4, {"cos": fixed(9, 6), "sin": fixed(9, 6)}),
}
FIXED: dict[str, tuple[str, Any, Any, dict[str, Any]]] = {  # part of the reason, f, g, parts
    "slopes by the number of heads": (
        "which the code computes for their present number, or a buffer of booleans or whole numbers; as a floating",
        plain,
        slopes,
        {},
    ),
    "a table by the number of heads": ("combined with a value of fixed size", per_head, plain, {}),
}


@functools.cache
def attached(name: str) -> tuple[npn.Plasticity, Tensor]:
    torch.manual_seed(0)
    if name in FREE:
        _, f, g, kv, parts = FREE[name]
    else:
        (_, f, g, parts), kv = FIXED[name], 4
    x = torch.randn(2, 5, 5)
    return npn.attach(Heads(f, g, kv, **parts).eval(), x), x


@pytest.mark.parametrize("name", FREE)
def test_heads_are_units(name: str) -> None:
    plastic, _ = attached(name)
    assert {g.name: g.size for g in plastic.groups} == {"embed": 8, "q": FREE[name][0], "o": 8}


@pytest.mark.parametrize("name", FIXED)
def test_what_the_number_of_heads_decides_stays(name: str) -> None:
    plastic, _ = attached(name)
    assert {g.name: g.size for g in plastic.groups} == {"embed": 8, "o": 8}
    reasons = [f.reason for f in plastic.frozen if ("q.weight", 0) in f.slots]
    assert len(reasons) == 1
    assert FIXED[name][0] in reasons[0]
    assert "test_heads.py:" in reasons[0]


@pytest.mark.parametrize("name", [*FREE, *FIXED])
def test_masked_is_compact_is_exported_and_growth_is_silent(name: str) -> None:
    plastic, x = attached(name)
    plastic = copy.deepcopy(plastic)
    check_shrink(plastic, x, 1e-6)
    check_grow(plastic, x, 1e-6)


@pytest.mark.parametrize("name", [*FREE, *FIXED])
def test_training_goes_on_alike(name: str) -> None:
    plastic, x = attached(name)
    plastic = copy.deepcopy(plastic)
    plastic.model.double()
    check_training(plastic, as_double(x), functools.partial(torch.optim.Adam, lr=1e-2))


class Split(nn.Module):
    """Heads that are never mixed with others of their kind: `f(self, z)` and a plain layer."""

    def __init__(self, f: Callable[..., Tensor], **parts: Tensor) -> None:
        super().__init__()
        self.stem, self.f, self.head = nn.Linear(5, 24), f, nn.Linear(24, 3)
        self.other = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
        for name, value in parts.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.stem(x)).unflatten(-1, (-1, 6)).transpose(1, 2)
        return self.head(self.f(self, z).transpose(1, 2).flatten(2)) + self.other(x)


def test_a_table_of_some_features_does_not_make_units_of_heads_that_nothing_unites() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 5)
    plastic = npn.attach(Split(partial).eval(), x)
    assert {g.name: g.size for g in plastic.groups} == {"other.0": 4}
    assert all("test_heads.py:" in f.reason for f in plastic.frozen if ("stem.weight", 0) in f.slots)
    check_shrink(plastic, x, 1e-6)


def groups_of(model: nn.Module) -> dict[str, list[list[int]]]:
    """Rows of the stem that each unit has."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 5)
    plastic = npn.attach(model.eval(), x)
    found = {g.name: s.index.tolist() for g in plastic.structure.groups for s in g.slots if s.key == ("stem.weight", 0)}
    check_shrink(copy.deepcopy(plastic), x, 1e-6)
    check_grow(copy.deepcopy(plastic), x, 1e-6)
    plastic.model.double()
    check_training(plastic, as_double(x), functools.partial(torch.optim.Adam, lr=1e-2))
    return found


def test_the_weight_of_a_norm_serves_every_head_though_no_product_unites_them() -> None:
    heads = {"stem": [list(range(6 * i, 6 * i + 6)) for i in range(4)]}
    assert groups_of(Split(lambda s, z: normed(s, z), w=param(6)())) == heads
    assert groups_of(Split(lambda s, z: normed(s, z), w=param(4, 1, 6)())) == heads
    assert groups_of(Split(lambda s, z: z.softmax(-1) * s.w, w=param(6)())) == heads


def test_a_scale_of_each_feature_is_one_of_units_where_nothing_else_unites_features() -> None:
    """Then a unit is a feature of every head, and the code's 6 fixes them; one of each head makes units of heads."""
    assert groups_of(Split(scaled, w=param(6)())) == {}
    heads = {"stem": [list(range(6 * i, 6 * i + 6)) for i in range(4)]}
    assert groups_of(Split(scaled, w=param(4, 1, 1)())) == heads

    class ByHeads(Split):
        def forward(self, x: Tensor) -> Tensor:
            z = torch.tanh(self.stem(x)).unflatten(-1, (4, -1)).transpose(1, 2)
            return self.head(self.f(self, z).transpose(1, 2).flatten(2)) + self.other(x)

    assert groups_of(ByHeads(scaled, w=param(6)())) == {"stem": [[i + 6 * h for h in range(4)] for i in range(6)]}
