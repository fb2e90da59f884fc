"""`plastic.backward` against exact enumeration over all masks of the very same model."""

import statistics

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn

from .stepping import (
    FUNCTIONS,
    PROBABILITY,
    UNBIASED,
    K,
    clear,
    exact_mean,
    expected,
    logit_gradient,
    set_probability,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("traces_are_shared")


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("estimator", UNBIASED)
def test_mean_over_all_draws_is_the_exact_gradient(tiny, four, estimator, function):
    model, plastic = tiny["four"].attach(estimator=estimator, function=function, penalty=npn.Penalty(weight=0.0))
    x, y = tiny["four"].data()
    plastic.k = K
    set_probability(plastic, PROBABILITY[function])
    if function == "hard_sigmoid":
        with torch.no_grad():
            plastic.groups[1].gate.logits[1] = 9.0
    logits, weights = exact_mean(plastic, model, lambda: F.cross_entropy(model(x), y))
    true, grads = expected(four, plastic)
    torch.testing.assert_close(logits, true, rtol=1e-4, atol=1e-6)
    assert true.abs().max() > 1e-3
    for name, grad in grads.items():
        torch.testing.assert_close(weights[name].float(), grad.float(), rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("estimator", ["reinmax", "straight_through"])
def test_one_pass_estimators_have_their_documented_mean(tiny, four, estimator, function):
    """ReinMax: the trapezoid rule for D; straight-through: the mean slope. Weight gradients are exact."""
    model, plastic = tiny["four"].attach(estimator=estimator, function=function, penalty=npn.Penalty(weight=0.0))
    x, y = tiny["four"].data()
    plastic.k = K
    set_probability(plastic, PROBABILITY["sigmoid"])
    logits, weights = exact_mean(plastic, model, lambda: F.cross_entropy(model(x), y))
    true, grads = expected(four, plastic)
    with torch.no_grad():
        pi = plastic.gates.keep_probability().double()
        slope = npn.functional.keep_probability_derivative(plastic.gates.logits(), K, plastic.function).double()
    p, masks = weights_of(four.masks, pi)[:, None], torch.stack(four.masks)
    if estimator == "straight_through":
        wanted = slope * (p * four.slopes).sum(0)
    else:
        half = torch.where(masks > 0, 1 / pi, 1 / (1 - pi)) / 2
        wanted = slope * (p * half * four.slopes).sum(0)
        assert (logits - true).norm() < 0.2 * true.norm(), "ReinMax strays from the exact gradient"
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-6)
    assert torch.nn.functional.cosine_similarity(logits, true, dim=0) > 0.8
    for name, grad in grads.items():
        torch.testing.assert_close(weights[name].float(), grad.float(), rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_double_cv_uses_loss_and_slope_in_the_same_units(tiny, four, scale):
    """One draw, value for value: a control variate with the wrong weight would show in the variance only."""
    model, plastic = tiny["four"].attach(estimator="double_cv", penalty=npn.Penalty(weight=0.0))
    x, y = tiny["four"].data()
    plastic.k = K
    set_probability(plastic, PROBABILITY["sigmoid"])
    pi = plastic.gates.keep_probability().detach()
    draws = [torch.tensor([0.1, 0.9, 0.2, 0.5]), torch.tensor([0.8, 0.1, 0.7, 0.95])]
    masks = [(u < pi).float() for u in draws]
    at = [next(i for i, m in enumerate(four.masks) if torch.equal(m, mask)) for mask in masks]
    losses, slopes = ([scale * values[i] for i in at] for values in (four.losses, four.slopes))
    wanted = K * npn.functional.double_cv(*losses, *masks, *slopes, pi)
    plastic.gates.draw = lambda *b: draws.pop(0)
    plastic.backward(lambda: F.cross_entropy(model(x), y), scale=scale)
    torch.testing.assert_close(logit_gradient(plastic).float(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("estimator", UNBIASED)
def test_mean_over_real_draws_conv_with_batch_norm(tiny, tools, estimator):
    """The same with the generator's own draws: a z-test over all gates and weights, corrected for their number."""
    spec = tiny["conv"]
    model, plastic = spec.attach(estimator=estimator, penalty=npn.Penalty(weight=0.0))
    exact = tools.enumerate_model(spec, model, plastic)
    x, y = spec.data()
    plastic.k = K
    set_probability(plastic, [0.3, 0.8, 0.55, 0.7, 0.4, 0.6, 0.5])
    plastic.gates.generator.manual_seed(7)
    gates, weights = [], []
    for _ in range(250):
        clear(plastic)
        plastic.backward(lambda: F.cross_entropy(model(x), y))
        gates.append(logit_gradient(plastic))
        weights.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]).double())
    true, grads = expected(exact, plastic)
    wanted = torch.cat([true, *(grads[n].reshape(-1).double() for n, _ in model.named_parameters())])
    drawn = torch.cat([torch.stack(gates), torch.stack(weights)], dim=1)
    error = drawn.std(0) / len(drawn) ** 0.5
    z = (drawn.mean(0) - wanted).abs() / (error + 1e-7)
    limit = statistics.NormalDist().inv_cdf(1 - 1e-3 / (2 * len(z)))
    assert z.max() < limit


@pytest.mark.parametrize("estimator", npn.step.ESTIMATORS)
def test_a_float64_model_has_float32_gates(estimator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    plastic = npn.attach(model, x, estimator=estimator)
    plastic.k = 1.0
    plastic.backward(lambda: model(x).square().mean())
    (logits,) = plastic.logits()
    assert logits.grad.dtype == logits.dtype == torch.float32 and logits.grad.any()
