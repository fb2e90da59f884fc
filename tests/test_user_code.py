"""What user code may do to a model with gates: interrupt it, watch it, differentiate it, wrap it."""

import copy
import math
import re
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import npn
from npn.errors import ConfigurationError


class Stop(nn.Module):
    """Ctrl-C, once, when asked for."""

    on = False

    def forward(self, h):
        if self.on:
            self.on = False
            raise KeyboardInterrupt
        return h


@pytest.fixture
def interrupted():
    """A model in which a unit is closed, just after Ctrl-C in the middle of a call; and its own weight."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), Stop(), nn.Linear(4, 2)), torch.randn(6, 3)
    plastic = npn.attach(model, x)
    plastic.close("0", [1])
    own, model[1].on = model[2].weight.detach().clone(), True
    with pytest.raises(KeyboardInterrupt):
        model(x)
    assert not torch.equal(model[2].weight, own), "torch calls no hook after an interrupt"
    return model, plastic, x, own


# -- interrupts


def test_an_interrupted_call_costs_no_weight(interrupted):
    model, plastic, x, own = interrupted
    masked = model(x)
    assert torch.equal(model[2].weight, own)
    torch.testing.assert_close(masked, plastic.export()(x))


@pytest.mark.parametrize("way", ["detach", "backward", "save", "state_dict", "export", "compact"])
def test_whatever_comes_after_an_interrupt_finds_the_weights(interrupted, tmp_path, way):
    model, plastic, x, own = interrupted
    if way == "detach":
        assert torch.equal(plastic.detach()[2].weight, own)
    elif way == "backward":
        plastic.backward(lambda: model(x).square().mean())
        assert torch.equal(model[2].weight, own)
    elif way == "save":
        npn.save(tmp_path / "model.npn", plastic)
        assert torch.equal(torch.load(tmp_path / "model.npn")["model"]["2.weight"], own)
    elif way == "state_dict":
        assert torch.equal(model.state_dict()["2.weight"], own)
    elif way == "export":
        assert torch.equal(plastic.export()[2].weight, own[:, [0, 2, 3]])
    else:
        plastic.compact()
        assert torch.equal(model[2].weight, own[:, [0, 2, 3]])


def test_a_call_within_a_call_is_none_that_was_interrupted():
    class Twice(nn.Sequential):
        again = True

        def forward(self, x):
            if self.again:
                self.again = False
                self.inner = self(x)
            return super().forward(x)

    torch.manual_seed(0)
    model, x = Twice(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(6, 3)
    model.again = False
    plastic = npn.attach(model, x)
    plastic.close("0", [1])
    own, model.again = model[2].weight.detach().clone(), True
    outer = model(x)
    small = plastic.export()  # with what the pass has left in the model
    torch.testing.assert_close(outer, small(x))
    torch.testing.assert_close(model.inner, small(x))
    assert torch.equal(small.inner, model.inner) and small.inner.grad_fn is None
    assert torch.equal(model[2].weight, own)


# -- looking on


@pytest.mark.parametrize("columns", [None, "2"])
def test_inference_mode_after_a_resize_leaves_nothing_that_cannot_train(columns):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(6, 3)
    plastic = npn.attach(model, x, columns=columns)
    plastic.k = 7.0
    plastic.close("0", [1])
    plastic.compact()
    with torch.inference_mode():
        model(x)
        plastic.expected_cost("params")
    plastic.close("0", [2])
    with torch.inference_mode():
        model(x)
    plastic.backward(lambda: model(x).square().mean())
    plastic.k = math.inf
    plastic.backward(lambda: model(x).square().mean())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in plastic.weights())


def test_what_is_exported_in_inference_mode_can_be_trained():
    model, x = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)), torch.randn(6, 3)
    plastic = npn.attach(model, x)
    plastic.close("0", [1])
    with torch.inference_mode():
        small = plastic.export()
    small(x).square().mean().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_attaching_in_inference_mode_is_refused():
    model, x = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2)), torch.randn(6, 3)
    text = "gates made inside torch.inference_mode() cannot be trained; attach outside of it"
    for call in (npn.attach, lambda *args: npn.prune(*args, target=0.5, criterion="magnitude")):
        with torch.inference_mode(), pytest.raises(ConfigurationError, match=f"^{re.escape(text)}$"):
            call(model, x)


def test_a_look_at_the_model_is_not_part_of_the_step(tiny):
    """With one mask per example, masks of an earlier call outside do not reach the step's gradients."""
    spec, gradients = tiny["mlp"], []
    for look in (False, True):
        torch.manual_seed(1)
        model, plastic = spec.attach(masks="example")
        x, y = spec.data()
        plastic.k = 7.0
        with torch.no_grad():
            plastic.group("0").gate.logits[1] = -0.02  # closed by the deterministic mask, open in half of the draws
        if look:
            model(x)
        plastic.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))  # noqa: B023
        gradients.append([p.grad.clone() for p in (*plastic.weights(), *plastic.logits())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# -- closures that do more


@pytest.mark.parametrize("create", [False, True])
def test_what_the_closure_differentiates_is_no_part_of_the_gates_gradient(tiny, create):
    spec, gradients = tiny["mlp"], []
    for inside in (False, True):
        torch.manual_seed(1)
        model, plastic = spec.attach()
        x, y = spec.data()
        plastic.k = 1.0

        def closure():
            loss = F.cross_entropy(model(x), y)  # noqa: B023
            if inside:  # noqa: B023
                torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, create_graph=create)  # noqa: B023
            return loss

        plastic.backward(closure)
        gradients.append([p.grad.clone() for p in (*plastic.weights(), *plastic.logits())])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))


