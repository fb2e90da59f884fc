"""Pruning to a size where channels come and go in sets, as in a channel shuffle."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import npn

pytestmark = pytest.mark.usefixtures("traces_are_shared")


class Shuffled(nn.Module):
    """Channels that are shuffled in `groups` of a fixed number, and with `residual` read each other in a block."""

    def __init__(self, groups: int, width: int, residual: bool) -> None:
        super().__init__()
        self.groups, self.residual = groups, residual
        self.a, self.b = nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 3, padding=1)
        self.c, self.head = nn.Conv2d(width, 20, 1), nn.Linear(20, 4)

    def shuffled(self, h: Tensor) -> Tensor:
        b, c, height, width = h.shape
        return h.view(b, self.groups, c // self.groups, height, width).transpose(1, 2).reshape(b, c, height, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.shuffled(torch.relu(self.a(x)))
        h = h + self.b(h) if self.residual else self.shuffled(torch.relu(self.b(h)))
        return self.head(torch.relu(self.c(h)).mean((2, 3)))


X = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def count(model: nn.Module, cost: str) -> int:
    return npn.count_macs(model, X) if cost == "macs" else npn.count_params(model)


def made(groups: int, sets: int, residual: bool) -> Shuffled:
    torch.manual_seed(0)
    return Shuffled(groups, groups * sets, residual).eval()


@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("groups", [2, 3])
def test_a_pruned_model_meets_its_target_in_whole_sets(groups: int, residual: bool, cost: str) -> None:
    model = made(groups, 16, residual)
    for target in (0.3, 0.5, 0.8):
        small = npn.prune(model, X, target=target, cost=cost, criterion="magnitude")
        assert small.a.out_channels % groups == small.b.out_channels % groups == 0
        came, wanted = count(small, cost), target * count(model, cost)
        assert came <= 1.02 * wanted
        larger = made(groups, small.a.out_channels // groups + 1, residual)
        larger.c, larger.head = nn.Conv2d(larger.a.out_channels, small.c.out_channels, 1), small.head
        assert came > 0.95 * wanted or (residual and count(larger, cost) > 1.02 * wanted), "the sets are coarse"
        assert small(X).shape == (4, 4)


@pytest.mark.parametrize("residual", [False, True])
def test_the_smallest_model_has_a_set_of_each_group(residual: bool) -> None:
    model = made(4, 4, residual)
    with pytest.raises(npn.errors.ConfigurationError) as error:
        npn.prune(model, X, target=0.01, cost="params", criterion="magnitude")
    least = 4 * 4 + (4 * 4 * 9 + 4) + (4 + 1) + (4 + 4)  # a, b, c and the head with 4 channels, and 1 after them
    assert f"one unit left in every group the model still has {least:,} of" in str(error.value)
    small = npn.prune(model, X, target=least + 3, cost="params", criterion="magnitude")
    assert (small.a.out_channels, small.b.out_channels, small.c.out_channels) == (4, 4, 1)


@given(
    groups=st.integers(2, 4),
    sets=st.integers(4, 6),
    residual=st.booleans(),
    target=st.floats(0.2, 0.9),
    cost=st.sampled_from(["params", "macs"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=15, deadline=None)
def test_a_last_cut_counts_what_is_left_of_a_set(
    groups: int, sets: int, residual: bool, target: float, cost: str, seed: int
) -> None:
    model = made(groups, sets, residual)
    plastic = npn.attach(model, X, penalty=npn.Budget(cost=cost, target=target))  # type: ignore[arg-type]
    plastic.k = 7.0
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for logits in plastic.logits():
            logits.copy_(torch.rand(logits.shape, generator=generator) - 0.3)
    npn.fit_to_budget(plastic)
    plastic.k = math.inf
    small = plastic.export()
    bound = plastic.penalty.bound  # type: ignore[union-attr]
    smallest = small.a.out_channels == small.b.out_channels == groups and small.c.out_channels == 1
    assert bound is not None and plastic.groups[0].multiple == groups
    assert count(small, cost) <= bound or smallest
    torch.testing.assert_close(small(X), model(X))
    assert npn.fit_to_budget(plastic) == {}


def test_units_that_no_column_reads_stay_until_a_whole_set_is_unread() -> None:
    model = made(2, 4, residual=False)
    plastic = npn.attach(model, X, columns="c")
    plastic.close("c.columns", [0])
    masked = model(X)
    small = plastic.export()
    assert small.b.out_channels == 8
    torch.testing.assert_close(small(X), masked)
    plastic.compact()
    torch.testing.assert_close(model(X), masked)
