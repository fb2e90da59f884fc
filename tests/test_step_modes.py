"""`plastic.backward` in every mode: penalty, accumulation, grace, k = inf, k = 0, the second pass, bad losses."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn

from .stepping import (
    PROBABILITY,
    K,
    clear,
    logit_gradient,
    set_probability,
)

pytestmark = pytest.mark.usefixtures("traces_are_shared")


@pytest.mark.parametrize("estimator", npn.step.ESTIMATORS)
def test_penalty_gradient_is_exact(tiny, estimator):
    """Gate gradients with and without a penalty, same draws, differ by the penalty's analytic gradient."""
    found = []
    for weight in (0.0, 0.01):
        model, plastic = tiny["mlp"].attach(estimator=estimator, penalty=npn.Penalty("params", weight))
        x, y = tiny["mlp"].data()
        plastic.k = K
        plastic.gates.generator.manual_seed(3)
        plastic.backward(lambda m=model, x=x, y=y: F.cross_entropy(m(x), y))
        found.append(logit_gradient(plastic))
    with torch.no_grad():
        pi = plastic.gates.keep_probability().double()
    a, b = pi[:4].sum(), pi[4:].sum()
    price = torch.cat([(3 + 1 + b).expand(4), (a + 1 + 2).expand(3)])  # what one more unit of each layer costs
    wanted = 0.01 * price * K * pi * (1 - pi)
    torch.testing.assert_close(found[1] - found[0], wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("estimator", npn.step.ESTIMATORS)
def test_gradients_accumulate(tiny, estimator):
    """Two calls add up, into the very tensors that were there; `scale` scales loss and penalty alike."""
    model, plastic = tiny["mlp"].attach(estimator=estimator, penalty=npn.Penalty(weight=0.01))
    x, y = tiny["mlp"].data()
    plastic.k = K

    def step(scale=1.0):
        return plastic.backward(lambda: F.cross_entropy(model(x), y), scale=scale)

    everything = [*plastic.weights(), *plastic.logits()]
    plastic.gates.generator.manual_seed(5)
    step()
    first = [p.grad.clone() for p in everything]
    clear(plastic)
    step()
    second = [p.grad.clone() for p in everything]
    clear(plastic)
    plastic.gates.generator.manual_seed(5)
    for p in everything:
        p.grad = torch.ones_like(p)
    kept = [p.grad for p in everything]
    loss = [step(0.5), step(torch.tensor(0.25))]
    for p, grad, a, b in zip(everything, kept, first, second, strict=True):
        assert p.grad is grad
        torch.testing.assert_close(grad, 1 + 0.5 * a + 0.25 * b, rtol=1e-5, atol=1e-6)
    assert all(not x.requires_grad and x.shape == () for x in loss)


def test_returned_loss_is_unscaled(tiny):
    for estimator in npn.step.ESTIMATORS:
        model, plastic = tiny["mlp"].attach(estimator=estimator)
        x, y = tiny["mlp"].data()
        plastic.k = 0.5
        plastic.gates.draw = lambda *b: torch.zeros(7)
        loss = plastic.backward(lambda m=model, x=x, y=y: F.cross_entropy(m(x), y), scale=64.0)
        torch.testing.assert_close(loss, F.cross_entropy(model(x), y).detach())


@pytest.mark.parametrize("masks", ["batch", "example"])
@pytest.mark.parametrize("estimator", ["arm", "disarm", "rloo", "straight_through", "reinmax"])
def test_grace_units_stay_open_without_gradient(tiny, estimator, masks):
    model, plastic = tiny["mlp"].attach(estimator=estimator, masks=masks, penalty=npn.Penalty(weight=0.1))
    x, y = tiny["mlp"].data()
    plastic.k = K
    set_probability(plastic, [0.5] * 7)
    draws = itertools.cycle([[0.9] * 4 + [0.1] * 3, [0.4] * 4 + [0.2] * 3])  # would close the first layer, then open it
    plastic.gates.draw = lambda *batch: torch.tensor(next(draws)).expand(*batch, 7)
    plastic.groups[0].gate.grace[:2] = 3
    plastic.gates.grace_left = 3
    reduction = "none" if masks == "example" else "mean"
    for left in (2, 1, 0):
        clear(plastic)
        plastic.backward(lambda: F.cross_entropy(model(x), y, reduction=reduction))
        grad = plastic.groups[0].gate.logits.grad
        assert torch.equal(grad[:2], torch.zeros(2)) and bool((grad[2:] != 0).all())
        assert plastic.groups[0].gate.grace.tolist() == [left, left, 0, 0]
        assert bool((model[2].weight.grad[:, :2] != 0).all()), "a held unit is read"
        next(draws) if estimator != "rloo" else None  # every step starts with the first draw
    clear(plastic)
    plastic.backward(lambda: F.cross_entropy(model(x), y, reduction=reduction))
    assert bool((plastic.groups[0].gate.logits.grad != 0).all())


@pytest.mark.parametrize("name", ["dropping", "conv"])
@pytest.mark.parametrize("optimizer", [
    lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    lambda p: torch.optim.Adam(p, lr=0.01),
])  # fmt: skip
def test_k_inf_is_the_plain_model_bit_for_bit(tiny, tools, name, optimizer):
    spec = tiny[name]
    x, y = spec.data()
    plain = spec.model()
    model, plastic = spec.attach()
    torch.manual_seed(11)
    reference = optimizer(plain.parameters())
    for _ in range(50):
        reference.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        reference.step()
    torch.manual_seed(11)
    weights, gates = optimizer(plastic.weights()), torch.optim.Adam(plastic.logits())
    for _ in range(50):
        weights.zero_grad()
        gates.zero_grad()
        plastic.backward(lambda: F.cross_entropy(model(x), y))
        weights.step()
        gates.step()
    assert tools.same(plain, model)
    assert all(g.gate.logits.grad is None for g in plastic.groups)


@pytest.mark.parametrize("masks", ["batch", "example"])
def test_k_inf_with_closed_units_trains_the_masked_network(tiny, tools, masks):
    spec = tiny["dropping"]
    x, y = spec.data()
    model, plastic = spec.attach(masks=masks)
    plastic.close("0", [1, 5])
    flags = tools.masks_of(plastic, torch.cat([g.gate.mask for g in plastic.groups]))
    twin = spec.masked_copy(model, flags)
    torch.manual_seed(2)
    F.cross_entropy(twin(x), y).backward()
    torch.manual_seed(2)
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    factors = spec.factors(flags)
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad * factors.get(name, torch.ones(())), msg=name)


