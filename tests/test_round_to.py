"""Widths in multiples of a number, and a largest share of each group that may go."""

import math

import pytest
import torch
from torch import Tensor, nn

import npn
from npn.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("traces_are_shared")

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    a, b, c = widths
    return nn.Sequential(
        nn.Conv2d(3, a, 3), nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, b, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * b, c), nn.ReLU(), nn.Linear(c, 10),
    ).eval()  # fmt: skip


def widths(model: nn.Module) -> list[int]:
    return [model[0].out_channels, model[3].out_channels, model[6].out_features]


class Attention(nn.Module):
    def __init__(self, heads: int = 6, width: int = 8) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.q, self.k, self.v = (nn.Linear(16, heads * width) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(heads * width, 16), nn.Linear(16, 40), nn.Linear(40, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, self.width)).transpose(1, 2) for f in (self.q, self.k, self.v))
        h = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.down(torch.relu(self.up(self.out(h))))


@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("target", [0.3, 0.6, 0.9])
def test_a_pruned_model_has_widths_in_multiples(target: float, cost: str) -> None:
    model = network(64, 96, 160)
    small = npn.prune(model, X, target=target, cost=cost, criterion="magnitude", round_to=8)
    assert all(width % 8 == 0 for width in widths(small)) and widths(small) != widths(model)
    of = (lambda m: npn.count_macs(m, X)) if cost == "macs" else npn.count_params
    assert 0.9 * target * of(model) < of(small) <= 1.02 * target * of(model)


def test_units_that_fill_no_multiple_go_and_groups_below_it_stay_whole() -> None:
    for target in (0.5, 1.0):
        small = npn.prune(network(20, 50, 13), X, target=target, criterion="magnitude", round_to=16)
        assert widths(small)[0] == 16 and widths(small)[1] in (16, 32, 48) and widths(small)[2] == 13
    assert widths(small) == [16, 48, 13]


def test_rounding_keeps_the_units_that_score_highest() -> None:
    model = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model[0].weight[[1, 4, 6, 9]] = 5.0
    small = npn.prune(model, torch.ones(1, 2), target=0.5, criterion="magnitude", round_to=4)
    assert small[0].out_features == 4 and bool((small[0].weight == 5).all())


def test_a_head_is_as_wide_as_it_is() -> None:
    torch.manual_seed(0)
    model, x = Attention(), torch.randn(2, 5, 16)
    small = npn.prune(model, x, target=0.5, criterion="magnitude", round_to=8)
    assert small.q.out_features in (8, 16, 24, 32, 40), "one head has eight channels already"
    assert small.up.out_features % 8 == 0
    small = npn.prune(model, x, target=0.6, criterion="magnitude", round_to=16)
    assert small.q.out_features % 16 == 0 and small.up.out_features in (16, 32, 40)


def test_no_group_loses_more_than_the_largest_share() -> None:
    model = network(64, 96, 160)
    with torch.no_grad():
        model[0].weight *= 1e-3
        model[3].weight *= 1e-3
    free = npn.prune(model, X, target=0.3, criterion="magnitude")
    held = npn.prune(model, X, target=0.3, criterion="magnitude", max_pruning_ratio=0.6)
    least = [math.ceil(0.4 * width) for width in (64, 96, 160)]
    assert any(width < few for width, few in zip(widths(free), least, strict=True)), "else the case shows nothing"
    assert all(width >= few for width, few in zip(widths(held), least, strict=True))
    assert npn.count_macs(held, X) <= 1.02 * 0.3 * npn.count_macs(model, X)
    assert widths(npn.prune(model, X, target=1.0, criterion="magnitude", max_pruning_ratio=0.0)) == widths(model)


def test_errors_say_what_was_expected() -> None:
    model = network(8, 8, 8)
    for value in (0, 2.0, True):
        with pytest.raises(ConfigurationError, match=f"round_to must be a whole number >= 1 of channels, got {value}"):
            npn.prune(model, X, target=0.5, criterion="magnitude", round_to=value)
    with pytest.raises(ConfigurationError, match=r"max_pruning_ratio must be a share in \[0, 1\], got 1.5"):
        npn.prune(model, X, target=0.5, criterion="magnitude", max_pruning_ratio=1.5)
    with pytest.raises(ConfigurationError, match="with as few units as round_to and max_pruning_ratio allow left in"):
        npn.prune(model, X, target=0.05, criterion="magnitude", max_pruning_ratio=0.5)


def fitted(round_to: int, target: float) -> tuple[npn.Plasticity, Tensor, dict[str, int]]:
    model = network(16, 24, 40)
    plastic = npn.attach(model, X, penalty=npn.Budget(cost="macs", target=target))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for group in plastic.groups:
            group.gate.logits.copy_(torch.randn(group.size, generator=generator))  # about half are open
    before = torch.cat([group.gate.mask for group in plastic.groups]).bool()
    return plastic, before, npn.fit_to_budget(plastic, round_to=round_to)


@pytest.mark.parametrize("target", [0.1, 0.9])
def test_a_last_cut_comes_to_multiples(target: float) -> None:
    plastic, before, closed = fitted(4, target)
    after = torch.cat([group.gate.mask for group in plastic.groups]).bool()
    sizes = [group.size for group in plastic.groups]
    assert closed and not bool((after & ~before).any()), "nothing opens"
    for group, had, has in zip(plastic.groups, before.split(sizes), after.split(sizes), strict=True):
        assert int(has.sum()) % 4 == 0 and int(has.sum()) > 0
        assert closed.get(group.name, 0) == int(had.sum() - has.sum())
        if int(has.sum()) < int(had.sum()):
            logits = group.gate.logits.detach()
            gone = had & ~has
            assert int(gone.sum()) < 4 or target < 0.5
            assert float(logits[gone].max()) < float(logits[has].min()), "the lowest logits go"
    assert npn.count_macs(plastic.export(), X) <= target * npn.count_macs(network(16, 24, 40), X)


def test_a_last_cut_leaves_fewer_units_than_that_alone() -> None:
    plastic, before, closed = fitted(64, 0.9)
    assert closed == {} and int(before.sum()) == sum(plastic.sizes().values())
