import itertools
import math

import pytest
import torch

from npn.errors import ConfigurationError
from npn.functional import exact_expectation, exact_gradient, keep_probability, logits_for

F64 = torch.float64
FUNCTIONS = ["sigmoid", "hard_sigmoid", "shifted_sigmoid"]
PI = torch.tensor([0.1, 0.5, 0.85, 0.97], dtype=F64)


def f(z):
    """Not symmetric in the gates, so a mix-up of their order shows."""
    powers = torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=z.dtype)
    return torch.sin((z * powers).sum(-1)) + z[..., 0] * z[..., 3]


def by_hand(pi):
    total = 0.0
    for mask in itertools.product((0.0, 1.0), repeat=len(pi)):
        chance = math.prod(p if z else 1 - p for p, z in zip(pi, mask, strict=True))
        total += chance * f(torch.tensor(mask, dtype=F64)).item()
    return total


@pytest.mark.parametrize("batched", [False, True])
def test_expectation_is_the_sum_over_masks(batched):
    value = exact_expectation(f, PI, batched=batched)
    assert value.shape == () and value.dtype == F64
    assert value.item() == pytest.approx(by_hand(PI.tolist()), rel=1e-12)


def test_expectation_of_a_certain_mask_is_its_value():
    z = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=F64)
    assert exact_expectation(f, z).item() == pytest.approx(f(z).item())


def test_masks_come_in_the_dtype_of_the_probability():
    seen = []
    exact_expectation(lambda z: seen.append(z) or z.sum(), torch.tensor([0.5, 0.5]))
    assert [z.tolist() for z in seen] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert all(z.dtype == torch.float32 for z in seen)


def test_expectation_is_differentiable_in_the_probability():
    pi = PI.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: exact_expectation(f, p, batched=True), pi)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("batched", [False, True])
def test_gradient_is_the_slope_of_the_expectation(function, batched):
    phi = logits_for(PI, 3.0, function)
    gradient = exact_gradient(f, phi, 3.0, function, batched=batched)
    for j in range(4):
        up, down = phi.clone(), phi.clone()
        up[j] += 1e-5
        down[j] -= 1e-5
        pi_up, pi_down = keep_probability(up, 3.0, function), keep_probability(down, 3.0, function)
        slope = (by_hand(pi_up.tolist()) - by_hand(pi_down.tolist())) / 2e-5
        assert gradient[j].item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_gradient_is_slope_times_difference_also_for_certain_neighbours():
    phi = torch.tensor([-2.0, 0.3, 2.0], dtype=F64)  # hard sigmoid: 0, inside, 1
    pi = [0.0, 0.3 + 0.5, 1.0]
    assert keep_probability(phi, 7.0, "hard_sigmoid").tolist() == pytest.approx(pi)

    def g(z):
        return (1 + z[0]) * (2 + z[1] ** 2) * (3 + 5 * z[2])

    gradient = exact_gradient(g, phi, 7.0, "hard_sigmoid")
    assert gradient.tolist() == pytest.approx([0.0, 1 * 8, 0.0])  # slope 7 / 7; D_1 = (1 + 0) * 1 * (3 + 5)


@pytest.mark.parametrize("k", [0.0, math.inf])
def test_no_gradient_at_the_ends_of_k(k):
    assert exact_gradient(f, torch.zeros(4), k).tolist() == [0.0] * 4


def test_gradient_works_without_and_inside_a_graph():
    phi = torch.zeros(4, dtype=F64, requires_grad=True)
    weight = torch.ones(4, dtype=F64, requires_grad=True)
    with torch.no_grad():
        silent = exact_gradient(f, phi, 1.0)
    loud = exact_gradient(lambda z: f(z * weight), phi, 1.0)
    assert torch.equal(silent, loud) and not loud.requires_grad


def test_float32_gates_are_summed_in_float64():
    gradient = exact_gradient(lambda z: 1e6 + z.sum(-1), torch.full((8,), 0.3), 1.0, batched=True)  # D = 1 for all
    assert gradient.dtype == torch.float32
    slope = 1 / (1 + math.exp(-0.3)) / (1 + math.exp(0.3))
    assert gradient.tolist() == pytest.approx([slope] * 8, rel=1e-6)


def test_twenty_gates_are_enough_and_the_most():
    pi = torch.full((20,), 0.3)
    assert exact_expectation(lambda z: z.sum(-1), pi, batched=True).item() == pytest.approx(6.0, rel=1e-6)
    with pytest.raises(ConfigurationError, match=r"at most 20 gates .* got shape \(21,\)"):
        exact_expectation(lambda z: z.sum(-1), torch.full((21,), 0.3), batched=True)
    with pytest.raises(ConfigurationError, match=r"got shape \(2, 2\)"):
        exact_gradient(lambda z: z.sum(-1), torch.zeros(2, 2), 1.0)


def test_f_must_give_one_number_per_mask():
    with pytest.raises(ConfigurationError, match=r"expected shape \(4,\) over all masks, got \(4, 2\).*batched=True"):
        exact_expectation(lambda z: z, torch.tensor([0.5, 0.5]))
    with pytest.raises(ConfigurationError, match=r"got \(\); map \(M, n\) to \(M,\)"):
        exact_expectation(lambda z: z.sum(), torch.tensor([0.5, 0.5]), batched=True)
