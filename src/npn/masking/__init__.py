"""Weights read through masks: the whole call masked by (parameter, axis), or inputs masked per example."""

from npn.masking.calls import MaskedCall
from npn.masking.weights import MaskedWeights

__all__ = ["MaskedCall", "MaskedWeights"]
