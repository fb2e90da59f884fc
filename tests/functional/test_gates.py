import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from npn.errors import ConfigurationError
from npn.functional import (
    HardSigmoid,
    ShiftedSigmoid,
    Sigmoid,
    chain_factor,
    gate_function,
    keep_probability,
    keep_probability_derivative,
    logits_for,
)

FUNCTIONS = [Sigmoid(), HardSigmoid(), ShiftedSigmoid(), ShiftedSigmoid(shift=-1.0)]
DTYPES = [torch.float32, torch.float64]
every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
seeded = settings(max_examples=150, deadline=None, derandomize=True, database=None)


class Arctangent:
    """A gate function of a user's own, smooth and not logistic."""

    def __call__(self, x):
        return (torch.atan(x) / math.pi + 0.5).clamp(0, 1)

    def derivative(self, x):
        return 1 / (math.pi * (1 + x * x))

    def inverse(self, probability):
        return torch.tan(math.pi * (probability - 0.5))


# --- values ---------------------------------------------------------------------------------------------------------


def test_values_are_the_formulas():
    x = torch.tensor([-9.0, -3.0, -0.5, 0.0, 1.0, 3.0, 9.0], dtype=torch.float64)
    torch.testing.assert_close(Sigmoid()(x), 1 / (1 + torch.exp(-x)))
    torch.testing.assert_close(ShiftedSigmoid(2.0)(x), 1 / (1 + torch.exp(-x - 2)))
    torch.testing.assert_close(HardSigmoid()(x), torch.clip(x / 7 + 0.5, 0, 1))


