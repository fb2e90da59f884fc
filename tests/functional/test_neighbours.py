"""The formulae of neighbouring methods against closed-form values, quadrature, Monte Carlo and invariants."""

import itertools
import math

import pytest
import torch

from npn import functional as nf
from npn.errors import ConfigurationError

D = torch.float64


def uniform(n, seed=0):
    """Midpoints of n equal intervals: integrates a smooth function of u without sampling error."""
    return (torch.arange(n, dtype=D) + 0.5) / n


HARD_CONCRETE = [  # log alpha, P(z = 0), P(z = 1), E[z], gate for evaluation
    (0.0, 0.168178, 0.168178, 0.5, 0.5),
    (1.0, 0.069229, 0.354665, 0.707054, 0.777270),
    (-1.0, 0.354665, 0.069229, 0.292946, 0.222730),
    (-2.3979, 0.689825, 0.018048, 0.102718, 0.0),
    (-3.0, 0.802406, 0.009966, 0.060419, 0.0),
]


@pytest.mark.parametrize("log_alpha, zero, one, mean, test", HARD_CONCRETE)
def test_hard_concrete_values(log_alpha, zero, one, mean, test):
    at = torch.tensor([log_alpha], dtype=D)
    z = nf.hard_concrete_sample(at, uniform(1_000_000)[:, None])
    for found, expected in (
        (nf.hard_concrete_cdf(at, 0.0), zero),
        (1 - nf.hard_concrete_cdf(at, 1.0), one),
        (1 - nf.hard_concrete_active(at), zero),
        (z.mean(), mean),
        ((z == 0).double().mean(), zero),
        ((z == 1).double().mean(), one),
        (nf.hard_concrete_test_gate(at), test),
    ):
        assert float(found) == pytest.approx(expected, abs=1e-5)


def test_hard_concrete_symmetry_derivative_and_clipping():
    at = torch.tensor([-1.3, 0.2, 2.0], dtype=D, requires_grad=True)
    u = torch.tensor([0.03, 0.4, 0.99], dtype=D)
    torch.testing.assert_close(nf.hard_concrete_sample(at, u), 1 - nf.hard_concrete_sample(-at, 1 - u))
    active = nf.hard_concrete_active(at)
    (slope,) = torch.autograd.grad(active.sum(), at)
    torch.testing.assert_close(slope, active * (1 - active))
    z = nf.hard_concrete_sample(at, u)
    (slope,) = torch.autograd.grad(z.sum(), at)
    assert z.tolist()[0] == 0 and z.tolist()[2] == 1 and slope[0] == slope[2] == 0 < slope[1]
    edge = -math.log(11)
    assert nf.hard_concrete_test_gate(torch.tensor([edge - 1e-6, edge + 1e-4], dtype=D)).gt(0).tolist() == [False, True]
    with pytest.raises(
        ConfigurationError, match=r"^x must lie in \(-0.1, 1.1\), the support of the stretched gate, got 1.5$"
    ):
        nf.hard_concrete_cdf(at, 1.5)


KUMARASWAMY = [  # a, b, alpha, KL, E[pi]
    (0.31326, 0.99998, 1e-4, 7.049953, 0.238541),
    (2.12693, 0.99998, 1e-4, 8.965076, 0.680200),
    (0.5, 2.0, 0.01, 2.635170, 0.166667),
    (2.0, 3.0, 1.0, 0.208426, 0.457143),
    (1.0, 1.0, 1.0, 0.0, 0.5),
]


@pytest.mark.parametrize("a, b, alpha, kl, mean", KUMARASWAMY)
def test_kumaraswamy_values(a, b, alpha, kl, mean):
    at = torch.tensor([a], dtype=D), torch.tensor([b], dtype=D)
    assert float(nf.kumaraswamy_kl(*at, alpha)) == pytest.approx(kl, abs=1e-5)
    assert float(nf.kumaraswamy_mean(*at)) == pytest.approx(mean, abs=1e-5)
    assert float(nf.kumaraswamy_sample(*at, uniform(200_000)[:, None]).mean()) == pytest.approx(mean, abs=1e-4)


def test_kumaraswamy_divergence_is_exact():
    a, b, alpha = 0.7, 1.6, 0.2
    u = uniform(2_000_000)
    log_x = torch.log(-torch.expm1(u.log() / b)) / a
    log_q = math.log(a * b) + (a - 1) * log_x + (b - 1) * u.log() / b  # 1 - x^a = u^(1/b)
    sampled = (log_q - math.log(alpha) - (alpha - 1) * log_x).mean()
    exact = nf.kumaraswamy_kl(torch.tensor([a], dtype=D), torch.tensor([b], dtype=D), alpha)
    assert float(sampled) == pytest.approx(float(exact), abs=2e-5)
    rising = nf.kumaraswamy_kl(torch.tensor([0.1, 0.5, 2.0], dtype=D), torch.ones(3, dtype=D), 1e-4)
    assert bool((rising.diff() > 0).all())


