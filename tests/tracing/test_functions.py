"""What a forward pass asks of autograd: functions of its own are traced through, requests for gradients are nothing."""

import threading
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


# -- requests for gradients


def hooked(x: Tensor) -> Tensor:
    x.retain_grad()
    x.register_hook(lambda grad: grad * 1).remove()
    return x


REQUESTS: dict[str, Callable[[Tensor], Tensor]] = {
    "input": lambda x: x.requires_grad_(),
    "detached": lambda x: x + (x * 0).detach().requires_grad_(True),
    "keyword": lambda x: x + torch.zeros_like(x).requires_grad_(requires_grad=True),
    "hooked": hooked,
    "in_place_afterwards": lambda x: (x * 1).requires_grad_().mul_(2),
    "checkpoint": lambda x: checkpoint(torch.tanh, x.requires_grad_(), use_reentrant=True),
    "new_checkpoint": lambda x: checkpoint(torch.tanh, x.requires_grad_(), use_reentrant=False),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", REQUESTS)
def test_requests_for_gradients_in_the_forward_pass(name: str, training: bool) -> None:
    torch.manual_seed(0)
    model, x = Net(REQUESTS[name]).train(training), torch.randn(3, 4)
    methods = {method: vars(Tensor).get(method) for method in ("requires_grad_", "retain_grad", "register_hook")}
    plastic = npn.attach(model, x)
    assert {method: vars(Tensor).get(method) for method in methods} == methods
    assert not x.requires_grad and all(p.requires_grad for p in model.parameters())
    assert {g.name: g.size for g in plastic.groups} == {"a": 8, "b": 6}
    plastic.backward(lambda: model(x).sum())
    check_shrink(plastic, x)
    check_grow(plastic, x)


def test_an_input_that_is_asked_for_its_gradient_later_does_not_hinder_growth() -> None:
    torch.manual_seed(0)
    model, x = Net(torch.tanh), torch.randn(3, 4)
    plastic = npn.attach(model, x)
    model.a.register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    model.register_forward_pre_hook(lambda module, args: (args[0].detach().requires_grad_(),))
    check_grow(plastic, x)
    assert {g.name: g.size for g in plastic.groups} == {"a": 9, "b": 8}


def test_other_threads_ask_for_gradients_as_ever() -> None:
    seen: list[bool] = []

    def threaded(x: Tensor) -> Tensor:
        def ask() -> None:
            y = torch.ones(2).requires_grad_()
            y.register_hook(lambda grad: seen.append(bool(grad[0] == 3)))
            (3 * y).sum().backward()
            seen.append(y.requires_grad)

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        return x.requires_grad_()

    trace(Net(threaded), torch.randn(3, 4))
    assert len(seen) >= 2 and all(seen)


def test_the_methods_of_tensors_are_put_back_after_an_error() -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(TraceError, match="no"):
        trace(Net(fails), torch.randn(3, 4))
    assert not {"requires_grad_", "retain_grad"} & set(vars(Tensor))
    x = torch.ones(2).requires_grad_()
    x.register_hook(lambda grad: grad * 2)
    x.sum().backward()
    assert torch.equal(x.grad, torch.tensor([2.0, 2.0]))


class Forces(nn.Module):
    """Minus the gradient of an energy."""

    def __init__(self, backward: bool = False) -> None:
        super().__init__()
        self.energy, self.backward = Net(torch.tanh), backward

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        energy = self.energy(x).sum()
        if self.backward:
            energy.backward(create_graph=True)
            return -x.grad
        return -torch.autograd.grad(energy, x, create_graph=True)[0]


@pytest.mark.parametrize("backward", [False, True])
def test_gradients_in_the_forward_pass_are_refused_with_the_way_out(backward: bool) -> None:
    model, x = Forces(backward), torch.randn(3, 4)
    with pytest.raises(
        TraceError, match=r"at test_functions.py:\d+: RuntimeError: a gradient .*cannot be traced; attach"
    ):
        npn.attach(model, x)


def test_a_model_of_forces_is_trained_through_its_energy() -> None:
    torch.manual_seed(0)
    model, x = Forces(), torch.randn(3, 4)
    model(x).pow(2).sum().backward()
    wanted = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    plastic = npn.attach(model.energy, x)
    plastic.backward(lambda: model(x).pow(2).sum())
    for p, grad in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, torch.zeros_like(p) if grad is None and p.grad is not None else grad)
    plastic.close("a", [0, 3])
    plastic.close("b", [1])
    masked = model(x)
    plastic.compact()
    assert {g.name: g.size for g in plastic.groups} == {"a": 6, "b": 5}
    torch.testing.assert_close(model(x), masked)
