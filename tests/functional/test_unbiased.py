"""The estimators' means against enumeration: seeded z-tests, their threshold corrected for how many there are."""

from statistics import NormalDist

import pytest
import torch

from npn.functional import (
    antithetic_masks,
    arm,
    chain_factor,
    disarm,
    double_cv,
    exact_gradient,
    keep_probability,
    logits_for,
    rloo,
)

F64 = torch.float64
K = 7.0
DRAWS = 25_000
FUNCTIONS = ["sigmoid", "hard_sigmoid", "shifted_sigmoid"]
ESTIMATORS = ["arm", "disarm", "rloo", "double_cv"]


def network(z):
    """Loss of a small random network on ten gates."""
    generator = torch.Generator().manual_seed(11)
    hidden = 0.3 * torch.randn(10, 8, generator=generator, dtype=F64)
    out = torch.randn(8, generator=generator, dtype=F64)
    return (torch.tanh(z @ hidden + 0.3) @ out).square()


def interaction(z):
    """Every gate acts through every other: a product of all and a wave over their sum."""
    weight = torch.tensor([1.0, -0.7, 0.5, 1.3, -0.4, 0.9], dtype=F64)
    return (1 - 0.5 * weight * z).prod(-1) + torch.cos(z @ weight)


def quadratic(z):
    coupling = torch.tensor([[1.0, -2.0, 0.5], [0.0, 2.0, 1.0], [1.5, 0.0, -3.0]], dtype=F64)
    return ((z @ coupling) * z).sum(-1) + z.sum(-1)


LOSSES = {"network": (network, 10), "interaction": (interaction, 6), "quadratic": (quadratic, 3)}
PROBABILITIES = {
    "near 0": lambda n: torch.full((n,), 0.03, dtype=F64),
    "half": lambda n: torch.full((n,), 0.5, dtype=F64),
    "near 1": lambda n: torch.full((n,), 0.97, dtype=F64),
    "mixed": lambda n: torch.linspace(0.03, 0.97, n, dtype=F64),
}
TESTS = len(FUNCTIONS) * len(ESTIMATORS) * len(PROBABILITIES) * sum(n for _, n in LOSSES.values())
# Two-sided, 1e-3 over all tests together (912 of them: 4.9 standard errors).
THRESHOLD = -NormalDist().inv_cdf(1e-3 / (2 * TESTS))


def value_and_gradient(f, masks):
    masks = masks.clone().requires_grad_()
    values = f(masks)
    (gradients,) = torch.autograd.grad(values.sum(), masks)
    return values.detach(), gradients


def sample(estimator, f, pi, draws=DRAWS, seed=0):
    """`draws` independent log-odds estimates, (draws, n)."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(draws, len(pi), generator=generator, dtype=F64)
    z, z_antithetic = antithetic_masks(pi, u)
    if estimator == "arm":
        return arm(f(z), f(z_antithetic), u)
    if estimator == "disarm":
        return disarm(f(z), f(z_antithetic), z, z_antithetic, pi)
    z_2 = (torch.rand(draws, len(pi), generator=generator, dtype=F64) < pi).double()
    if estimator == "rloo":
        return rloo(f(z), f(z_2), z, z_2)
    (f_1, g_1), (f_2, g_2) = value_and_gradient(f, z), value_and_gradient(f, z_2)
    return double_cv(f_1, f_2, z, z_2, g_1, g_2, pi)


def z_scores(estimates, exact):
    """Distance of the mean from the exact value in standard errors; infinite where it is off without any spread."""
    off = estimates.mean(0) - exact
    off = torch.where(off.abs() < 1e-12, 0.0, off)
    return torch.where(off == 0, 0.0, off / (estimates.std(0) / len(estimates) ** 0.5)).abs()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_mean_is_the_gradient(estimator, loss, function):
    f, n = LOSSES[loss]
    for seed, make in enumerate(PROBABILITIES.values()):
        phi = logits_for(make(n), K, function)
        pi = keep_probability(phi, K, function)
        estimates = sample(estimator, f, pi, seed=seed) * chain_factor(phi, K, function)
        exact = exact_gradient(f, phi, K, function, batched=True)
        assert exact.abs().max() > 1e-3  # there is something to find
        assert z_scores(estimates, exact).max() < THRESHOLD


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_clipped_gates_get_exactly_nothing_and_do_not_disturb_the_others(estimator):
    phi = torch.tensor([-0.6, 0.1, 0.6, -0.2, 2.0, 0.3], dtype=F64)
    pi = keep_probability(phi, K, "hard_sigmoid")
    assert pi[[0, 2, 4]].tolist() == [0, 1, 1]
    estimates = sample(estimator, interaction, pi) * chain_factor(phi, K, "hard_sigmoid")
    assert (estimates[:, [0, 2, 4]] == 0).all()
    exact = exact_gradient(interaction, phi, K, "hard_sigmoid", batched=True)
    assert exact[[1, 3, 5]].abs().min() > 1e-3
    assert z_scores(estimates, exact).max() < THRESHOLD


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_k_as_the_factor_is_wrong_for_the_hard_sigmoid(estimator):
    """The factor is 1 / (pi (1 - pi)) here: 4 to 34, against k = 7 for all."""
    pi = PROBABILITIES["mixed"](10)
    phi = logits_for(pi, K, "hard_sigmoid")
    estimates = sample(estimator, network, pi)
    exact = exact_gradient(network, phi, K, "hard_sigmoid", batched=True)
    assert z_scores(estimates * K, exact).max() > 2 * THRESHOLD
    assert z_scores(estimates * chain_factor(phi, K, "hard_sigmoid"), exact).max() < THRESHOLD


def test_the_antithetic_threshold_at_g_of_minus_phi_is_wrong_for_the_shifted_sigmoid():
    phi = logits_for(PROBABILITIES["mixed"](6), K, "shifted_sigmoid")
    pi = keep_probability(phi, K, "shifted_sigmoid")
    u = torch.rand(DRAWS, 6, generator=torch.Generator().manual_seed(5), dtype=F64)
    naive = (u > keep_probability(-phi, K, "shifted_sigmoid")).double()
    estimates = K * arm(interaction((u < pi).double()), interaction(naive), u)
    exact = exact_gradient(interaction, phi, K, "shifted_sigmoid", batched=True)
    assert z_scores(estimates, exact).max() > 2 * THRESHOLD


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_error_of_a_tenth_would_be_seen(estimator, loss):
    """Power of the z-test: so many draws tell an estimator from one that is ten per cent off."""
    f, n = LOSSES[loss]
    phi = logits_for(PROBABILITIES["mixed"](n), K)
    estimates = sample(estimator, f, keep_probability(phi, K)) * K
    exact = exact_gradient(f, phi, K, batched=True)
    assert z_scores(1.1 * estimates, exact).max() > THRESHOLD
    assert z_scores(0.9 * estimates, exact).max() > THRESHOLD


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("probability", PROBABILITIES)
def test_disarm_never_varies_more_than_arm(loss, probability):
    f, n = LOSSES[loss]
    pi = PROBABILITIES[probability](n)
    variance = {name: sample(name, f, pi).var(0) for name in ("arm", "disarm")}
    assert (variance["disarm"] <= variance["arm"] * 1.01).all()  # each gate; the slack is for sampling
    assert variance["disarm"].sum() < variance["arm"].sum()