class Decoder(nn.Module):
    """Four units that are always one, read with weights 1, 2, 4, 8: the output spells the mask."""

    def __init__(self):
        super().__init__()
        self.units, self.read = nn.Linear(1, 4), nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            self.units.weight.zero_()
            self.units.bias.fill_(1.0)
            self.read.weight.copy_(torch.tensor([[1.0, 2.0, 4.0, 8.0]]))

    def forward(self, x):
        return self.read(self.units(x))


@pytest.mark.parametrize("estimator", ["reinmax", "disarm"])
def test_k_zero_is_dropout_without_rescaling(estimator):
    """Every one of the 16 masks comes up as often as with torch.nn.Dropout, independently for each example."""
    n, seen = 4000, []
    model = Decoder()
    plastic = npn.attach(model, torch.zeros(2, 1), masks="example", estimator=estimator)
    plastic.k = 0.0
    plastic.backward(lambda: seen.append(model(torch.zeros(n, 1))) or seen[-1].square().mean(1))
    dropout = nn.Dropout(0.5)
    torch.manual_seed(0)
    with torch.no_grad():
        theirs = model.read(0.5 * dropout(model.units(torch.zeros(n, 1))))
    a = torch.bincount(seen[0].detach().reshape(-1).round().long(), minlength=16).double()
    b = torch.bincount(theirs.reshape(-1).round().long(), minlength=16).double()
    assert len(seen) == 1 and a.sum() == n
    assert float(((a - b) ** 2 / (a + b)).sum()) < 44.3  # chi-square with 15 degrees of freedom at 1e-4
    same = (seen[0][1:] == seen[0][:-1]).double().mean()
    assert abs(float(same) - 1 / 16) < 5 * (15 / 256 / n) ** 0.5
    assert all(g.gate.logits.grad is None for g in plastic.groups)


@pytest.mark.parametrize("estimator", npn.step.ESTIMATORS)
def test_k_zero_trains_weights_only_in_one_pass(tiny, estimator):
    model, plastic = tiny["mlp"].attach(estimator=estimator)
    x, y = tiny["mlp"].data()
    plastic.k, calls = 0.0, []
    plastic.backward(lambda: calls.append(1) or F.cross_entropy(model(x), y))
    assert len(calls) == 1
    assert all(g.gate.logits.grad is None for g in plastic.groups)
    assert all(p.grad is not None for p in model.parameters())


