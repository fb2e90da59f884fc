"""Models that take another path in training than in evaluation."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import npn
from npn.errors import TraceError
from npn.structure import Structure
from npn.tracing import trace

from ..zoo.checks import assert_close, call


class Paths(nn.Module):
    """One trunk, two heads; what is computed in each mode is given."""

    def __init__(self, train: Callable[[Any, Tensor], Any], evaluate: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.head, self.aux = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 3)
        self.other = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
        self.paths = (evaluate, train)

    def forward(self, x: Tensor) -> Any:
        return self.paths[self.training](self, torch.relu(self.stem(x))), self.other(x)


def both(s: Any, h: Tensor) -> Any:
    return s.head(h), s.aux(h)


def head(s: Any, h: Tensor) -> Any:
    return s.head(h)


def aux(s: Any, h: Tensor) -> Any:
    return s.aux(h)


class LayerDrop(nn.Module):
    """Skips blocks by chance, in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 8)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            if not self.training or random.random() < 0.5:
                x = x + block(x)
        return self.head(x)


def reasons(structure: Structure | npn.Plasticity, tensor: str) -> list[str]:
    return [f.reason for f in structure.frozen if any(name == tensor for name, _ in f.slots)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [lambda: Paths(both, head), lambda: Paths(head, both), LayerDrop])
def test_all_paths_are_resized(make: Callable[[], nn.Module], training: bool) -> None:
    torch.manual_seed(0), random.seed(0)
    model, x = make().train(training), torch.randn(3, 4)
    modes = [module.training for module in model.modules()]
    plastic = npn.attach(model, x)
    assert [module.training for module in model.modules()] == modes
    sizes = {g.name: g.size for g in plastic.groups}
    names = {f"blocks.{i}.0": 5 for i in range(4)} if isinstance(model, LayerDrop) else {"other.0": 6}
    assert sizes == {"stem": 8} | names

    def answers(net: nn.Module) -> list[Tensor]:
        found = []
        for mode in (True, False):
            random.seed(1)
            found += call(net.train(mode), x)
        return found

    for group in plastic.groups:
        plastic.close(group, [0, 2])
    masked = answers(model)
    assert_close(masked, answers(plastic.export()), 1e-6, "exported")
    model.train(training)
    plastic.compact()
    assert_close(masked, answers(model), 1e-6, "compacted")
    for mode in (True, False):
        model.train(mode)
        plastic.grow({g.name: 2 for g in plastic.groups})
        assert_close(masked, answers(model), 1e-6, "grown")


@pytest.mark.parametrize(("evaluate", "reason"), [
    (lambda s, h: h, "in eval() it is the model's output"),
    (lambda s, h: s.head(h.softmax(1)), "in eval() _softmax mixes every unit of the axis at test_modes.py:"),
    (lambda s, h: s.head(h.view(3, 4, 2).amax(2, keepdim=True).expand(3, 4, 2).reshape(3, 8)),
     "in eval() its units are other ones"),
])  # fmt: skip
def test_what_one_mode_does_not_allow_is_frozen(evaluate: Callable[[Any, Tensor], Any], reason: str) -> None:
    plastic = npn.attach(Paths(both, evaluate).eval(), torch.randn(3, 4))
    assert [g.name for g in plastic.groups] == ["other.0"]
    assert any(text.startswith(reason) for text in reasons(plastic, "stem.weight")), reasons(plastic, "stem.weight")


def test_what_takes_no_part_is_said() -> None:
    x = torch.randn(3, 4)
    assert (
        reasons(trace(Paths(head, head), x), "aux.weight")
        == ["it takes no part in the forward pass in train() or in eval()"] * 2
    )
    assert reasons(trace(Paths(both, lambda s, h: s.nothing).train(), x), "aux.weight")[0] == "it is the model's output"
    alone = Paths(lambda s, h: s.nothing, head).eval()
    assert (
        reasons(trace(alone, x), "aux.weight")
        == ["it takes no part in the forward pass in eval(), and in train() it cannot be traced"] * 2
    )
    assert not alone.training


def test_two_paths_that_share_too_little() -> None:
    with pytest.raises(TraceError) as refused:
        npn.attach(Paths(aux, head), torch.randn(3, 4))
    assert str(refused.value) == (
        "aux.bias, aux.weight take part in the forward pass in train() only, head.bias, head.weight in eval() only, so "
        "that no trace sees both; let one of the modes use all of them, or attach the parts that they share separately"
    )