def test_a_penalty_on_the_gradient_of_weights_can_be_trained(tiny):
    spec = tiny["mlp"]
    model, plastic = spec.attach()
    x, y = spec.data()
    plastic.k = 1.0

    def closure():
        loss = F.cross_entropy(model(x), y)
        parts = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        return loss + sum(part.square().sum() for part in parts)

    plastic.backward(closure)
    assert all(bool(p.grad.isfinite().all()) for p in (*plastic.weights(), *plastic.logits()))


def test_weights_that_change_inside_are_not_lost_in_silence():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(6, 3)
    plastic = npn.attach(model, x)
    plastic.close("0", [1])
    optimizer = torch.optim.SGD([model[2].weight], lr=0.1)
    model[2].weight.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    own = model[2].weight.detach().clone()
    with pytest.raises(ConfigurationError) as error:
        plastic.backward(lambda: model(x).square().mean())
    assert str(error.value) == (
        "2.weight was changed inside plastic.backward, where it is a masked copy; the change is lost. Step optimizers, "
        "and normalise or clip weights in place, after plastic.backward"
    )
    assert torch.equal(model[2].weight, own)


@pytest.mark.parametrize("method", [None, npn.methods.HardConcrete])
@pytest.mark.parametrize("reentrant", [False, True])
def test_masks_per_example_and_checkpoints_do_not_go_together(reentrant, method):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)
            self.save = False

        def forward(self, x):
            h = torch.tanh(self.a(x))
            return checkpoint(self.b, h, use_reentrant=reentrant) if self.save else self.b(h)

    model, x, y = Net(), torch.randn(6, 3), torch.randint(3, (6,))
    plastic = npn.attach(model, x, masks="example")
    plastic.k, model.save = 1.0 if method is None else math.inf, True
    backward = plastic.backward if method is None else method(plastic).backward
    with pytest.raises(ConfigurationError, match=r'^masks="example" does not reach into activation checkpoints, which'):
        backward(lambda: F.cross_entropy(model(x), y, reduction="none"))


def test_one_closure_does_for_masks_per_example_in_every_stage(tiny):
    spec = tiny["mlp"]
    model, plastic = spec.attach(masks="example")
    x, y = spec.data()
    loss = plastic.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))  # k = inf, as schedules begin
    torch.testing.assert_close(loss, F.cross_entropy(model(x), y).detach())
    wanted = torch.autograd.grad(F.cross_entropy(model(x), y), plastic.weights())
    assert all(torch.allclose(p.grad, w, atol=1e-7) for p, w in zip(plastic.weights(), wanted, strict=True))


def test_transforms_of_a_masked_model_are_refused():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(6, 3)
    plastic = npn.attach(model, x)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters):
        return torch.func.functional_call(model, parameters, x).square().mean()

    assert all(bool(g.isfinite().all()) for g in torch.func.grad(loss)(parameters).values())
    plastic.close("0", [1])
    with pytest.raises(ConfigurationError, match=r"^units are closed, and torch.func transforms cannot run a model"):
        torch.func.grad(loss)(parameters)
    torch.testing.assert_close(model(x), plastic.export()(x))


@pytest.mark.parametrize(
    ("estimator", "masks"), [("disarm", "batch"), ("rloo", "batch"), ("double_cv", "batch"), ("disarm", "example")]
)
def test_a_loss_that_is_not_finite_in_the_second_pass_says_so(tiny, estimator, masks):
    model, plastic = tiny["mlp"].attach(estimator=estimator, masks=masks)
    x, y = tiny["mlp"].data()
    plastic.k, factors, plastic.last_checkpoint = 7.0, iter([1.0, math.nan]), "run/last.npn"
    reduction = "none" if masks == "example" else "mean"
    message = r"those of the first of two passes alone.*the last checkpoint, run/last\.npn$"
    with pytest.raises(npn.errors.NonFiniteLossError, match=message):
        plastic.backward(lambda: F.cross_entropy(model(x), y, reduction=reduction) * next(factors))


