"""Algebra of the estimators that needs no statistics: masks, shapes, stated biases, exact means over all pairs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npn.errors import ConfigurationError
from npn.functional import (
    antithetic_masks,
    arm,
    disarm,
    double_cv,
    exact_expectation,
    exact_gradient,
    keep_probability,
    logits_for,
    reinmax,
    rloo,
    straight_through,
)

F64 = torch.float64
PI = torch.tensor([0.05, 0.5, 0.95, 0.7], dtype=F64)


def loss_and_gradient(f, masks):
    masks = masks.clone().requires_grad_()
    losses = f(masks)
    (gradients,) = torch.autograd.grad(losses.sum(), masks)
    return losses.detach(), gradients


def log_odds_gradient(f, pi):
    """pi (1 - pi) D by enumeration."""
    return exact_gradient(f, torch.logit(pi), 1.0, "sigmoid", batched=True)


def mean_over_masks(estimate, pi):
    """Exact mean of a vector-valued estimate (M, n) over all masks z ~ Bernoulli(pi)."""
    return torch.stack([exact_expectation(lambda z, j=j: estimate(z)[:, j], pi, batched=True) for j in range(len(pi))])


def mean_over_pairs(estimate, pi):
    """Exact mean over all pairs of independent masks, as one enumeration over 2n gates."""
    n, both = len(pi), torch.cat([pi, pi])
    return torch.stack(
        [exact_expectation(lambda z, j=j: estimate(z[:, :n], z[:, n:])[:, j], both, batched=True) for j in range(n)]
    )


def curved(z):
    weight = torch.tensor([[1.0, -2.0], [0.5, 1.5], [-1.0, 1.0], [2.0, 0.3]], dtype=z.dtype)
    return torch.tanh(z @ weight).square().sum(-1) + z.prod(-1).exp()


# --- masks ----------------------------------------------------------------------------------------------------------


def test_antithetic_mask_is_the_threshold_at_one_minus_pi():
    generator = torch.Generator().manual_seed(0)
    pi = torch.rand(50, generator=generator)
    u = torch.rand(2000, 50, generator=generator)
    z, z_antithetic = antithetic_masks(pi, u)
    assert torch.equal(z.bool(), u < pi)
    assert torch.equal(z_antithetic.bool(), u > 1 - pi)
    assert z.dtype == z_antithetic.dtype == pi.dtype


def test_both_masks_have_mean_pi_whatever_the_function():
    """A threshold at g(-k phi) would give the antithetic mask another mean under the shifted sigmoid."""
    u = (torch.arange(1000, dtype=F64) + 0.5)[:, None] / 1000  # midpoints: means to 1e-3 by construction
    for function in ("sigmoid", "hard_sigmoid", "shifted_sigmoid"):
        phi = logits_for(PI, 7.0, function)
        pi = keep_probability(phi, 7.0, function)
        z, z_antithetic = antithetic_masks(pi, u.expand(-1, 4))
        torch.testing.assert_close(z.mean(0), PI, atol=2e-3, rtol=0)
        torch.testing.assert_close(z_antithetic.mean(0), PI, atol=2e-3, rtol=0)
        # together as rarely as two gates of that probability can be
        torch.testing.assert_close((z * z_antithetic).mean(0), (2 * PI - 1).clamp(min=0), atol=2e-3, rtol=0)
    naive = (u > keep_probability(-phi, 7.0, "shifted_sigmoid")).double().mean(0)
    assert (naive - PI).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_certain_gates_never_flip(dtype):
    u = torch.tensor([0.0, 2**-24, 0.5, 1 - 2**-24], dtype=dtype)  # both ends of what torch.rand returns
    for mask in antithetic_masks(torch.ones(4, dtype=dtype), u):
        assert mask.tolist() == [1, 1, 1, 1]
    for mask in antithetic_masks(torch.zeros(4, dtype=dtype), u):
        assert mask.tolist() == [0, 0, 0, 0]


# --- exact means of the pair estimators -----------------------------------------------------------------------------


@pytest.mark.parametrize("pi", [PI, torch.full((4,), 0.02, dtype=F64), torch.full((4,), 0.98, dtype=F64)])
def test_rloo_is_unbiased_exactly(pi):
    mean = mean_over_pairs(lambda z1, z2: rloo(curved(z1), curved(z2), z1, z2), pi)
    torch.testing.assert_close(mean, log_odds_gradient(curved, pi), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.7, torch.tensor(-0.4, dtype=F64)])
def test_double_cv_is_unbiased_exactly_for_every_alpha(alpha):
    def estimate(z1, z2):
        (f1, g1), (f2, g2) = loss_and_gradient(curved, z1), loss_and_gradient(curved, z2)
        return double_cv(f1, f2, z1, z2, g1, g2, PI, alpha)

    torch.testing.assert_close(mean_over_pairs(estimate, PI), log_odds_gradient(curved, PI), rtol=1e-9, atol=1e-12)


def test_double_cv_without_its_control_variate_is_rloo():
    z1, z2, g1, g2 = torch.rand(4, 3, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    torch.testing.assert_close(
        double_cv(z1.sum(1), z2.prod(1), z1, z2, g1, g2, PI, alpha=0.0), rloo(z1.sum(1), z2.prod(1), z1, z2)
    )


def test_both_draws_count_alike():
    z1, z2, g1, g2 = torch.rand(4, 3, 4, generator=torch.Generator().manual_seed(6), dtype=F64)
    f1, f2 = z1.prod(1), z2.sum(1)
    torch.testing.assert_close(rloo(f1, f2, z1, z2), rloo(f2, f1, z2, z1))
    torch.testing.assert_close(disarm(f1, f2, z1, z2, PI), disarm(f2, f1, z2, z1, PI))
    torch.testing.assert_close(double_cv(f1, f2, z1, z2, g1, g2, PI), double_cv(f2, f1, z2, z1, g2, g1, PI))


def test_double_cv_has_no_variance_on_a_linear_loss():
    weight = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=F64)
    z1, z2 = (torch.rand(2, 64, 4, generator=torch.Generator().manual_seed(2), dtype=F64) < PI).double()
    gradient = weight.expand_as(z1)
    estimate = double_cv(z1 @ weight, z2 @ weight, z1, z2, gradient, gradient, PI)
    torch.testing.assert_close(estimate, (PI * (1 - PI) * weight).expand_as(z1))


def test_alpha_of_double_cv_learns():
    alpha = torch.tensor(-1.0, requires_grad=True)
    z1, z2 = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 1.0, 0.0])
    losses = torch.tensor(2.0, requires_grad=True), torch.tensor(0.5)
    double_cv(*losses, z1, z2, torch.ones(4), torch.ones(4), PI.float(), alpha).square().sum().backward()
    assert alpha.grad != 0 and losses[0].grad is None


# --- ARM and DisARM on a grid of u, which integrates ARM's linear pieces exactly ------------------------------------


def grid(pi, cells=100):
    """All pairs of cell midpoints; pi are multiples of 1 / cells, so no cell is cut by a threshold."""
    u = (torch.arange(cells, dtype=F64) + 0.5) / cells
    u = torch.cartesian_prod(u, u)
    return u, *antithetic_masks(pi, u)


@pytest.mark.parametrize("pi", [[0.05, 0.5], [0.3, 0.8], [0.95, 0.99]])
def test_arm_and_disarm_are_unbiased_and_disarm_varies_less(pi):
    pi = torch.tensor(pi, dtype=F64)

    def f(z):
        return torch.exp(z[:, 0] - 2 * z[:, 1]) + 3 * z[:, 0]

    u, z, z_antithetic = grid(pi)
    a = arm(f(z), f(z_antithetic), u)
    d = disarm(f(z), f(z_antithetic), z, z_antithetic, pi)
    exact = log_odds_gradient(f, pi)
    torch.testing.assert_close(a.mean(0), exact, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(d.mean(0), exact, rtol=1e-9, atol=1e-12)
    assert (d.var(0) <= a.var(0)).all() and d.var(0).sum() < 0.95 * a.var(0).sum()


def test_disarm_is_arm_averaged_over_the_draws_that_give_the_same_masks():
    pi = torch.tensor([0.3, 0.8], dtype=F64)
    u, z, z_antithetic = grid(pi)
    losses = torch.rand(16, generator=torch.Generator().manual_seed(3), dtype=F64)
    code = (torch.cat([z, z_antithetic], 1) @ torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=F64)).long()
    mirrored = (torch.cat([z_antithetic, z], 1) @ torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=F64)).long()
    a, d = arm(losses[code], losses[mirrored], u), disarm(losses[code], losses[mirrored], z, z_antithetic, pi)
    assert len(code.unique()) == 9
    for value in code.unique():
        torch.testing.assert_close(a[code == value].mean(0), d[code == value].mean(0))


# --- the two biased ones --------------------------------------------------------------------------------------------

HESSIAN = torch.tensor(
    [[2.0, 1.0, -3.0, 0.5], [1.0, -4.0, 0.0, 1.0], [-3.0, 0.0, 6.0, 2.0], [0.5, 1.0, 2.0, 1.0]], dtype=F64
)


def quadratic(z):
    return 0.5 * ((z @ HESSIAN) * z).sum(-1) + z @ torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=z.dtype)


@given(st.lists(st.floats(0.001, 0.999), min_size=4, max_size=4))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_straight_through_has_the_stated_bias_on_a_quadratic(pi):
    pi = torch.tensor(pi, dtype=F64)
    mean = mean_over_masks(lambda z: straight_through(loss_and_gradient(quadratic, z)[1], pi), pi)
    bias = mean - log_odds_gradient(quadratic, pi)
    torch.testing.assert_close(bias, pi * (1 - pi) * (pi - 0.5) * HESSIAN.diagonal(), rtol=1e-7, atol=1e-9)
    assert (bias.abs() <= 0.0482 * HESSIAN.diagonal().abs()).all()


def test_straight_through_is_biased():
    pi = torch.full((4,), 0.5 + 1 / math.sqrt(12), dtype=F64)  # where pi (1 - pi) (pi - 1/2) is largest
    mean = mean_over_masks(lambda z: straight_through(loss_and_gradient(quadratic, z)[1], pi), pi)
    bias = mean - log_odds_gradient(quadratic, pi)
    torch.testing.assert_close(bias, HESSIAN.diagonal() / (12 * math.sqrt(3)))


@given(st.lists(st.floats(0.001, 0.999), min_size=4, max_size=4))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_reinmax_is_exact_in_expectation_where_f_is_quadratic_in_each_gate(pi):
    def f(z):  # of total degree 8 and worse: only each gate on its own is at most quadratic
        return z.square().prod(-1) + quadratic(z) + torch.exp(z[:, 1]) * z[:, 0].square() - math.e * z[:, 1] * z[:, 0]

    def g(z):  # the same, without the exponential of gate 1
        return z.square().prod(-1) + quadratic(z) + (1 + z[:, 1]) ** 2 * z[:, 0] ** 2 * (z[:, 2] - z[:, 3])

    pi = torch.tensor(pi, dtype=F64)
    mean = mean_over_masks(lambda z: reinmax(loss_and_gradient(g, z)[1], z, pi), pi)
    torch.testing.assert_close(mean, log_odds_gradient(g, pi), rtol=1e-7, atol=1e-9)
    # f is quadratic in gates 0, 2 and 3 only: exact there, however gate 1 enters.
    mean = mean_over_masks(lambda z: reinmax(loss_and_gradient(f, z)[1], z, pi), pi)
    error = mean - log_odds_gradient(f, pi)
    torch.testing.assert_close(error[[0, 2, 3]], torch.zeros(3, dtype=F64), rtol=0, atol=1e-9)


def test_reinmax_has_the_stated_bias_on_a_cubic():
    def cubic(z):
        return 5 * z[:, 0] ** 3 + quadratic(z)

    mean = mean_over_masks(lambda z: reinmax(loss_and_gradient(cubic, z)[1], z, PI), PI)
    bias = mean - log_odds_gradient(cubic, PI)
    expected = torch.tensor([0.05 * 0.95 / 12 * 30, 0, 0, 0], dtype=F64)
    torch.testing.assert_close(bias, expected, rtol=1e-7, atol=1e-9)


def test_reinmax_is_the_two_class_formula_of_the_paper():
    z = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]], dtype=F64)
    q = (PI + z) / 2
    torch.testing.assert_close(reinmax(torch.ones_like(z), z, PI), 2 * q * (1 - q) - 0.5 * PI * (1 - PI))


# --- shapes, dtypes, graphs -----------------------------------------------------------------------------------------


def calls(loss, masks, uniform, gradient, probability):
    return {
        "arm": lambda: arm(loss, loss + 1, uniform),
        "disarm": lambda: disarm(loss, loss + 1, masks, 1 - masks, probability),
        "rloo": lambda: rloo(loss, loss + 1, masks, 1 - masks),
        "double_cv": lambda: double_cv(loss, loss + 1, masks, 1 - masks, gradient, 2 * gradient, probability),
        "straight_through": lambda: straight_through(gradient, probability),
        "reinmax": lambda: reinmax(gradient, masks, probability),
    }


NAMES = ["arm", "disarm", "rloo", "double_cv", "straight_through", "reinmax"]


def draws(*batch, dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    pi = torch.tensor([0.1, 0.5, 0.9], dtype=dtype)
    uniform = torch.rand((*batch, 3), generator=generator, dtype=dtype)
    gradient = torch.randn((*batch, 3), generator=generator, dtype=dtype)
    return torch.rand(batch, generator=generator, dtype=dtype), (uniform < pi).to(dtype), uniform, gradient, pi


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_each_example_is_estimated_from_its_own_loss_and_mask(name, dtype):
    loss, masks, uniform, gradient, pi = draws(5, dtype=dtype)
    together = calls(loss, masks, uniform, gradient, pi)[name]()
    assert together.shape == (5, 3) and together.dtype == dtype
    for b in range(5):
        alone = calls(loss[b], masks[b], uniform[b], gradient[b], pi)[name]()
        assert alone.shape == (3,)
        torch.testing.assert_close(together[b], alone)


@pytest.mark.parametrize("name", NAMES)
def test_the_estimate_is_a_value(name):
    loss, masks, uniform, gradient, pi = draws(5)
    assert not calls(loss.requires_grad_(), masks, uniform, gradient.requires_grad_(), pi)[name]().requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_values_are_never_read_on_the_host(name):
    meta = [tensor.to("meta") for tensor in draws(5)]  # reading a value of a meta tensor raises
    assert calls(*meta)[name]().shape == (5, 3)


@pytest.mark.parametrize("name", ["arm", "disarm", "rloo", "double_cv"])
@pytest.mark.parametrize(("losses", "masks"), [((), (5,)), ((5,), ()), ((3,), ()), ((1,), (5,))])
def test_one_loss_per_mask(name, losses, masks):
    """A batch-mean loss under per-example masks would shrink the gradient by the batch size; it is refused."""
    loss, _, _, _, _ = draws(*losses)
    _, mask, uniform, gradient, pi = draws(*masks)
    with pytest.raises(ConfigurationError, match=r"per-example masks need per-example losses \(reduction='none'\)"):
        calls(loss, mask, uniform, gradient, pi)[name]()
