"""Code written with einops is views, permutations and means: its units are found like any other."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import npn

from ..zoo.checks import as_double, check_grow, check_shrink, check_training
from .op_models import Case, custom, maps, over_maps, sequence

einops = pytest.importorskip("einops")
layers = pytest.importorskip("einops.layers.torch")


def attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = (einops.rearrange(t, "b n (h d) -> b h n d", d=4) for t in m.qkv(x).chunk(3, -1))
    scores = einops.einsum(q, k, "b h i d, b h j d -> b h i j").softmax(-1)
    out = einops.einsum(scores, v, "b h i j, b h j d -> b h i d")
    return m.o(einops.rearrange(out, "b h n d -> b n (h d)"))


def with_token(m: Any, x: Tensor) -> Tensor:
    h, _ = einops.pack([m.token.expand(2, -1, -1), m.a(x)], "b * c")
    return m.c(torch.tanh(m.b(h)))


def mixed(m: Any, x: Tensor) -> Tensor:
    return m.c(torch.tanh(einops.einsum(m.a(x), m.w, "b n c, o c -> b n o")))


def patches() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 2, 2),
        layers.Rearrange("b c h w -> b (h w) c"),
        nn.Linear(8, 6),
        nn.Tanh(),
        layers.EinMix("b n c -> b n o", weight_shape="c o", bias_shape="o", c=6, o=5),
        nn.Tanh(),
        layers.Reduce("b n c -> b c", "mean"),
        nn.Linear(5, 2),
    )


def linear(*sizes: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(*sizes)


CASES: dict[str, Case] = {
    "attention": custom(attention, {"qkv": 4}, None, sequence, qkv=linear(4, 48), o=linear(16, 2)),
    "token": custom(
        with_token, {"a": 8, "b": 6}, None, sequence, a=linear(4, 8), token=(1, 1, 8), b=linear(8, 6), c=linear(6, 2)
    ),
    "einsum": custom(mixed, {"w": 6, "a": 8}, None, sequence, a=linear(4, 8), w=(6, 8), c=linear(6, 2)),
    "reduce": over_maps(lambda h: einops.reduce(h, "b c (h 2) (w 2) -> b c h w", "max")),
    "repeat": over_maps(lambda h: einops.repeat(h, "b c h w -> b c (h 2) (w r)", r=2)),
    "layers": Case(patches, maps, {"0": 8, "2": 6, "4": 5}),
}


@pytest.mark.parametrize("name", CASES)
def test_einops(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    model, inputs = case.make(), case.inputs()
    plastic = npn.attach(model, inputs)
    assert {g.name: g.size for g in plastic.groups} == case.groups
    check_shrink(plastic, inputs)
    check_grow(plastic, inputs)
    plastic = npn.attach(case.make().double(), as_double(inputs))
    check_training(plastic, as_double(inputs), functools.partial(torch.optim.Adam, lr=1e-2))
