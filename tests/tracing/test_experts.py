"""Mixtures of experts with stacked weights: a unit is one hidden feature of every expert; the experts stay."""

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn
from npn.tracing.capture.graph import capture
from npn.tracing.grouping.walk import walk

from ..zoo.checks import as_double, check_grow, check_shrink, check_training

EXPERTS, CHOSEN, WIDTH, HIDDEN = 3, 2, 8, 16


@torch.library.custom_op("npn_tests::grouped_mm_fallback", mutates_args=())
def by_hand(rows: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    """What `transformers` calls while it is traced, of any type of numbers."""
    ends = [0, *offs.tolist()]
    return torch.cat([rows[a:b] @ w for (a, b), w in zip(itertools.pairwise(ends), weight, strict=True)])


def by_hand_back(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    rows, weight, offs = ctx.saved_tensors
    ends = [0, *offs.tolist()]
    spans = list(itertools.pairwise(ends))
    back = [grad[a:b] @ w.t() for (a, b), w in zip(spans, weight, strict=True)]
    return torch.cat(back), torch.stack([rows[a:b].t() @ grad[a:b] for a, b in spans]), None


by_hand.register_fake(lambda rows, weight, offs: rows.new_empty(len(rows), weight.shape[2]))
by_hand.register_autograd(by_hand_back, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


class Mixture(nn.Module):
    """A router sends each row to 2 of 3 experts, whose weights are stacked; `f(self, x, chosen)` applies them."""

    def __init__(self, f: Callable[..., Tensor], transposed: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.f, self.transposed = f, transposed
        self.embed, self.router, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 3)
        self.norm = nn.LayerNorm(WIDTH)
        up, down = (EXPERTS, 2 * HIDDEN, WIDTH), (EXPERTS, WIDTH, HIDDEN)
        if transposed:
            up, down = (EXPERTS, WIDTH, 2 * HIDDEN), (EXPERTS, HIDDEN, WIDTH)
        self.up, self.down = (nn.Parameter(torch.randn(shape) * 0.3) for shape in (up, down))
        if bias:
            self.shift = nn.Parameter(torch.randn(EXPERTS, 2 * HIDDEN) * 0.3)
        self.other = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.embed(x))
        scores, chosen = self.router(h).softmax(-1).topk(CHOSEN, -1)
        out = self.f(self, h, chosen)
        return self.head((out * scores[..., None]).sum(1)) + self.other(x)


def gated(z: Tensor) -> Tensor:
    gate, value = z.chunk(2, -1)
    return F.silu(gate) * value


def interleaved(z: Tensor) -> Tensor:
    return F.silu(z[..., ::2]) * z[..., 1::2]


def grouped(s: Mixture, h: Tensor, chosen: Tensor, act: Callable[[Tensor], Tensor] = gated) -> Tensor:
    """One product of rows sorted by expert."""
    expert, order = chosen.flatten().sort()
    ends = F.one_hot(expert, EXPERTS).sum(0).cumsum(0).int()
    product = F.grouped_mm if h.dtype == torch.bfloat16 else by_hand  # traced in bfloat16 only
    up, down = (w if s.transposed else w.transpose(1, 2) for w in (s.up, s.down))
    z = product(h[order // CHOSEN], up, offs=ends)
    if hasattr(s, "shift"):
        z = z + s.shift[expert]
    return product(act(z), down, offs=ends)[order.argsort()].unflatten(0, (-1, CHOSEN))


def gathered(s: Mixture, h: Tensor, chosen: Tensor) -> Tensor:
    """A matrix for each row."""
    up, down = s.up[chosen.flatten()], s.down[chosen.flatten()]
    z = gated(torch.bmm(up, h.repeat_interleave(CHOSEN, 0)[..., None])[..., 0])
    return torch.bmm(down, z[..., None])[..., 0].unflatten(0, (-1, CHOSEN))


def everywhere(s: Mixture, h: Tensor, chosen: Tensor) -> Tensor:
    """All experts on all rows."""
    out = gated(h.expand(EXPERTS, -1, -1) @ s.up.transpose(1, 2)) @ s.down.transpose(1, 2)
    return out.transpose(0, 1)[torch.arange(len(h))[:, None], chosen]


def flattened(s: Mixture, h: Tensor, chosen: Tensor) -> Tensor:
    """The same by einsum, which lays experts and their features along one axis."""
    z = gated(torch.einsum("bd,eid->bei", h, s.up))
    return torch.einsum("bei,edi->bed", z, s.down)[torch.arange(len(h))[:, None], chosen]


def each(s: Mixture, h: Tensor, chosen: Tensor) -> Tensor:
    """A loop over the experts, each on all rows."""
    out = [F.linear(gated(F.linear(h, s.up[e])), s.down[e]) for e in range(EXPERTS)]
    return torch.stack(out, 1)[torch.arange(len(h))[:, None], chosen]


def routed(s: Mixture, h: Tensor, chosen: Tensor) -> Tensor:
    """A loop over the experts, each on the rows that are sent to it."""
    out = h.new_zeros(len(h), CHOSEN, s.down.shape[1])
    for e in range(EXPERTS):
        row, place = torch.where(chosen == e)
        out[row, place] = F.linear(gated(F.linear(h[row], s.up[e])), s.down[e])
    return out


KINDS: dict[str, Callable[[], nn.Module]] = {
    "grouped": lambda: Mixture(grouped),
    "grouped, bfloat16": lambda: Mixture(grouped).bfloat16(),
    "grouped, bfloat16, weights transposed": lambda: Mixture(grouped, transposed=True).bfloat16(),
    "grouped, weights transposed": lambda: Mixture(grouped, transposed=True),
    "grouped, with bias": lambda: Mixture(grouped, bias=True),
    "grouped, gates interleaved": lambda: Mixture(functools.partial(grouped, act=interleaved)),
    "gathered": lambda: Mixture(gathered),
    "everywhere": lambda: Mixture(everywhere),
    "in one product": lambda: Mixture(flattened),
    "each": lambda: Mixture(each),
    "routed": lambda: Mixture(routed),
}


@functools.cache
def attached(name: str) -> tuple[npn.Plasticity, Tensor]:
    torch.manual_seed(0)
    model, x = KINDS[name]().eval(), torch.randn(6, 5)
    x = x.to(model.up.dtype)
    return npn.attach(model, x), x


def tolerance(name: str) -> float:
    return 0.02 if "bfloat16" in name else 1e-6


def of_experts(plastic: npn.Plasticity) -> npn.UnitGroup:
    (group,) = (g for g in plastic.groups if g.size == HIDDEN)
    return group


@pytest.mark.parametrize("name", KINDS)
def test_hidden_features_of_all_experts_are_units(name: str) -> None:
    plastic, _ = attached(name)
    group = of_experts(plastic)
    assert {g.name: g.size for g in plastic.groups if g is not group} == {"down": WIDTH, "other.0": 4}
    slots = {s.key: s.index.tolist() for g in plastic.structure.groups if g.name == group.name for s in g.slots}
    up, down = ("up", 2 if "transposed" in name else 1), ("down", 1 if "transposed" in name else 2)
    pairs = [[2 * i, 2 * i + 1] if "interleaved" in name else [i, HIDDEN + i] for i in range(HIDDEN)]
    assert slots[up] == pairs
    assert slots[down] == [[i] for i in range(HIDDEN)]
    assert {f.size for f in plastic.frozen if ("up", 0) in f.slots} == {EXPERTS}
    assert all("test_experts.py:" in f.reason for f in plastic.frozen if ("up", 0) in f.slots)


@pytest.mark.parametrize("name", KINDS)
def test_masked_is_compact_is_exported_and_growth_is_silent(name: str) -> None:
    plastic, x = attached(name)
    plastic = copy.deepcopy(plastic)
    check_shrink(plastic, x, tolerance(name))
    check_grow(plastic, x, tolerance(name))
    check_shrink(plastic, x, tolerance(name), alive=False)


@pytest.mark.parametrize("name", KINDS)
def test_training_goes_on_alike(name: str) -> None:
    plastic, x = attached(name)
    plastic = copy.deepcopy(plastic)
    if "bfloat16" not in name:
        plastic.model.double()
        x = as_double(x)
    check_training(plastic, x, functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9), tolerance(name) / 100)


def test_widths_that_a_kernel_takes_in_multiples_change_in_multiples() -> None:
    plastic, x = attached("grouped")
    assert of_experts(attached("grouped, bfloat16")[0]).multiple == 8
    plastic = copy.deepcopy(plastic)
    group = of_experts(plastic)
    assert group.multiple == 4  # 16 bytes of float32
    plastic.close(group, [1, 3, 4, 10, 11])
    masked = plastic.model(x)
    plastic.compact()
    assert group.size == HIDDEN - 4
    assert torch.allclose(plastic.model(x), masked, atol=1e-6)
    plastic.grow({group.name: 1})
    assert group.size == HIDDEN
    assert torch.allclose(plastic.model(x), masked, atol=1e-6)
    assert of_experts(attached("gathered")[0]).multiple == 1


@pytest.mark.parametrize("name", KINDS)
def test_the_price_counts_each_row_at_the_experts_that_it_is_sent_to(name: str) -> None:
    torch.manual_seed(0)
    model = KINDS[name]().eval()
    with torch.no_grad():
        x = torch.randn(6, 5).to(model.up.dtype)
        positions = walk(capture(model, x), dict(model.named_parameters())).multiply_adds.positions
    half = 6 * CHOSEN / 2  # which rows an expert works on is not known
    applied = {"everywhere": 6, "in one product": 6, "each": 6, "routed": half}.get(name, 6 * CHOSEN / EXPERTS)
    assert positions["up"] == positions["down"] == applied
