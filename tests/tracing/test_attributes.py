"""Attributes that the dry run finds, and positions of grown units."""

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn
from npn.tracing import grown, trace

from ..zoo.checks import check_resizes
from .asking import reasons, sizes

# -- growth


class Mirrored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return self.b(torch.cat([h, -h.flip(1)], 1))


def test_growth_positions_are_traced_not_appended() -> None:
    model, x = Mirrored(), torch.randn(2, 3)
    structure = trace(model, x)
    slot = next(s for s in structure.groups[0].slots if s.key == ("b.weight", 1))
    assert slot.index.tolist() == [[0, 7], [1, 6], [2, 5], [3, 4]]
    larger = grown(model, x, structure, {"a": 2})
    slot = next(s for s in larger.groups[0].slots if s.key == ("b.weight", 1))
    assert slot.index.tolist() == [[0, 11], [1, 10], [2, 9], [3, 8], [4, 7], [5, 6]]
    assert model.b.weight.shape == (2, 8)


def test_growth_from_a_single_unit() -> None:
    model, x = Mirrored(), torch.randn(2, 3)
    plastic = npn.attach(model.eval(), x)
    plastic.close("a", [0, 1, 3])
    before = model(x)
    plastic.compact()
    assert plastic.groups[0].size == 1
    plastic.grow({"a": 3})
    assert plastic.groups[0].size == 4
    assert torch.allclose(model(x), before, atol=1e-6)


# -- attributes


class Heads(nn.Module):
    """`heads` is computed with; the others only happen to be equal."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.unrelated, self.version = heads, heads, heads
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, 2)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_the_dry_run_finds_the_attribute_and_leaves_others() -> None:
    structure = trace(Heads(), torch.randn(2, 3, 8))
    assert sizes(structure) == {"q": 4}
    assert structure.groups[0].attributes == (("", "heads", 1),)
    model = Heads()
    plastic = npn.attach(model, torch.randn(2, 3, 8))
    plastic.close("q", [1])
    plastic.compact()
    assert (model.heads, model.unrelated, model.version) == (3, 4, 4)
    plastic.grow({"q": 2})
    assert (model.heads, model.unrelated, model.version) == (5, 4, 4)


def test_repeated_layers_get_their_own_attributes() -> None:
    structure = trace(nn.Sequential(*(Heads() for _ in range(3))), torch.randn(2, 3, 8))
    assert {g.name: g.attributes for g in structure.groups if g.name.endswith("q")} == {
        f"{i}.q": ((str(i), "heads", 1),) for i in range(3)
    }


class NotedAbove(nn.Sequential):
    """The model notes a number of heads, too, and does not compute with it (XLM)."""

    def __init__(self) -> None:
        super().__init__(Heads(), Heads(), Heads())
        self.heads = 4


def test_layers_do_not_share_a_number_that_nothing_needs() -> None:
    structure = trace(NotedAbove(), torch.randn(2, 3, 8))
    assert {g.name: g.attributes for g in structure.groups if g.name.endswith("q")} == {
        f"{i}.q": ((str(i), "heads", 1),) for i in range(3)
    }


class OneNumberForTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.a, self.b, self.c, self.d = nn.Linear(3, 6), nn.Linear(6, 3), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(F.relu(self.a(x)).view(-1, self.width)).softmax(1)
        return self.d(F.relu(self.c(h)).view(-1, self.width))


def test_layers_that_need_one_number_are_one_group() -> None:
    """Unit 2 of one is unit 2 of the other: they come and go together."""

    def attached() -> tuple[npn.Plasticity, Tensor]:
        torch.manual_seed(0)
        x = torch.randn(2, 3, dtype=torch.float64)
        return npn.attach(OneNumberForTwo().double(), x), x

    structure = attached()[0].structure
    assert sizes(structure) == {"a": 6}
    assert structure.groups[0].attributes == (("", "width", 1),)
    assert {("a.weight", 0), ("b.weight", 1), ("c.weight", 0), ("d.weight", 1)} <= structure.resizable
    check_resizes(attached)


class Zeros(nn.Module):
    """The first layer makes zeros in the shape of its scores, to which all layers add a mask (T5's cross-attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Heads(3) for _ in range(2))
        for layer in self.layers:
            layer.q, layer.k, layer.v, layer.o = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        bias = torch.zeros(1, self.layers[0].heads, x.shape[1], x.shape[1]) + mask[:, None, None]
        for layer in self.layers:
            q, k, v = (f(x).unflatten(-1, (layer.heads, 2)).transpose(1, 2) for f in (layer.q, layer.k, layer.v))
            x = x + layer.o(((q @ k.mT + bias).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x


def test_layers_that_add_what_has_the_heads_of_the_first_are_one_group() -> None:
    def attached() -> tuple[npn.Plasticity, Any]:
        torch.manual_seed(0)
        x = torch.randn(2, 5, 8, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.float64)
        return npn.attach(Zeros().double(), x), x

    structure = attached()[0].structure
    assert sizes(structure) == {"layers.0.q": 3}
    assert {("layers.0.q.weight", 0), ("layers.1.o.weight", 1)} <= structure.resizable
    check_resizes(attached)


class OneNumberForTwoSizes(OneNumberForTwo):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = nn.Linear(3, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(F.relu(self.a(x)).view(-1, self.width)).softmax(1)
        return self.d(F.relu(self.c(h)).view(-1, 2 * self.width))


def test_two_sizes_of_one_attribute_are_frozen_with_that_reason() -> None:
    structure = trace(OneNumberForTwoSizes(), torch.randn(2, 3))
    assert sizes(structure) == {}
    for name in ("a.weight", "c.weight"):
        assert re.search("attribute width|together with others|fixes this size", reasons(structure, name, 0))


def test_one_hard_coded_layer_does_not_freeze_the_others() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            for i, layer in enumerate(self.layers):
                x = F.relu(layer(x))
                if i == 2:
                    x = x.view(-1, 6)
            return x

    structure = trace(Mixed(), torch.randn(2, 6))
    assert sizes(structure) == {"layers.0": 6, "layers.1": 6, "layers.3": 6}
    assert "the code fixes this size" in reasons(structure, "layers.2.weight", 0)
