"""Parameters that the code repeats for each example are inputs that are learned: initial states, queries, constants."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn
from npn.errors import TraceError

from ..zoo.checks import as_double, check_resizes, check_shrink, check_training
from .asking import sizes


class Recurrent(nn.Module):
    """A recurrent layer of 6 units whose initial state is learned."""

    def __init__(self, kind: str, repeat: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.layer, self.head = getattr(nn, kind)(3, 6, batch_first=True), nn.Linear(6, 2)
        names = ("h0", "c0") if kind == "LSTM" else ("h0",)
        self.start = nn.ParameterDict({name: torch.randn(1, 1, 6) for name in names})
        self.repeat = repeat

    def forward(self, x: Tensor) -> Tensor:
        state = [self.repeat(value, len(x)) for value in self.start.values()]
        out, _ = self.layer(x, tuple(state) if len(state) > 1 else state[0])
        return self.head(out[:, -1])


class Queries(nn.Module):
    """Learned queries look at the input (Perceiver, Q-Former); 6 heads of 4 features, a norm on the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.norm = nn.Parameter(torch.randn(5, 8)), nn.LayerNorm(8)
        self.embed, self.q, self.k, self.v = nn.Linear(3, 7), nn.Linear(8, 24), nn.Linear(7, 24), nn.Linear(7, 24)
        self.o, self.head = nn.Linear(24, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        start = self.queries.unsqueeze(0).repeat(len(x), 1, 1)
        h = torch.tanh(self.embed(x))
        heads = (self.q(self.norm(start)), self.k(h), self.v(h))
        q, k, v = (z.unflatten(-1, (-1, 4)).transpose(1, 2) for z in heads)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(torch.tanh(start + self.o(seen)))


class Constant(nn.Module):
    """A generator whose image begins as a learned constant (StyleGAN), through a convolution, plain and depthwise."""

    def __init__(self, depthwise: bool) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, 4, 3, 3))
        self.first = nn.Conv2d(4, 4 if depthwise else 6, 3, padding=1, groups=4 if depthwise else 1)
        self.second, self.style = nn.Conv2d(self.first.out_channels, 2, 1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        start = self.constant.expand(len(x), -1, -1, -1)
        return self.second(torch.relu(self.first(start))) * self.style(x)[:, :, None, None]


class Experts(nn.Module):
    """Queries that three experts read: the product of many repeats both, and the queries were repeated before."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.style, self.head = nn.Parameter(torch.randn(4, 5)), nn.Linear(3, 2), nn.Linear(5, 2)
        self.up, self.down = nn.Parameter(torch.randn(3, 5, 6)), nn.Parameter(torch.randn(3, 6, 5))

    def forward(self, x: Tensor) -> Tensor:
        start = self.queries.expand(len(x), 1, -1, -1)
        return self.head((torch.tanh(start @ self.up) @ self.down).mean((1, 2))) + self.style(x)


def expanded(value: Tensor, batch: int) -> Tensor:
    return value.expand(-1, batch, -1).contiguous()


def repeated(value: Tensor, batch: int) -> Tensor:
    return torch.tanh(value).repeat(1, batch, 1)


def in_a_row(value: Tensor, batch: int) -> Tensor:
    return torch.cat([value.expand(-1, 1, -1), value.expand(-1, batch - 1, -1)], 1)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    **{
        f"{kind} {repeat.__name__}": (lambda k=kind, r=repeat: Recurrent(k, r), (2, 4, 3), {"layer": 6})  # type: ignore[misc]
        for kind in ("RNN", "GRU", "LSTM")
        for repeat in (expanded, repeated, in_a_row)
    },
    "queries": (Queries, (2, 4, 3), {"embed": 7, "q": 6}),
    "experts": (Experts, (2, 3), {"up": 6, "down": 5}),
    "convolution": (lambda: Constant(depthwise=False), (2, 3), {"first": 6}),
}


def attached(name: str, **options: Any) -> tuple[npn.Plasticity, Any]:
    torch.manual_seed(0)
    make, shape, _ = MODELS[name]
    model, x = make().double(), as_double(torch.randn(*shape))
    return npn.attach(model, x, **options), x


@pytest.mark.parametrize("name", MODELS)
def test_units_that_learned_inputs_meet_come_and_go(name: str) -> None:
    assert sizes(attached(name)[0].structure) == MODELS[name][2]
    check_resizes(functools.partial(attached, name))


def test_features_of_learned_queries_go_with_the_stream_that_they_begin() -> None:
    plastic, x = attached("queries", streams=True)
    stream = next(group for group in plastic.groups if group.size == 8)
    assert {("queries", 1), ("norm.weight", 0), ("q.weight", 1)} <= {(slot.tensor, slot.axis) for slot in stream.slots}
    check_shrink(plastic, x)


def test_a_depthwise_kernel_over_a_learned_constant_keeps_its_channels() -> None:
    model = Constant(depthwise=True)
    with pytest.raises(TraceError, match="no layer of the model produces it"):
        npn.attach(model, torch.randn(2, 3))


class Factors(nn.Module):
    """A weight of two factors, one of which serves both experts: it is repeated, and still a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 6), nn.Linear(4, 2)
        self.shared, self.own = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(2, 5, 4))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.shared.expand(2, -1, -1) @ self.own
        return self.head(torch.tanh(torch.relu(self.first(x)).expand(2, -1, -1) @ weight).sum(0))


def test_a_repeated_factor_of_a_weight_is_never_removed_wrongly() -> None:
    model, x = Factors().double(), as_double(torch.randn(4, 3))
    plastic = npn.attach(model, x)
    check_shrink(plastic, x)
    check_training(npn.attach(Factors().double(), x), x, functools.partial(torch.optim.Adam, lr=1e-2))
