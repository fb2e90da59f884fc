"""The mathematics of stochastic gates as pure functions of tensors."""

from npn.functional.columns import effective_gates, effective_gates_gradient
from npn.functional.cost import product_cost, shared_unit_correction
from npn.functional.enumerate import exact_expectation, exact_gradient
from npn.functional.estimators import antithetic_masks, arm, disarm, double_cv, reinmax, rloo, straight_through
from npn.functional.gates import (
    GateFunction,
    HardSigmoid,
    ShiftedSigmoid,
    Sigmoid,
    chain_factor,
    function_name,
    gate_function,
    keep_probability,
    keep_probability_derivative,
    logits_for,
)
from npn.functional.hard_concrete import (
    hard_concrete_active,
    hard_concrete_cdf,
    hard_concrete_sample,
    hard_concrete_test_gate,
)
from npn.functional.information_bottleneck import bottleneck_noise, bottleneck_penalty, bottleneck_sample
from npn.functional.kumaraswamy import (
    gaussian_kl,
    kumaraswamy_kl,
    kumaraswamy_mean,
    kumaraswamy_sample,
    relaxed_bernoulli,
)
from npn.functional.lp_sphere import dual_of, dual_step, expected_hoyer, hoyer, primal_of
from npn.functional.topology import cosine_share, layer_densities, replaced, targeted

__all__ = [
    "GateFunction",
    "HardSigmoid",
    "ShiftedSigmoid",
    "Sigmoid",
    "antithetic_masks",
    "arm",
    "bottleneck_noise",
    "bottleneck_penalty",
    "bottleneck_sample",
    "chain_factor",
    "cosine_share",
    "disarm",
    "double_cv",
    "dual_of",
    "dual_step",
    "effective_gates",
    "effective_gates_gradient",
    "exact_expectation",
    "exact_gradient",
    "expected_hoyer",
    "function_name",
    "gate_function",
    "gaussian_kl",
    "hard_concrete_active",
    "hard_concrete_cdf",
    "hard_concrete_sample",
    "hard_concrete_test_gate",
    "hoyer",
    "keep_probability",
    "keep_probability_derivative",
    "kumaraswamy_kl",
    "kumaraswamy_mean",
    "kumaraswamy_sample",
    "layer_densities",
    "logits_for",
    "primal_of",
    "product_cost",
    "reinmax",
    "relaxed_bernoulli",
    "replaced",
    "rloo",
    "shared_unit_correction",
    "straight_through",
    "targeted",
]
