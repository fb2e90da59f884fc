"""One-shot pruning: the size that was asked for, nothing cut in two, the same function, the model untouched."""

import copy
import itertools
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import npn
from npn._prune import closed_to_target
from npn.errors import ConfigurationError, TraceError

from .conftest import same_state, traced_once


class Block(nn.Module):
    """conv, BatchNorm, conv, BatchNorm around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.one, self.two = Block(24), Block(24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.two(self.one(F.relu(self.bn(self.stem(x)))))
        return self.head(h.mean((2, 3)))


class EncoderLayer(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.size = d // heads
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        h = self.n1(x)
        q, k, v = (f(h).unflatten(2, (-1, self.size)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.n2(x))))


class Encoder(nn.Module):
    """Long sequences, so that attention between activations is a good part of the MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layers, self.head = (
            nn.Linear(5, 16),
            nn.ModuleList([EncoderLayer(16, 8), EncoderLayer(16, 8)]),
            nn.Linear(16, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for layer in self.layers:
            h = layer(h)
        return self.head(h.mean(1))


def mobile(c: int, out: int, width: int) -> nn.Sequential:
    """Expand, depthwise, project."""
    return nn.Sequential(
        nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6(),
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU6(),
        nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out),
    )  # fmt: skip


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(9, 60), nn.ReLU(), nn.Linear(60, 40), nn.ReLU(), nn.Linear(40, 4)), (8, 9)),
    "residual": (Residual, (4, 3, 8, 8)),
    "encoder": (Encoder, (2, 48, 5)),
    "mobile": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), mobile(8, 12, 32), mobile(12, 16, 48), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(16, 4),
        ),
        (4, 3, 8, 8),
    ),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, Tensor, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    make, shape = ARCHITECTURES[name]
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 1.5)
            nn.init.normal_(module.bias)
    batches = [(torch.randn(shape), torch.randint(4, shape[:1])) for _ in range(2)]
    with torch.no_grad():
        for _ in range(30):  # until the running statistics are those of the data
            model(batches[0][0])
    return model.eval(), batches[0][0], batches


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def count(model: nn.Module, x: Tensor, cost: str) -> int:
    return npn.count_params(model) if cost == "params" else npn.count_macs(model, x)


def pruned(model: nn.Module, x: Tensor, batches: list[Any], loss: Any = loss, **options: Any) -> nn.Module:
    with traced_once():
        return npn.prune(model, x, batches=batches, loss=loss, **options)


def sizes(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in model.parameters()]


