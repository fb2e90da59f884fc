"""Scores of units: dL/dz against finite differences, what must not move them, and that nothing else moves."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn
from npn._importance import mean_of_gradients

from .conftest import TINY

pytestmark = pytest.mark.usefixtures("traces_are_shared")

Readers = list[tuple[str, str, int, int]]  # group, parameter, axis, columns per unit; axis -1: all of the parameter


class Heads(nn.Module):
    """Two heads of attention in a residual stream with BatchNorm, then a feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.q, self.k, self.v, self.o = (nn.Linear(n, 6) for n in (3, 6, 6, 6, 6))
        self.norm, self.up, self.down = nn.BatchNorm1d(6), nn.Linear(6, 5), nn.Linear(5, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        q, k, v = (layer(h).view(*h.shape[:2], -1, 3).transpose(1, 2) for layer in (self.q, self.k, self.v))
        a = (q @ k.transpose(2, 3)).softmax(-1) @ v
        h = h + self.o(a.transpose(1, 2).flatten(2))
        h = self.norm(h.transpose(1, 2)).transpose(1, 2)
        h = h + self.down(torch.tanh(self.up(h)))
        return self.head(h.mean(1))


class Branched(nn.Module):
    """A stream with two residual branches, each with a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.one = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))
        self.two = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.BatchNorm1d(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.one(h)
        return self.head(h + self.two(h))


@dataclass(frozen=True)
class Case:
    """A model, its input, and by hand the weights that read each of its units."""

    make: Callable[[], nn.Module]
    x: tuple[int, ...]
    readers: Readers
    options: dict[str, str] = field(default_factory=dict)

    def build(self, train: bool = True) -> tuple[nn.Module, npn.Plasticity, list[tuple[Tensor, Tensor]]]:
        torch.manual_seed(0)
        model = self.make().double()
        batches = [(torch.randn(self.x).double(), torch.randint(2, self.x[:1])) for _ in range(2)]
        with torch.no_grad():
            model(batches[0][0])  # running statistics of its own
        model.train(train)
        return model, npn.attach(model, batches[0][0], **self.options), batches


def tiny(name: str) -> Case:
    spec = TINY[name]
    readers = [(g, p, axis, n) for p, axes in spec.readers.items() for axis, (g, n) in axes.items()]
    return Case(spec.make, spec.x, readers)


CASES = {name: tiny(name) for name in ("mlp", "four", "conv", "residual", "recurrent", "depthwise")} | {
    "heads": Case(
        Heads, (4, 5, 3),
        [("q", "o.weight", 1, 3), ("up", "down.weight", 1, 1)]
        + [("stem", f"{name}.weight", 1, 1) for name in ("q", "k", "v", "up", "head")],
    ),
    "columns": Case(
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4), nn.Tanh(),
                              nn.Linear(4, 2)),
        (5, 1, 4, 4),
        [("0", "3.weight", 1, 4), ("3.columns", "3.weight", 1, 1), ("3", "5.weight", 1, 1)],
        {"columns": "3"},
    ),
    "branches": Case(
        Branched, (6, 3),
        [("one.0", "one.2.weight", 1, 1), ("branches", "one.2.weight", -1, 0), ("branches", "one.2.bias", -1, 0)]
        + [("stem", f"{name}.weight", 1, 1) for name in ("one.0", "two.0", "head")],
        {"branches": "one"},
    ),
}  # fmt: skip


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def scale_(model: nn.Module, readers: Readers, group: str, unit: int, factor: float) -> None:
    """Multiply by hand what reads one unit."""
    with torch.no_grad():
        for name, parameter, axis, columns in readers:
            if name == group:
                weight = model.get_parameter(parameter)
                (weight if axis < 0 else weight.narrow(axis, unit * columns, columns)).mul_(factor)


def by_differences(case: Case, batch: tuple[Tensor, Tensor], group: str, unit: int, train: bool) -> float:
    """dL/dz from central differences of a plain model's loss."""
    step, losses = 1e-4, []
    for factor in (1 + step, 1 - step):
        torch.manual_seed(0)
        model = case.make().double()
        batches = [(torch.randn(case.x).double(), torch.randint(2, case.x[:1])) for _ in range(2)]
        with torch.no_grad():
            model(batches[0][0])
            model.train(train)
            scale_(model, case.readers, group, unit, factor)
            losses.append(float(cross_entropy(model, batch)))
    return (losses[0] - losses[1]) / (2 * step)


def split(plastic: npn.Plasticity, flat: Tensor) -> dict[str, Tensor]:
    return dict(zip((g.name for g in plastic.groups), flat.split([g.size for g in plastic.groups]), strict=True))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_finite_differences(name: str, train: bool) -> None:
    case = CASES[name]
    _, plastic, batches = case.build(train)
    assert {g.name for g in plastic.groups} == {group for group, *_ in case.readers}
    found = [split(plastic, mean_of_gradients(plastic, [batch], cross_entropy, lambda g: g)) for batch in batches]
    for group in plastic.groups:
        by_hand = torch.tensor(
            [[by_differences(case, batch, group.name, u, train) for u in range(group.size)] for batch in batches]
        )
        assert by_hand.abs().max() > 1e-4
        torch.testing.assert_close(torch.stack([g[group.name] for g in found]), by_hand, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_taylor_and_fisher_are_means_over_batches(name: str) -> None:
    _, plastic, batches = CASES[name].build()
    each = torch.stack([mean_of_gradients(plastic, [batch], cross_entropy, lambda g: g) for batch in batches])
    taylor, fisher = (npn.importance(plastic, c, batches, cross_entropy) for c in ("taylor", "fisher"))
    torch.testing.assert_close(torch.cat(list(taylor.values())), each.abs().mean(0))
    torch.testing.assert_close(torch.cat(list(fisher.values())), each.square().mean(0))
    assert {name: values.shape for name, values in taylor.items()} == {g.name: (g.size,) for g in plastic.groups}
    assert not torch.allclose(each.mean(0).abs(), each.abs().mean(0))  # else the order of mean and |.| is untested


@pytest.mark.parametrize("name", CASES)
def test_a_unit_without_influence_scores_zero(name: str) -> None:
    case = CASES[name]
    model, plastic, batches = case.build()
    for group in [group for group in plastic.groups if group.size > 1]:
        scale_(model, case.readers, group.name, 1, 0.0)
        for criterion in ("taylor", "fisher"):
            scores = npn.importance(plastic, criterion, batches, cross_entropy)[group.name]
            assert scores[1] == 0 and scores[0] > 0


def test_scores_are_of_the_network_without_its_closed_units() -> None:
    case = CASES["mlp"]
    _, plastic, batches = case.build()
    plastic.close("0", [2])
    scores = npn.importance(plastic, "taylor", batches, cross_entropy)
    small = npn.attach(plastic.export(), batches[0][0])
    alone = npn.importance(small, "taylor", batches, cross_entropy)
    torch.testing.assert_close(scores["0"][[0, 1, 3]], alone["0"])
    torch.testing.assert_close(scores["2"], alone["2"])
    assert scores["0"][2] > 0  # what opening it would change
    before = split(plastic, mean_of_gradients(plastic, batches[:1], cross_entropy, lambda g: g))["0"][2]
    plain, step = plastic.detach(), 1e-4
    losses = []
    for factor in (step, -step / (1 + step)):  # from 0 to +step, then to -step times the weight
        scale_(plain, case.readers, "0", 2, factor if not losses else -1.0)
        losses.append(cross_entropy(plain, batches[0]).item())
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float(before), rel=1e-4)


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "magnitude"])
def test_rescaled_neighbours_change_the_magnitude_alone(criterion: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    batches = [(torch.randn(16, 4).double(), torch.randint(2, (16,))) for _ in range(2)]
    plastic = npn.attach(model, batches[0][0])
    before = npn.importance(plastic, criterion, batches, cross_entropy)["0"]
    with torch.no_grad():
        model[0].weight[2] *= 50
        model[0].bias[2] *= 50
        model[2].weight[:, 2] /= 50
    after = npn.importance(plastic, criterion, batches, cross_entropy)["0"]
    same = torch.allclose(before, after, rtol=1e-5)
    assert same == (criterion != "magnitude")
    if criterion == "magnitude":
        assert after.argmax() == 2 != before.argmax()


# -- criteria that need no data


def test_magnitude_is_the_norm_of_rows_and_columns() -> None:
    model, plastic, _ = CASES["depthwise"].build()
    first, depthwise, reader = (model[i].weight for i in (0, 3, 6))
    by_hand = [first.square().sum((1, 2, 3)), depthwise.square().sum((1, 2, 3)), reader.square().sum((0, 2, 3))]
    torch.testing.assert_close(npn.importance(plastic, "magnitude")["0"], sum(by_hand).sqrt().float())


def test_magnitude_of_columns_and_branches() -> None:
    model, plastic, _ = CASES["columns"].build()
    plastic.close("3.columns", [1, 6])
    plastic.compact()  # physically gone: positions along the weight are others now
    weight = model[3].weight
    found = npn.importance(plastic, "magnitude")
    torch.testing.assert_close(found["3.columns"], weight.norm(dim=0).float())
    kept = [c for c in range(12) if c not in (1, 6)]
    read = torch.stack([sum(weight[:, kept.index(c)].square().sum() for c in kept if c // 4 == u) for u in range(3)])
    torch.testing.assert_close(found["0"], (read + model[0].weight.square().sum((1, 2, 3))).sqrt().float())
    model, plastic, _ = CASES["branches"].build()
    inside = torch.cat([model.one[0].weight.flatten(), model.one[2].weight.flatten()]).norm()
    torch.testing.assert_close(npn.importance(plastic, "magnitude")["branches"], inside[None].float())


def test_bn_scale_is_the_mean_of_all_gammas_on_a_unit() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 2)
    )
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -3.0, 0.0]))
        model[4].weight.copy_(torch.arange(12.0))
    scores = npn.importance(npn.attach(model, torch.zeros(2, 2, 4, 4)), "bn_scale")["0"]
    assert scores.tolist() == pytest.approx([(1 + 6) / 5, (3 + 22) / 5, (0 + 38) / 5])
    plastic = npn.attach(Branched(), torch.zeros(2, 3), branches="two", skip=["one.0", "stem"])
    plastic.model.two[2].weight.data[0] = -2.0
    assert npn.importance(plastic, "bn_scale")["branches"].item() == pytest.approx(5 / 4)
    method = npn.methods.Slimming(plastic, weight=0.1)
    assert method.scales().tolist() == pytest.approx([5 / 4]) and method.penalty().item() == pytest.approx(0.1 * 5)


