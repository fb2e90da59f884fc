"""A `torch.autograd.Function` is traced through its forward pass, and stays what it is elsewhere."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import npn
from npn.errors import TraceError
from npn.tracing import trace

from ..zoo.checks import check_grow, check_shrink


class Reverse(torch.autograd.Function):
    """Gradient reversal, the older style."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:  # type: ignore[override]
        ctx.factor, ctx.wanted = factor, ctx.needs_input_grad[0]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        ctx.shape = ctx.saved_tensors[0].shape if torch.compiler.is_exporting() else x.shape
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return -ctx.factor * grad, None


class Swish(torch.autograd.Function):
    """Keeps its input only, the newer style."""

    @staticmethod
    def forward(x: Tensor, beta: float = 1.0) -> Tensor:  # type: ignore[override]
        return x * torch.sigmoid(beta * x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.beta = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(ctx.beta * x)
        return grad * (s + ctx.beta * x * s * (1 - s)), None


class Rectify(torch.autograd.Function):
    """In place, and with an output that has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:  # type: ignore[override]
        where = x > 0
        ctx.mark_dirty(x.relu_())
        ctx.mark_non_differentiable(where)
        ctx.save_for_backward(where)
        return x, where

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Tensor:  # type: ignore[override]
        return grad * ctx.saved_tensors[0]


class Net(nn.Module):
    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(self.f(self.a(x)))))


FUNCTIONS = {
    "older": lambda x: Reverse.apply(x, 2.0),
    "newer": lambda x: Swish.apply(x),
    "in_place": lambda x: Rectify.apply(x * 1)[0],
    "checkpoint": lambda x: checkpoint(torch.tanh, x, use_reentrant=True),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_models_with_functions_of_their_own(name: str) -> None:
    torch.manual_seed(0)
    model, x = Net(FUNCTIONS[name]), torch.randn(3, 4)
    model(x).sum().backward()
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    plastic = npn.attach(model, x)
    assert {g.name: g.size for g in plastic.groups} == {"a": 8, "b": 6}
    model.zero_grad()
    plastic.backward(lambda: model(x).sum())
    for got, grad in zip(plastic.weights(), wanted, strict=True):
        torch.testing.assert_close(got.grad, grad)
    check_shrink(plastic, x)
    check_grow(plastic, x)


def test_functions_are_put_back_after_an_error() -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("no")

    before = vars(torch.autograd.Function)["apply"]
    with pytest.raises(TraceError, match="no"):
        trace(Net(fails), torch.randn(3, 4))
    assert vars(torch.autograd.Function)["apply"] is before
    x = torch.ones(2, requires_grad=True)
    Reverse.apply(x, 2.0).sum().backward()
    assert torch.equal(x.grad, torch.tensor([-2.0, -2.0]))
