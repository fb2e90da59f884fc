"""Numbers that come as text, from a configuration file say, are refused by name and not by a TypeError."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import npn
from npn.errors import ConfigurationError


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def plastic() -> npn.Plasticity:
    return npn.attach(model(), torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: setattr(plastic(), "k", "inf"), "the sharpness k must be a number >= 0, got 'inf'"),
        (lambda: npn.Penalty(weight="1e-3"), "weight must be a finite number >= 0, got '1e-3'"),
        (lambda: npn.Stage("a", 3, k="7"), r"stage 'a': k must be >= 0 \(math.inf is a mode\), got '7'"),
        (lambda: npn.Budget(target="0.5"), "target must be a fraction in .*, got '0.5'"),
        (lambda: npn.Budget(target=0.5, gain="3"), "gain must be a finite number >= 0, got '3'"),
        (lambda: npn.Budget(target=0.5, rate="3"), "rate must be a finite number > 0, got '3'"),
        (lambda: npn.Growth(units="3"), "units must be an int >= 1 or a float fraction > 0 of the size, got '3'"),
        (lambda: npn.Growth(min_delta="0"), "min_delta must be a finite number >= 0, got '0'"),
        (lambda: npn.Growth(connections="1"), "connections must be .*, got '1'"),
        (lambda: npn.start_from(plastic(), {"0": torch.arange(6.0)}, mean="0.9"), "mean must be .*, got '0.9'"),
        (lambda: npn.methods.HardConcrete(plastic(), drop="0.3"), r"drop must be a rate in \(0, 1\), got '0.3'"),
        (lambda: npn.prune(model(), torch.zeros(1, 4), target="0.5"), "target must be a fraction in .*, got '0.5'"),
        (
            lambda: npn.prune(model(), torch.zeros(1, 4), target=0.5, criterion="magnitude", max_pruning_ratio="1"),
            r"max_pruning_ratio must be a share in \[0, 1\], got '1'",
        ),
    ],
)
def test_the_message_names_the_argument(call, message):
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        call()


@pytest.mark.parametrize("fraction", [np.float32(0.5), Fraction(1, 2)], ids=str)
def test_a_fraction_that_is_no_float_is_not_taken_for_a_cost(fraction):
    for call in (lambda: npn.Budget(target=fraction), lambda: npn.prune(model(), torch.zeros(1, 4), target=fraction)):
        with pytest.raises(
            ConfigurationError, match=r"^target must be a fraction in \(0, 1\] as a float, or a cost above 1"
        ):
            call()
