"""One entry that the code repeats for each unit: what counts how often, as a sum does, would change with the units."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn

from ..zoo.checks import check_shrink
from .asking import reasons, sizes


class Repeated(nn.Module):
    """Features of shape (batch, 4), for each head of another layer, and a function that makes (batch, 4) of them."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.f = nn.Linear(6, 12), nn.Linear(6, 4), f
        self.o, self.p = nn.Linear(12, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (-1, 4)).tanh()
        q = q * q.mean(-1, keepdim=True)  # the units are heads
        k = self.k(x)[:, None].expand(-1, q.size(1), -1)
        return self.o(q.flatten(1)) + self.p(self.f(k))


COUNTING = {
    "sum": lambda k: k.sum(1),
    "sum of a copy": lambda k: k.clone().sum(1),
    "product": lambda k: k.tanh().clone().prod(1),
    "norm": lambda k: k.norm(dim=1),
    "logsumexp": lambda k: k.logsumexp(1),
    "softmax": lambda k: k.softmax(1)[:, 0],
    "cumsum": lambda k: k.cumsum(1)[:, -1],
    "variance": lambda k: k.var(1) + k[:, 0],
    "deviation of all": lambda k: k[:, 0] / k.std(),
    "product of matrices": lambda k: (k.mT @ k)[:, 0],
    "product of a copy": lambda k: (k.clone().mT @ k.tanh())[:, 0],
    "vectors": lambda k: k[:, 0] * torch.dot(k[0, :, 0].clone(), k[1, :, 0].clone()),
    "einsum": lambda k: torch.einsum("bhd,bhe->bd", k, k),
    "flat": lambda k: k.flatten(1).sum(1, keepdim=True).expand(-1, 4),
    "flat product": lambda k: (k.flatten(1)[:, None] @ k.flatten(1)[:, :, None])[:, 0].expand(-1, 4),
    "beside itself": lambda k: torch.cat([k, k], 1).sum(1),
    "attention": lambda k: F.scaled_dot_product_attention(k, k, k).sum(1),
    "number": lambda k: k[:, 0] * k.size(1),
}
ALIKE = {
    "mean": lambda k: k.mean(1),
    "maximum": lambda k: k.amax(1),
    "first": lambda k: k.tanh()[:, 0],
    "mean of a copy": lambda k: k.clone().mean(1),
}


def attached(f: Callable[[Tensor], Tensor]) -> tuple[npn.Plasticity, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(3, 6, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6), Repeated(f))
    return npn.attach(model.double(), x), x


@pytest.mark.parametrize("name", COUNTING)
def test_heads_are_frozen_where_their_number_counts(name: str) -> None:
    plastic, x = attached(COUNTING[name])
    assert "3.q" not in sizes(plastic.structure)
    assert reasons(plastic.structure, "3.q.weight", 0)
    check_shrink(plastic, x)


@pytest.mark.parametrize("name", ALIKE)
def test_heads_go_where_their_number_does_not_count(name: str) -> None:
    plastic, x = attached(ALIKE[name])
    assert sizes(plastic.structure)["3.q"] == 3
    check_shrink(plastic, x)
