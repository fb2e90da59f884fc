"""Which parameters the gate of a branch multiplies, and what cannot be a branch."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import npn
from npn.errors import ConfigurationError, TraceError

from ..test_branches import Net, Residual, units

pytestmark = pytest.mark.usefixtures("traces_are_shared")


class Attend(nn.Module):
    """Self-attention with the output projection inside a fused call; its biases start at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Scaled(nn.Module):
    """A branch with a learned scalar in front."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.alpha = nn.Linear(4, 4), nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * self.linear(x)


class Squeezed(nn.Module):
    """The last layer to be called is that of a factor, without which the output is not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.factor = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        return h * torch.sigmoid(self.factor(h))


@pytest.mark.parametrize(("branch", "scales"), [
    (Attend, ("attention.out_proj.weight", "attention.out_proj.bias")),
    (Scaled, ("alpha",)),
    (Squeezed, ("linear.weight", "linear.bias")),
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.PReLU()), ("0.weight", "0.bias")),
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), ("0.weight", "0.bias")),
])  # fmt: skip
def test_what_silences_a_branch(branch: Callable[[], nn.Module], scales: Sequence[str]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), Residual(branch()), Residual(nn.Linear(4, 4)), nn.Linear(4, 2))
    x = torch.zeros(2, 5, 3)  # zeros must not hide anything
    model.eval()
    plastic = npn.attach(model, x, branches="*.branch")
    assert plastic.structure.branches is not None
    assert plastic.structure.branches.scales[0] == tuple(f"1.branch.{name}" for name in scales)
    x = torch.randn(2, 5, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    plastic.close("branches", [0])
    expected = model[3](model[2](model[0](x)))
    assert not torch.allclose(model(x), model[3](model[0](x)))
    masked = model(x)
    plastic.compact()
    assert torch.allclose(model(x), masked, atol=1e-6)
    assert torch.allclose(model(x), expected, atol=1e-6)


def test_attaching_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model = Net()
    model.blocks[0].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    random = torch.get_rng_state()
    npn.attach(model, torch.zeros(2, 1, 6, 6), branches="blocks.*.branch").detach()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Counting(Net):
    """It counts its calls in a buffer, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return super().forward(x)


def test_attaching_does_not_count_as_a_call() -> None:
    model = Counting()
    npn.attach(model, torch.zeros(2, 1, 6, 6), branches="blocks.*.branch")
    assert int(model.calls) == 0


def test_a_unit_that_only_a_branch_read() -> None:
    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.side, self.branch, self.head = (nn.Linear(4, 4) for _ in range(4))
            self.other = Residual(nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            return self.head(self.other(h + self.branch(torch.tanh(self.side(x)))))

    torch.manual_seed(0)
    model, x = Side(), torch.randn(2, 4)
    plastic = npn.attach(model, x, branches=["branch", "*.branch"])
    assert units(plastic) == {"stem": 4, "side": 4, "branches": 2}
    plastic.close("branches", [0])
    masked = model(x)
    plastic.compact()
    assert units(plastic) == {"stem": 4, "branches": 1} and torch.allclose(model(x), masked)
    assert [(f.name, f.reason) for f in plastic.frozen if f.name == "side"] == [
        ("side", "only a branch that is gone read it")
    ]
    plastic.grow({"stem": 2})
    assert torch.allclose(model(x), masked, atol=1e-6)


# -- bad input


class Sum(nn.Module):
    """f(x) + g(x) without a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g, self.unused = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)
        self.after = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())
        self.joined, self.head = nn.Linear(4, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.f(x) + self.g(x)
        h = h + self.after(h)
        return self.head(torch.cat([h, self.joined(h)], 1))


class Blocks(nn.Module):
    """Blocks that are added by the loop over them, so that they are what has to be named."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)


def test_a_pattern_means_the_outermost_of_what_it_matches() -> None:
    plastic = npn.attach(Blocks(), torch.randn(2, 3), branches="blocks.*")
    assert plastic.structure.branches is not None and plastic.structure.branches.paths == ("blocks.0", "blocks.1")
    with pytest.raises(ConfigurationError, match=r"branch 'blocks\.0\.0' lies inside branch 'blocks\.0'"):
        npn.attach(Blocks(), torch.randn(2, 3), branches=["blocks.*", "blocks.0.0"])


@pytest.mark.parametrize(("patterns", "kind", "message"), [
    ("nothing.*", ConfigurationError,
     "branches='nothing.*' matches no submodule with parameters; the model has: f, g, unused, after, after.0, joined, "
     "head"),
    (["after", "after.0"], ConfigurationError,
     "branch 'after.0' lies inside branch 'after'; give gates to one of them with branches="),
    ("unused", TraceError, "branch 'unused' is not called in the forward pass; leave it out of branches="),
    ("after", TraceError,
     "no layer of branch 'after' makes its output zero when its weight and bias are zero; expected one tensor from a "
     "layer with a weight, such as a linear or convolution layer or BatchNorm, and after it only what keeps zeros. End "
     "the branch with such a layer, or leave it out of branches="),
    ("joined", TraceError,
     "branch 'joined' cannot go: with a scalar zero in its place the model fails at test_scales.py:{line}: "
     "RuntimeError: zero-dimensional tensor (at position 1) cannot be concatenated; expected an output that is added "
     "to a tensor of its shape, as in x + branch(x). Leave it out of branches="),
])  # fmt: skip
def test_branches_that_cannot_be(patterns: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        npn.attach(Sum(), torch.randn(2, 3), branches=patterns)
    line = Sum.forward.__code__.co_firstlineno + 3
    assert str(error.value) == message.format(line=line)


def test_branches_without_a_shortcut() -> None:
    with pytest.raises(TraceError) as error:
        npn.attach(Sum(), torch.randn(2, 3), branches=["f", "g"])
    text = str(error.value)
    assert text.startswith("the branches f, g cannot all go: with scalar zeros in their places the model fails at ")
    assert text.endswith("; expected a shortcut beside them. Leave one out of branches=")


def test_shared_branches_and_other_options() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(3, 4), Residual(shared), nn.Tanh(), shared, nn.Linear(4, 2))
    with pytest.raises(ConfigurationError) as error:
        npn.attach(model, torch.randn(2, 3), branches="1.branch")
    assert str(error.value) == (
        "branch '1.branch' shares 3.weight with other parts of the model, which would lose it; leave it out of "
        "branches="
    )
    with pytest.raises(ConfigurationError) as error:
        npn.attach(Sum(), torch.randn(2, 3), branches="f", masks="example")
    assert str(error.value) == 'branches take part in masks="batch" only; leave out branches= or masks="example"'
    plastic = npn.attach(Sum(), torch.randn(2, 3), branches="f")
    with pytest.raises(ConfigurationError) as error:
        plastic.grow({"branches": 1})
    assert str(error.value) == (
        "'branches' are whole branches, which go but do not come back; attach a model that has more of them"
    )