@every_function
def test_k_multiplies_the_logit(function):
    phi = torch.linspace(-1, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(keep_probability(phi, 3.0, function), function(3 * phi))


def test_only_the_centred_ones_are_antithetic():
    x = torch.linspace(-5, 5, 11, dtype=torch.float64)
    for function in (Sigmoid(), HardSigmoid()):
        torch.testing.assert_close(function(-x), 1 - function(x))
    assert not torch.allclose(ShiftedSigmoid()(-x), 1 - ShiftedSigmoid()(x), atol=0.05)


@every_function
@pytest.mark.parametrize("k", [0.3, 1.0, 7.0])
def test_derivative_is_the_slope_and_autograd_agrees(function, k):
    phi = torch.linspace(-3, 3, 40, dtype=torch.float64, requires_grad=True)  # no point on a corner of the hard sigmoid
    ours = keep_probability_derivative(phi.detach(), k, function)
    (autograd,) = torch.autograd.grad(keep_probability(phi, k, function).sum(), phi)
    torch.testing.assert_close(autograd, ours)
    step = 1e-6
    secant = keep_probability(phi + step, k, function) - keep_probability(phi - step, k, function)
    torch.testing.assert_close((secant / (2 * step)).detach(), ours, atol=1e-7, rtol=1e-6)


def test_clipped_hard_sigmoid_has_no_slope_edge_included():
    phi = torch.tensor([-1e9, -3.6, -3.5, 3.5, 3.6, 1e9], dtype=torch.float64, requires_grad=True)
    assert keep_probability_derivative(phi.detach(), 1.0, "hard_sigmoid").tolist() == [0.0] * 6
    assert chain_factor(phi.detach(), 1.0, "hard_sigmoid").tolist() == [0.0] * 6
    keep_probability(phi, 1.0, "hard_sigmoid").sum().backward()
    assert phi.grad.tolist() == [0.0] * 6


# --- the ends of k --------------------------------------------------------------------------------------------------


@every_function
@every_dtype
def test_infinite_k_is_a_step_without_slope(function, dtype):
    phi = torch.tensor([-1e30, -1e-30, -0.0, 0.0, 1e-30, 1e30], dtype=dtype, requires_grad=True)
    pi = keep_probability(phi, math.inf, function)
    assert pi.tolist() == [0, 0, 0, 0, 1, 1]
    assert pi.dtype == dtype and not pi.requires_grad
    assert keep_probability_derivative(phi.detach(), math.inf, function).tolist() == [0.0] * 6
    assert chain_factor(phi.detach(), math.inf, function).tolist() == [0.0] * 6


@every_function
@every_dtype
def test_zero_k_is_dropout(function, dtype):
    biggest = torch.finfo(dtype).max
    phi = torch.tensor([-biggest, -3.0, 0.0, biggest], dtype=dtype, requires_grad=True)
    pi = keep_probability(phi, 0.0, function)
    assert pi.dtype == dtype
    assert torch.equal(pi, function(torch.zeros(4, dtype=dtype)))
    assert keep_probability_derivative(phi.detach(), 0.0, function).tolist() == [0.0] * 4
    assert chain_factor(phi.detach(), 0.0, function).tolist() == [0.0] * 4
    pi.sum().backward()
    assert phi.grad.tolist() == [0.0] * 4


@every_function
@every_dtype
def test_growing_k_tends_to_the_step(function, dtype):
    phi = torch.tensor([-0.5, -1e-3, 1e-3, 0.5], dtype=dtype)
    torch.testing.assert_close(keep_probability(phi, 1e6, function), keep_probability(phi, math.inf, function))


# --- safe for every finite logit ------------------------------------------------------------------------------------

sharpness = st.floats(0, allow_nan=False)  # up to the largest double and inf, beyond the range of float32


def check_safe(phi, k, function):
    logits = phi.clone().requires_grad_()
    pi = keep_probability(logits, k, function)
    assert pi.dtype == logits.dtype and 0 <= pi.item() <= 1
    slope = keep_probability_derivative(logits.detach(), k, function)
    factor = chain_factor(logits.detach(), k, function)
    for value in (slope, factor):
        assert math.isfinite(value.item()) and value.item() >= 0 and value.dtype == logits.dtype
    if pi.requires_grad:
        pi.sum().backward()
        assert math.isfinite(logits.grad.item())
    variance = pi * (1 - pi)
    if variance.item() > 1e-3 and k < 1e30:  # nearer to 0 and 1 the subtraction 1 - pi loses too many digits to compare
        torch.testing.assert_close(factor * variance.detach(), slope, rtol=1e-3, atol=0)


@every_function
@seeded
@given(phi=st.floats(allow_nan=False, allow_infinity=False), k=sharpness)
@example(phi=1.7e308, k=1.7e308)
@example(phi=0.0, k=1.7e308)
@example(phi=5e-324, k=math.inf)
@example(phi=-3.4999999999999, k=1.0)
def test_safe_in_float64(function, phi, k):
    check_safe(torch.tensor([phi], dtype=torch.float64), k, function)


@every_function
@seeded
@given(phi=st.floats(width=32, allow_nan=False, allow_infinity=False), k=sharpness)
@example(phi=3.4e38, k=3.4e38)
@example(phi=0.0, k=1e300)
@example(phi=1e-38, k=1e300)
@example(phi=-0.4999999, k=7.0)
def test_safe_in_float32(function, phi, k):
    check_safe(torch.tensor([phi], dtype=torch.float32), k, function)


@pytest.mark.parametrize("phi", [-1e30, -1.0, 0.0, 1.0, 1e30])
@pytest.mark.parametrize("k", [0.0, 1e-3, 7.0, 1e300, math.inf])
def test_safe_for_a_function_of_ones_own(phi, k):
    check_safe(torch.tensor([phi]), k, Arctangent())


# --- chain factor ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [Sigmoid(), ShiftedSigmoid(), "sigmoid", "shifted_sigmoid"], ids=str)
@every_dtype
def test_chain_factor_of_the_sigmoids_is_exactly_k_even_where_saturated(function, dtype):
    phi = torch.tensor([-1e30, -50.0, -1.0, 0.0, 1.0, 50.0, 1e30], dtype=dtype)
    assert torch.equal(chain_factor(phi, 7.0, function), torch.full_like(phi, 7.0))


@pytest.mark.parametrize("function", [HardSigmoid(), Arctangent()], ids=["hard", "own"])
def test_chain_factor_is_the_slope_of_the_log_odds(function):
    phi = torch.tensor([-0.4, -0.1, 0.0, 0.2, 0.45], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(torch.logit(keep_probability(phi, 7.0, function)).sum(), phi)
    torch.testing.assert_close(chain_factor(phi.detach(), 7.0, function), slope)


def test_chain_factor_is_zero_where_a_function_of_ones_own_has_rounded_to_one():
    phi = torch.tensor([-1e9, 1e9])
    assert (Arctangent().derivative(phi) > 0).all()
    assert keep_probability(phi, 1.0, Arctangent()).tolist() == [0.0, 1.0]
    assert chain_factor(phi, 1.0, Arctangent()).tolist() == [0.0, 0.0]


def test_chain_factor_of_the_hard_sigmoid_is_not_k():
    phi = logits_for(torch.tensor([0.5, 0.9]), 7.0, "hard_sigmoid")
    torch.testing.assert_close(chain_factor(phi, 7.0, "hard_sigmoid"), torch.tensor([1 / 0.25, 1 / 0.09]))


# --- inverse --------------------------------------------------------------------------------------------------------


@every_function
@seeded
@given(p=st.floats(1e-6, 1 - 1e-6), k=st.floats(1e-3, 1e3))
def test_inverse_round_trips_in_float64(function, p, k):
    probability = torch.tensor([p], dtype=torch.float64)
    phi = logits_for(probability, k, function)
    torch.testing.assert_close(keep_probability(phi, k, function), probability, rtol=1e-9, atol=1e-12)


@every_function
def test_inverse_round_trips_in_float32(function):
    probability = torch.tensor([1e-3, 0.05, 0.5, 0.95, 0.999])
    phi = logits_for(probability, 7.0, function)
    assert phi.dtype == torch.float32
    torch.testing.assert_close(keep_probability(phi, 7.0, function), probability, rtol=1e-5, atol=1e-6)


def test_hard_sigmoid_reaches_zero_and_one():
    ends = torch.tensor([0.0, 1.0])
    phi = logits_for(ends, 7.0, "hard_sigmoid")
    torch.testing.assert_close(phi, torch.tensor([-0.5, 0.5]))
    torch.testing.assert_close(keep_probability(phi, 7.0, "hard_sigmoid"), ends)


@every_function
@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_no_logit_for_what_is_no_probability(function, p):
    with pytest.raises(ConfigurationError, match=r"no finite logit of .* keep them away from 0 and 1"):
        logits_for(torch.tensor([0.5, p]), 7.0, function)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_no_logit_for_certainty_under_a_sigmoid(p):
    with pytest.raises(ConfigurationError, match=f"they span {min(p, 0.5)} to {max(p, 0.5)}"):
        logits_for(torch.tensor([0.5, p]), 7.0)


@pytest.mark.parametrize("k", [0.0, math.inf])
def test_no_inverse_at_the_ends_of_k(k):
    with pytest.raises(ConfigurationError, match=f"only for a finite k > 0, got k = {k}"):
        logits_for(torch.tensor([0.5]), k)


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [-1.0, -math.inf, math.nan])
@pytest.mark.parametrize("call", [keep_probability, keep_probability_derivative, chain_factor, logits_for])
def test_k_must_be_a_sharpness(call, k):
    with pytest.raises(ConfigurationError) as error:
        call(torch.tensor([0.5]), k)
    assert str(error.value) == (
        f"the sharpness k must be a number >= 0, got {k}; use 0 < k < inf while units come and go, "
        "k = math.inf for the deterministic mask, k = 0.0 for dropout with probability 1 - g(0)"
    )


@pytest.mark.parametrize("call", [keep_probability, keep_probability_derivative, chain_factor, logits_for])
def test_integer_logits_are_refused(call):
    with pytest.raises(ConfigurationError, match=r"floating point tensor, got torch.int64; convert it with .float\(\)"):
        call(torch.tensor([1]), 1.0)


def test_gate_function_by_name_and_by_object():
    assert gate_function("sigmoid") == Sigmoid()
    assert gate_function("hard_sigmoid") == HardSigmoid()
    assert gate_function("shifted_sigmoid") == ShiftedSigmoid(shift=2.0)
    own = Arctangent()
    assert gate_function(own) is own


@pytest.mark.parametrize("unknown", ["Sigmoid", "", torch.sigmoid, Sigmoid, None])
def test_unknown_gate_function(unknown):
    with pytest.raises(ConfigurationError, match="pass one of 'sigmoid', 'hard_sigmoid', 'shifted_sigmoid', or an obj"):
        gate_function(unknown)


def test_gate_functions_are_values():
    assert {Sigmoid(), Sigmoid(), ShiftedSigmoid(1.0), ShiftedSigmoid(1.0)} == {Sigmoid(), ShiftedSigmoid(1.0)}
    with pytest.raises(AttributeError):
        ShiftedSigmoid().shift = 3.0
    with pytest.raises(ConfigurationError, match="finite shift, got nan"):
        ShiftedSigmoid(math.nan)


@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
def test_values_are_never_read_on_the_host(function):
    phi = torch.empty(5, device="meta", requires_grad=True)  # reading a value of a meta tensor raises
    for k in (0.0, 7.0, math.inf):
        pi = keep_probability(phi, k, function)
        assert pi.shape == keep_probability_derivative(phi, k, function).shape == chain_factor(phi, k, function).shape
    keep_probability(phi, 7.0, function).sum().backward()