def test_random_follows_the_seed() -> None:
    _, plastic, _ = CASES["mlp"].build()
    torch.manual_seed(3)
    one, two = npn.importance(plastic, "random"), npn.importance(plastic, "random")
    torch.manual_seed(4)
    other = npn.importance(plastic, "random")
    assert torch.equal(one["0"], two["0"]) and not torch.equal(one["0"], other["0"])
    assert not torch.equal(one["0"][:3], one["2"])


# -- per cost


@pytest.mark.parametrize("kind", ["params", "macs"])
@pytest.mark.parametrize("name", ["mlp", "conv", "residual", "heads", "columns"])
def test_scores_per_cost_divide_by_what_export_saves(name: str, kind: str) -> None:
    case = CASES[name]
    _, plastic, batches = case.build()
    x = batches[0][0]
    plain, divided = (npn.importance(plastic, "magnitude", per=per) for per in ("unit", kind))

    def priced() -> float:
        return float(plastic.expected_cost(kind))

    full = priced()
    for group in plastic.groups:
        for unit in range(group.size):
            plastic.close(group, [unit])
            saved = full - priced()
            if name != "heads":  # whose attention costs MACs between activations, too
                count = npn.count_params if kind == "params" else lambda m: npn.count_macs(m, x)
                assert count(plastic.export()) == full - saved
            plastic.open(group, [unit])
            assert divided[group.name][unit].item() == pytest.approx(plain[group.name][unit].item() / saved)


def test_what_saves_nothing_is_worth_infinitely_much() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Tanh(), nn.Linear(4, 3, bias=False))
    plastic = npn.attach(model, torch.zeros(2, 2, dtype=torch.long))
    assert torch.isfinite(npn.importance(plastic, "magnitude", per="macs")["0"]).all()
    branched = npn.attach(Branched(), torch.zeros(2, 3), branches=["one", "two"])
    branched.close("branches", [0])
    assert npn.importance(branched, "random", per="params")["one.0"].isinf().all()