def test_complex_weights_inform_the_gates():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.w = nn.Linear(4, 5), nn.Parameter(torch.randn(3, 5, dtype=torch.cfloat))

        def forward(self, x):
            return F.linear(torch.tanh(self.a(x)).to(torch.cfloat), self.w).abs()

    torch.manual_seed(0)
    model, x = Spectral(), torch.randn(6, 4)
    plastic = npn.attach(model, x, estimator="straight_through", penalty=npn.Penalty(weight=0.0))
    plastic.k = 1.0
    with torch.no_grad():
        plastic.group("a").gate.logits.fill_(30.0)  # every draw is open
    plastic.backward(lambda: model(x).sum())
    z = torch.ones(5, requires_grad=True)
    F.linear((torch.tanh(model.a(x)) * z).to(torch.cfloat), model.w).abs().sum().backward()
    pi = plastic.gates.keep_probability().detach()
    torch.testing.assert_close(plastic.logits()[0].grad, z.grad * pi * (1 - pi))


def test_a_wrapper_of_a_model_with_gates_is_refused(tiny):
    model, _ = tiny["mlp"].attach()
    with pytest.raises(ConfigurationError) as error:
        npn.attach(nn.Sequential(model, nn.Tanh()), tiny["mlp"].data()[0])
    assert str(error.value) == (
        "its part '0' has plasticity already; call detach() on its handle before attaching again"
    )
    with pytest.raises(ConfigurationError) as error:
        npn.attach(copy.deepcopy(model), tiny["mlp"].data()[0])
    assert str(error.value) == (
        "the model has plasticity already; call detach() on its handle before attaching again; a deep copy of a model "
        "has no handle: attach a copy of plastic.export()"
    )


# -- mistakes


@pytest.mark.parametrize(("k", "masks"), [(math.inf, "batch"), (7.0, "batch"), (7.0, "example")])
def test_a_loss_without_gradient(k, masks):
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(6, 3)
    plastic = npn.attach(model, x, masks=masks)
    plastic.k = k
    message = (
        "the loss has no gradient: it was detached, computed under torch.no_grad(), or made anew from a number, or no "
        "parameter that requires gradients took part; return the loss that was computed from the model's output"
    )

    def loss():
        each = model(x).detach().square().mean(1)
        return each if masks == "example" else each.mean()

    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        plastic.backward(loss)
    assert all(p.grad is None for p in plastic.weights())


@pytest.mark.parametrize("estimator", ["reinmax", "disarm"])
@pytest.mark.parametrize("k", [math.inf, 7.0])
@pytest.mark.parametrize("retain", [False, True])
def test_a_closure_that_runs_backward_itself(k, estimator, retain):
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(6, 3)
    plastic = npn.attach(model, x, estimator=estimator)
    plastic.k = k
    message = (
        "the closure has changed gradients: it called backward() or zero_grad(). It only computes the loss and returns "
        "it: plastic.backward runs the backward pass; set gradients to zero before it"
    )

    def closure():
        loss = model(x).square().mean()
        loss.backward(retain_graph=retain)
        return loss

    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        plastic.backward(closure)


def test_a_closure_that_sets_gradients_to_zero_loses_those_of_the_first_pass():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(6, 3)
    plastic = npn.attach(model, x, estimator="disarm")

    def closure():
        model.zero_grad()
        return model(x).square().mean()

    plastic.backward(closure)  # k = inf: one pass
    assert all(p.grad is not None for p in plastic.weights())
    plastic.k = 7.0
    with pytest.raises(ConfigurationError, match=r"^the closure has changed gradients: it called backward"):
        plastic.backward(closure)


def test_export_names_what_cannot_be_copied():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(6, 3)
    plastic = npn.attach(model, x)
    model[1].lock = threading.Lock()
    message = (
        "the model cannot be copied because of its attribute 1.lock, a lock: cannot pickle '_thread.lock' object. Take "
        "it off the model before the copy, or give its class a __deepcopy__"
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        plastic.export()
    del model[1].lock
    torch.testing.assert_close(plastic.export()(x), model(x))


def test_a_reentrant_checkpoint_misses_no_gradient_in_a_trace():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.head = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.head(checkpoint(self.block, self.stem(x), use_reentrant=True))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plastic = npn.attach(Checkpointed(), torch.ones(2, 3))
        plastic.close("block", [1])
        assert plastic.compact().changes == {"block": (5, 4)}