@pytest.mark.parametrize("target", [0.75, 0.4])
@pytest.mark.parametrize("cost", ["params", "macs"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_target_is_met_within_two_percent(name: str, cost: str, target: float) -> None:
    model, x, batches = build(name)
    full = count(model, x, cost)
    small = pruned(model, x, batches, target=target, cost=cost)
    assert 0.98 * target * full <= count(small, x, cost) <= target * full
    assert all(0 not in shape for shape in sizes(small))
    absolute = pruned(model, x, batches, target=int(target * full), cost=cost)
    assert 0.98 * target * full <= count(absolute, x, cost) <= int(target * full)


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "magnitude", "random"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_result_is_plain_and_computes_what_the_masked_network_does(name: str, criterion: str) -> None:
    model, x, batches = build(name)
    with traced_once():
        plastic = closed_to_target(
            model, x, target=0.5, cost="macs", criterion=criterion, batches=batches, loss=loss, only=None, skip=None
        )
        by_hand = npn.attach(copy.deepcopy(model), x)
    for group in plastic.groups:
        by_hand.close(group.name, group.gate.closed)
    small = pruned(model, x, batches, target=0.5, criterion=criterion)
    assert type(small) is type(model) and not small.training
    assert not small._forward_hooks and not small._forward_pre_hooks
    assert plastic.sizes() == by_hand.sizes() and any(g.size > plastic.sizes()[g.name] for g in plastic.groups)
    with torch.no_grad():
        torch.testing.assert_close(small(x), by_hand.model(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(small(x), model(x), atol=1e-3)
    assert sizes(small) == sizes(by_hand.export())


@pytest.mark.parametrize("criterion", ["taylor", "bn_scale", "random"])
@pytest.mark.parametrize("train", [True, False])
def test_the_model_is_untouched(criterion: str, train: bool) -> None:
    model, x, batches = build("residual")
    model.train(train)
    loss(model, batches[0]).backward()
    kept = {name: (id(p), p.grad.clone()) for name, p in model.named_parameters()}  # type: ignore[union-attr]
    before, random_states = copy.deepcopy(model), (torch.get_rng_state(), random.getstate(), np.random.get_state())
    prune = npn.prune if criterion == "taylor" else pruned  # one real trace in each mode
    small = prune(model, x, batches=batches, loss=loss, target=0.5, criterion=criterion, only=["stem", "*.conv1"])
    assert same_state(model, before) and [m.training for m in model.modules()] == [train] * len(list(model.modules()))
    for name, p in model.named_parameters():
        assert (id(p), True) == (kept[name][0], torch.equal(p.grad, kept[name][1]))  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), random_states[0]) and random.getstate() == random_states[1]
    assert str(np.random.get_state()) == str(random_states[2])
    assert not model._forward_hooks and small.training == train
    assert not {id(p) for p in model.parameters()} & {id(p) for p in small.parameters()}
    small.stem.weight.data.zero_()  # no memory in common
    assert same_state(model, before)


def test_only_and_skip() -> None:
    model, x, batches = build("mlp")
    only = pruned(model, x, batches, target=0.5, only="2")
    assert only[0].out_features == 60 and only[2].out_features < 40
    skip = pruned(model, x, batches, target=0.5, skip=["2"])
    assert skip[0].out_features < 60 and skip[2].out_features == 40
    one = pruned(model, x, batches, target=0.25, only="2")  # as small as it goes, but 60 by 9 weights stay
    assert count(one, x, "macs") <= 0.25 * count(model, x, "macs")


def test_the_least_important_go_and_the_best_stays() -> None:
    model, x, batches = build("mlp")
    plastic = npn.attach(copy.deepcopy(model), x)
    scores = npn.importance(plastic, "taylor", batches, loss)["0"]
    small = pruned(model, x, batches, target=0.4, only="0")
    kept = small[0].out_features
    expected = model[0].weight[scores.topk(kept).indices.sort().values]
    assert 1 < kept < 60 and torch.equal(small[0].weight, expected)
    least = pruned(model, x, batches, target=(9 + 40) * 8 + 40 * 4 * 8, only="0")
    assert torch.equal(least[0].weight, model[0].weight[[int(scores.argmax())]])


def test_a_dear_unit_goes_before_a_cheap_one_of_the_same_importance() -> None:
    """What costs more per unit of importance goes first: units of the wide convolution, not of the linear layer."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.Linear(6, 2),
    )
    x = torch.zeros(1, 3, 10, 10)
    plastic = npn.attach(copy.deepcopy(model), x)
    names = [group.name for group in plastic.groups]
    per_macs = npn.importance(plastic, "random", per="macs")
    per_params = npn.importance(plastic, "random", per="params")
    unit = npn.importance(plastic, "random")
    conv, linear = (unit[name] / per_macs[name] for name in names)
    torch.testing.assert_close(conv, torch.full((6,), 27.0 * 64 + 6))
    torch.testing.assert_close(linear, torch.full((6,), 8.0))
    torch.testing.assert_close(unit["0"] / per_params["0"], torch.full((6,), 27.0 + 1 + 6))
    small = npn.prune(model, x, target=0.51, criterion="random")
    assert small[0].out_channels <= 3 and small[4].out_features == 6


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.integers(40, 90), min_size=1, max_size=3), st.floats(0.1, 0.9), st.sampled_from(["params", "macs"]),
    st.integers(0, 1000),
)  # fmt: skip
def test_any_mlp_meets_its_target(hidden: list[int], target: float, cost: str, seed: int) -> None:
    torch.manual_seed(seed)
    widths = [12, *hidden, 10]
    layers = [[nn.Linear(a, b), nn.ReLU()] for a, b in itertools.pairwise(widths)]
    model, x = nn.Sequential(*(layer for pair in layers for layer in pair)), torch.randn(4, 12)
    small = npn.prune(model, x, target=target, cost=cost, criterion="magnitude")
    full, came = count(model, x, cost), count(small, x, cost)
    if abs(came - target * full) > 0.02 * target * full:  # of few units, each is more than that
        assert came < target * full and all(p.shape[0] > 0 for p in small.parameters())
        narrower = [i for i in range(0, len(small) - 2, 2) if small[i].out_features < model[i].out_features]
        for i in narrower:  # one unit more of any layer is too many
            wider = [small[j].out_features + (i == j) for j in range(0, len(small), 2)]
            weights = sum(a * b for a, b in itertools.pairwise([12, *wider]))
            assert (weights * 4 if cost == "macs" else weights + sum(wider)) > 1.02 * target * full
    assert all(0 not in shape for shape in sizes(small))


# -- errors


def test_errors() -> None:
    model, x, _ = build("mlp")

    def fails(message: str, **options: Any) -> None:
        with pytest.raises(ConfigurationError) as error:
            npn.prune(model, x, **options)
        assert str(error.value) == message

    target = "target must be a fraction in (0, 1] as a float, or a cost above 1 (or an int), got "
    for wrong in (0, -1, 0.0, float("nan"), float("inf"), True, "half"):
        fails(target + repr(wrong), target=wrong, criterion="random")
    fails("cost must be one of 'params', 'macs', got 'flops'", target=0.5, cost="flops", criterion="random")
    fails(
        "criterion must be one of 'magnitude', 'taylor', 'fisher', 'bn_scale', 'random', got 'l1'", target=0.5,
        criterion="l1",
    )  # fmt: skip
    needs = "needs data: give batches= and loss=(model, batch) -> scalar; batches and loss missing."
    with pytest.raises(
        ConfigurationError, match=f"^criterion 'taylor' {needs}".replace("(", r"\(").replace(")", r"\)")
    ):
        npn.prune(model, x, target=0.5)
    least = (9 * 1 + 1 * 1 + 1 * 4) * 8
    fails(
        f"target=0.001 asks for 25 MACs, but with one unit left in every group the model still has {least} of 24,800; "
        "give a target of at least 0.0046",
        target=0.001, criterion="random",
    )  # fmt: skip
    fails(
        "target=20 asks for 20 parameters, but with one unit left in every group the model still has 669 of 3,204; "
        "give a target of at least 0.2089, or let more groups take part with only= and skip=",
        target=20, criterion="random", cost="params", skip="0",
    )  # fmt: skip
    with pytest.raises(TraceError, match=r"^nothing in the model can be resized: "):
        npn.prune(nn.Linear(3, 2), torch.zeros(1, 3), target=0.5, criterion="random")
    npn.attach(model, x)
    with pytest.raises(ConfigurationError, match=r"^the model has plasticity already; call detach\(\) on its handle"):
        npn.prune(model, x, target=0.5, criterion="random")


def test_a_target_that_is_met_already_keeps_every_unit() -> None:
    model, x, batches = build("mlp")
    for target in (1.0, 10**9):
        small = pruned(model, x, batches, target=target)
        assert sizes(small) == sizes(model) and torch.equal(small(x), model(x)) and small is not model


def test_the_page_on_pruning_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[1] / "docs" / "pruning.md"
    first, bounds, refit, second = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(first, str(page), "exec"), scope)
    assert scope["accuracy"](scope["small"]) > 0.95
    macs = [npn.count_macs(scope[name], scope["x"][:1]) for name in ("model", "small")]
    assert 0.294 <= macs[1] / macs[0] <= 0.306 and str(macs[1]) in capsys.readouterr().out
    exec(compile(bounds, str(page), "exec"), scope)
    assert capsys.readouterr().out == "0 True\n"
    exec(compile(refit, str(page), "exec"), scope)
    assert scope["accuracy"](scope["refitted"]) > scope["accuracy"](scope["plain"])
    exec(compile(second, str(page), "exec"), scope)
    assert scope["plastic"].groups[0].gate.keep_probability().mean().item() == pytest.approx(0.95, abs=1e-3)