def test_relaxed_bernoulli_is_open_with_its_probability():
    pi = torch.tensor([0.1, 0.5, 0.85], dtype=D)
    z = nf.relaxed_bernoulli(pi, uniform(100_001)[:, None], 0.1)
    torch.testing.assert_close((z > 0.5).double().mean(0), pi, atol=1e-4, rtol=0)


def test_gaussian_divergence_by_monte_carlo():
    m, s, rho = torch.tensor(0.8, dtype=D), torch.tensor(0.6, dtype=D), math.sqrt(5)
    e = math.sqrt(2) * torch.erfinv(2 * uniform(500_000) - 1)
    x = m + s * e
    sampled = (-s.log() - e.square() / 2 + math.log(rho) + x.square() / (2 * rho**2)).mean()
    assert float(nf.gaussian_kl(m, s, rho)) == pytest.approx(float(sampled), abs=1e-4)


def test_the_bottleneck_penalty_is_the_least_divergence_over_prior_variances():
    m, log_variance = torch.tensor(0.7, dtype=D), torch.tensor(-1.2, dtype=D)
    e = math.sqrt(2) * torch.erfinv(2 * uniform(500_000) - 1)
    z = nf.bottleneck_sample(m, log_variance, e)

    def divergence(t):
        return float((-log_variance / 2 - e.square() / 2 + math.log(t) / 2 + z.square() / (2 * t)).mean())

    best = float(m.square() + log_variance.exp())
    penalty = float(nf.bottleneck_penalty(m, log_variance))
    assert penalty == pytest.approx(divergence(best), abs=1e-4)
    assert penalty < divergence(0.9 * best) and penalty < divergence(1.1 * best)
    assert float(nf.bottleneck_noise(m, log_variance)) == pytest.approx(-1.2 - 2 * math.log(0.7))
    at_zero = torch.zeros(1, requires_grad=True)
    nf.bottleneck_penalty(at_zero, torch.zeros(1)).backward()
    assert at_zero.grad == 0


@pytest.mark.parametrize("p", [2.0, 1.5, 1.2, 1.07])
def test_dual_steps_lead_to_the_solution_of_a_linear_loss(p):
    torch.manual_seed(0)
    c, v, q = torch.randn(7, dtype=D), torch.randn(7, dtype=D), p / (p - 1)
    v, losses = v / torch.linalg.vector_norm(v, q), []
    for _ in range(400):
        v = nf.dual_step(v, c, 0.1, p)
        w = nf.primal_of(v, p)
        assert float(torch.linalg.vector_norm(w, p)) == pytest.approx(1, abs=1e-12)
        assert float(w @ v) == pytest.approx(1, abs=1e-12)
        torch.testing.assert_close(nf.dual_of(w, p), v)
        losses.append(float(c @ w))
    dual_norm = float(torch.linalg.vector_norm(c, q))
    solution = -c.sign() * c.abs() ** (q - 1) / dual_norm ** (q - 1)
    torch.testing.assert_close(w, solution, atol=1e-12, rtol=0)
    assert losses[-1] == pytest.approx(-dual_norm, abs=1e-12)
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(losses))


def test_a_dual_step_ignores_the_length_of_its_direction_and_survives_zero():
    v = torch.tensor([1.0, 0.0])
    d = torch.tensor([0.3, -0.2])
    torch.testing.assert_close(nf.dual_step(v, d, 0.3, 1.1), nf.dual_step(v, 1e6 * d, 0.3, 1.1))
    torch.testing.assert_close(nf.dual_step(v, 0 * d, 0.3, 1.1), v)


@pytest.mark.parametrize(
    "k, p, expected, sampled", [(1, 2.0, 0.2959, 0.2945), (1, 1.5, 0.5977, 0.5963), (3, 1.3, 0.6419, 0.6407)]
)
def test_expected_sparsity(k, p, expected, sampled):
    assert nf.expected_hoyer(p, 10_000, k) == pytest.approx(expected, abs=1e-4)
    torch.manual_seed(1)
    v = torch.distributions.Gamma(torch.tensor(float(k), dtype=D), 1.0).sample((200, 10_000))
    assert float(nf.hoyer(nf.primal_of(v, p)).mean()) == pytest.approx(sampled, abs=2e-3)


