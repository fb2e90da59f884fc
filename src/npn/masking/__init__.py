"""Masks: on weights, by (parameter, axis) for the whole call; or on the inputs of layers, one mask per example."""

from npn.masking.calls import MaskedCall
from npn.masking.weights import MaskedWeights

__all__ = ["MaskedCall", "MaskedWeights"]