class Drawing(nn.Module):
    """Dropout, Python and NumPy draws, a buffer that is replaced, and batch statistics."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.drop, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)
        self.register_buffer("average", torch.zeros(4))
        self.log = []

    def forward(self, x):
        import random

        import numpy as np

        h = self.drop(self.norm(self.a(x)))
        self.average = 0.9 * self.average + 0.1 * h.detach().mean(0)
        self.log.append((h.detach().clone(), random.random(), float(np.random.rand()), self.training))
        return self.b(h)


@pytest.mark.parametrize("masks", ["batch", "example"])
@pytest.mark.parametrize("estimator", npn.step.ESTIMATORS)
def test_second_pass_repeats_all_but_the_mask(tiny, tools, estimator, masks):
    if (estimator, masks) == ("double_cv", "example"):
        pytest.skip("has no per-example form")
    torch.manual_seed(0)
    model = Drawing()
    plain = tools.clone(model)
    x, y = tiny["mlp"].data()
    plastic = npn.attach(model, x, estimator=estimator, masks=masks)
    plastic.k = 0.1
    torch.manual_seed(4)
    after = [torch.randn(1)]
    torch.manual_seed(4)
    plain(x)
    after = torch.get_rng_state()
    torch.manual_seed(4)
    calls = []
    reduction = "none" if masks == "example" else "mean"
    plastic.backward(lambda: calls.append(1) or F.cross_entropy(model(x), y, reduction=reduction))
    assert len(calls) == (1 if estimator in ("reinmax", "straight_through") else 2)
    assert torch.equal(torch.get_rng_state(), after)
    assert tools.same(model, plain), "buffers remember one pass, and weights are as they were"
    for hidden, python, numpy, training in model.log:
        assert torch.equal(hidden, plain.log[0][0]) and training
        assert (python, numpy) == model.log[0][1:3]


def test_conv_buffers_are_written_once(tiny):
    for estimator in npn.step.ESTIMATORS:
        model, plastic = tiny["conv"].attach(estimator=estimator)
        plain = tiny["conv"].model()
        x, y = tiny["conv"].data()
        plastic.k = 1.0
        plastic.gates.draw = lambda *b: torch.zeros(7)
        plastic.backward(lambda m=model, x=x, y=y: F.cross_entropy(m(x), y))
        plain(x)
        for (name, a), b in zip(model.named_buffers(), plain.buffers(), strict=True):
            assert torch.equal(a, b), (estimator, name)


@pytest.mark.parametrize("estimator", npn.step.ESTIMATORS)
def test_frozen_readers_inform_the_gates_and_stay_frozen(tiny, four, estimator):
    model, plastic = tiny["four"].attach(estimator=estimator, penalty=npn.Penalty(weight=0.0))
    x, y = tiny["four"].data()
    plastic.k = K
    set_probability(plastic, PROBABILITY["sigmoid"])
    model[3].weight.requires_grad_(False)  # after attach: the readers must notice
    before = model[3].weight.detach().clone()
    reference = {}
    for frozen in (True, False):
        model[3].weight.requires_grad_(not frozen)
        clear(plastic)
        plastic.gates.generator.manual_seed(1)
        plastic.backward(lambda: F.cross_entropy(model(x), y))
        reference[frozen] = logit_gradient(plastic)
        assert model[3].weight.requires_grad is not frozen
        assert (model[3].weight.grad is None) is frozen
    torch.testing.assert_close(reference[True], reference[False])
    assert torch.equal(before, model[3].weight)


def test_frozen_at_attach_and_thawed_later(tiny):
    """A backbone that is thawed half-way is masked like any other, and its gates learn."""
    x, y = tiny["mlp"].data()
    found = []
    for thaw in (False, True):
        model = tiny["mlp"].model()
        model[2].weight.requires_grad_(not thaw)
        plastic = npn.attach(model, x)
        plastic.k = K
        plastic.masked_weights.table  # noqa: B018 - made while frozen
        model[2].weight.requires_grad_(True)
        plastic.gates.generator.manual_seed(0)
        set_probability(plastic, [0.5] * 7)
        plastic.backward(lambda m=model: F.cross_entropy(m(x), y))
        found.append((logit_gradient(plastic), model[2].weight.grad))
    torch.testing.assert_close(found[0], found[1])
    assert bool((found[0][1] == 0).all(0).any()), "no unit was closed: the test shows nothing"


def test_several_optimizers_train(tiny):
    model, plastic = tiny["mlp"].attach(penalty=npn.Penalty(weight=1e-3))
    x, y = tiny["mlp"].data()
    one = torch.optim.SGD(model[0].parameters(), lr=0.1)
    two = torch.optim.AdamW([*model[2].parameters(), *model[4].parameters()], lr=1e-2)
    gates = torch.optim.Adam(plastic.logits(), lr=1e-2)
    plastic.track(one, two, gates)
    plastic.k = 2.0
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    phi = plastic.gates.logits().detach().clone()
    losses = []
    for _ in range(60):
        for o in (one, two, gates):
            o.zero_grad()
        losses.append(float(plastic.backward(lambda: F.cross_entropy(model(x), y))))
        for o in (one, two, gates):
            o.step()
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters())
    assert bool((phi != plastic.gates.logits()).all())
    assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.parametrize("masks", ["batch", "example"])
@pytest.mark.parametrize("k", [math.inf, 0.0, 1.0])
@pytest.mark.parametrize("estimator", ["reinmax", "disarm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_loss_stops_before_any_gradient(tiny, tools, estimator, k, masks, value):
    model, plastic = tiny["mlp"].attach(estimator=estimator, masks=masks)
    x, y = tiny["mlp"].data()
    plastic.k = k
    before = tools.clone(model.state_dict())
    reduction = "none" if masks == "example" and k != math.inf else "mean"
    with pytest.raises(npn.errors.NonFiniteLossError, match=r"the loss is (nan|inf); .* checkpoint"):
        plastic.backward(lambda: F.cross_entropy(model(x), y, reduction=reduction) * value)
    assert all(p.grad is None for p in [*plastic.weights(), *plastic.logits()])
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items()), "weights are unmasked again"


def test_closure_must_return_a_scalar(tiny):
    model, plastic = tiny["mlp"].attach()
    x, y = tiny["mlp"].data()
    for k in (1.0, math.inf):
        plastic.k = k
        with pytest.raises(npn.errors.ConfigurationError, match=r"scalar loss, got shape \(6,\); reduce it with .mean"):
            plastic.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))
        with pytest.raises(npn.errors.ConfigurationError, match=r"scalar loss, got float"):
            plastic.backward(lambda: F.cross_entropy(model(x), y).item())
        with pytest.raises(npn.errors.ConfigurationError, match=r"scalar loss, got NoneType"):
            plastic.backward(lambda: None)
    assert all(p.grad is None for p in plastic.weights())


def test_an_error_in_the_closure_leaves_the_weights(tiny, tools):
    for estimator in npn.step.ESTIMATORS:
        model, plastic = tiny["mlp"].attach(estimator=estimator)
        plastic.k = 0.0001
        before = tools.clone(model.state_dict())
        with pytest.raises(ZeroDivisionError):
            plastic.backward(lambda m=model: m(torch.zeros(2, 3)).sum() / (1 // 0))
        assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
        assert not plastic.masked_weights.in_step


def test_reentrant_checkpoint_of_a_shared_layer(tiny):
    """Its gradient arrives in parts; dL/dz must be the sum of them."""
    from torch.utils.checkpoint import checkpoint

    class Shared(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.a, self.b, self.c, self.reentrant = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2), reentrant

        def forward(self, x):
            h = self.a(x)
            for _ in range(2):
                part = lambda t: torch.tanh(self.b(t))  # noqa: E731
                h = checkpoint(part, h, use_reentrant=True) if self.reentrant and h.requires_grad else part(h)
            return self.c(h)

    x, y = tiny["mlp"].data()
    found = []
    for reentrant in (False, True):
        torch.manual_seed(0)
        model = Shared(False)
        plastic = npn.attach(model, x)
        model.reentrant = reentrant
        plastic.k = 1.0
        plastic.gates.generator.manual_seed(0)
        plastic.backward(lambda m=model: F.cross_entropy(m(x), y))
        found.append([*(g.gate.logits.grad for g in plastic.groups), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(found[0], found[1])
