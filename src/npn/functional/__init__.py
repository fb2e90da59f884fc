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

__all__ = [
    "GateFunction",
    "HardSigmoid",
    "ShiftedSigmoid",
    "Sigmoid",
    "antithetic_masks",
    "arm",
    "chain_factor",
    "disarm",
    "double_cv",
    "effective_gates",
    "effective_gates_gradient",
    "exact_expectation",
    "exact_gradient",
    "function_name",
    "gate_function",
    "keep_probability",
    "keep_probability_derivative",
    "logits_for",
    "product_cost",
    "reinmax",
    "rloo",
    "shared_unit_correction",
    "straight_through",
]