def test_hoyer_refuses_single_entries():
    with pytest.raises(ConfigurationError, match=r"^Hoyer's sparsity needs vectors of two entries or more, got 1$"):
        nf.hoyer(torch.ones(3, 1))
    with pytest.raises(ConfigurationError, match=r"^p must lie in \[1.05, 2\], got 1.0; nearer to 1 is sparser, but"):
        nf.expected_hoyer(1.0, 10)


def test_targeted_entries_by_hand():
    w = torch.tensor([[0.5, -0.1], [0.2, 0.9], [-0.3, 0.05], [0.4, -0.6]])  # (in, out)
    found = nf.targeted(w.abs().T, 0.5).T
    assert found.tolist() == [[False, True], [True, False], [True, True], [False, False]]
    for share, count in ((0.0, 0), (0.3, 3), (0.7, 7), (0.99, 9), (1.0, 10)):
        assert int(nf.targeted(torch.rand(10), share).sum()) == count
    assert nf.targeted(torch.ones(4), 0.5).tolist() == [True, True, False, False]  # ties: exactly half


def test_targeted_entries_are_the_first_of_a_stable_sort_whatever_the_ties():
    torch.manual_seed(0)
    for count in (0, 1, 13, 40):
        values = torch.randint(5, (30, 40)) / 4.0
        order = values.argsort(dim=-1, stable=True)[:, :count]
        assert torch.equal(nf.targeted(values, count / 40), torch.zeros(30, 40).bool().scatter(-1, order, True))


def test_replacement_keeps_the_number_of_weights():
    torch.manual_seed(0)
    mask = torch.rand(20, 30) < 0.2
    w, g = torch.randn(20, 30) * mask, torch.randn(20, 30)
    new, grown = nf.replaced(mask, w.abs(), g.abs(), 0.3)
    count = int(0.3 * int(mask.sum()))
    assert new.sum() == mask.sum() and grown.sum() == count and bool((new & ~grown <= mask).all())
    dropped = mask & ~(new & ~grown)
    assert w[dropped].abs().max() <= w[mask & ~dropped].abs().min()
    candidates = ~mask | dropped
    assert g[grown].abs().min() >= g[candidates & ~grown].abs().max()
    assert torch.equal(nf.replaced(mask, w.abs(), g.abs(), 0.0)[0], mask)
    full = torch.ones(3, 3, dtype=torch.bool)
    assert torch.equal(nf.replaced(full, torch.rand(3, 3), torch.rand(3, 3), 0.5)[0], full)


def test_densities_of_layers():
    shapes = {"conv": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc": (500, 800), "out": (10, 500)}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    found = nf.layer_densities(shapes, 0.05)
    assert sum(found[n] * sizes[n] for n in shapes) == pytest.approx(0.05 * sum(sizes.values()))
    assert max(found.values()) <= 1 and found["out"] == 1.0
    scale = {n: sum(shapes[n]) / sizes[n] for n in shapes}
    assert found["conv2"] / found["fc"] == pytest.approx(scale["conv2"] / scale["fc"])
    assert nf.layer_densities(shapes, 1.0) == pytest.approx(dict.fromkeys(shapes, 1.0))
    assert nf.layer_densities(shapes, 0.3, "uniform") == dict.fromkeys(shapes, 0.3)
    with pytest.raises(ConfigurationError, match=r'^distribution must be "erk" or "uniform", got \'er\'$'):
        nf.layer_densities(shapes, 0.1, "er")
    with pytest.raises(ConfigurationError, match=r"^density must lie in \(0, 1\], got 0$"):
        nf.layer_densities(shapes, 0)


def test_the_replaced_share_falls_along_a_cosine():
    assert [nf.cosine_share(0.4, t) for t in (0, 0.5, 1, 3)] == pytest.approx([0.4, 0.2, 0.0, 0.0])


def test_what_lies_outside_the_range_is_refused():
    w = torch.tensor([0.5, 1.0])
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigurationError, match=r"^share must lie in \[0, 1\], got "):
            nf.targeted(w, share)
    for p in (1.0, 3.0):
        for call in (nf.dual_of, nf.primal_of):
            with pytest.raises(ConfigurationError, match=r"^p must lie in \[1.05, 2\], got "):
                call(w, p)
        with pytest.raises(ConfigurationError, match=r"^p must lie in \[1.05, 2\], got "):
            nf.dual_step(w, w, 0.1, p)
    with pytest.raises(ConfigurationError, match=r"^alpha must be > 0, got 0.0$"):
        nf.kumaraswamy_kl(w, w, 0.0)
