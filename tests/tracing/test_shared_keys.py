"""Heads of queries come and go where all of them read the same keys: multi-query and latent attention, folded axes."""

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn

from ..zoo.checks import check_resizes
from .asking import reasons, sizes

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Queries(nn.Module):
    """Several heads of queries, and one of keys and values, all of shape (batch, heads, positions, features)."""

    def __init__(self, attend: Attend, heads: int = 3, keys: int = 1) -> None:
        super().__init__()
        self.attend = attend
        self.q, self.o = nn.Linear(6, heads * 4), nn.Linear(heads * 4, 2)
        self.k, self.v = nn.Linear(6, keys * 4), nn.Linear(6, keys * 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(self.attend(q, k, v).transpose(1, 2).flatten(2))


def scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1) @ v


def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, *(t.repeat_interleave(q.size(1) // t.size(1), 1) for t in (k, v)))


def expanded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As transformers repeats keys."""
    n, (b, heads, t, d) = q.size(1) // k.size(1), k.shape
    return scores(q, *(x[:, :, None].expand(b, heads, n, t, d).reshape(b, heads * n, t, d) for x in (k, v)))


def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, *(t.expand(-1, q.size(1), -1, -1) for t in (k, v)), is_causal=True)


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def summed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhqd,bkd->bhqk", q, k[:, 0]).softmax(-1)
    return torch.einsum("bhqk,bkd->bhqd", weights, v[:, 0])


KINDS = {f.__name__: f for f in (scores, repeated, expanded, kernel, grouped, summed)}


def attached(make: Callable[[], nn.Module], shape: tuple[int, ...] = (2, 5, 6)) -> tuple[npn.Plasticity, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(*shape, dtype=torch.float64)
    return npn.attach(make().double(), x), x


@pytest.mark.parametrize("name", KINDS)
def test_heads_of_queries_without_keys_of_their_own(name: str) -> None:
    make = functools.partial(Queries, KINDS[name])
    structure = attached(make)[0].structure
    assert sizes(structure) == {"q": 3}
    assert ("k.weight", 0) not in structure.resizable
    check_resizes(functools.partial(attached, make))


@pytest.mark.parametrize("name", ["repeated", "expanded", "grouped"])
def test_heads_of_queries_with_two_heads_of_keys(name: str) -> None:
    make = functools.partial(Queries, KINDS[name], 6, 2)
    structure = attached(make)[0].structure
    assert sizes(structure) == {"q": 2}
    assert ("k.weight", 0) in structure.resizable
    check_resizes(functools.partial(attached, make))


class Latent(nn.Module):
    """DeepSeek's attention: every head has keys of its own, and beside them the same rotary features as all others."""

    def __init__(self, heads: int = 3) -> None:
        super().__init__()
        self.q, self.kv, self.shared = nn.Linear(6, heads * 6), nn.Linear(6, heads * 9), nn.Linear(6, 2)
        self.o = nn.Linear(heads * 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (-1, 6)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (-1, 9)).transpose(1, 2).split([4, 5], -1)
        return self.o(scores(q, self.joined(k, self.shared(x)[:, None]), v).transpose(1, 2).flatten(2))

    def joined(self, k: Tensor, shared: Tensor) -> Tensor:
        return torch.cat([k, shared.expand(-1, k.size(1), -1, -1)], -1)


class Written(Latent):
    """As transformers writes it since version 5."""

    def joined(self, k: Tensor, shared: Tensor) -> Tensor:
        keys = k.new_empty(*k.shape[:-1], 6)
        keys[..., :4].copy_(k)
        keys[..., 4:].copy_(shared.expand(-1, k.shape[1], -1, -1))
        return keys


@pytest.mark.parametrize("kind", [Latent, Written])
def test_heads_beside_features_that_all_of_them_share(kind: type[Latent]) -> None:
    structure = attached(kind)[0].structure
    assert sizes(structure) == {"q": 3}
    assert "the product at" in reasons(structure, "shared.weight", 0)
    check_resizes(functools.partial(attached, kind))


class Folded(nn.Module):
    """Positions are added to a map, one axis of which is then a part of the batch (axial attention, windows)."""

    def __init__(self, where: tuple[int, ...] = (4, 5)) -> None:
        super().__init__()
        self.stem, self.positions = nn.Linear(3, 12), nn.Parameter(torch.randn(1, *where, 12))
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = (self.stem(x) + self.positions).flatten(0, 1)
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(scores(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("where", [(4, 5), (4, 1), (1, 5)])
def test_heads_behind_positions_that_are_folded_into_the_batch(where: tuple[int, ...]) -> None:
    make = functools.partial(Folded, where)
    structure = attached(make, (2, 4, 5, 3))[0].structure
    assert sizes(structure) == {"stem": 12, "q": 3}
    check_resizes(functools.partial(attached, make, (2, 4, 5, 3)))
