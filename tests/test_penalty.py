import math

import pytest

from npn import Budget, Penalty
from npn._utils.patterns import match_patterns
from npn.errors import ConfigurationError

from .priced import FakePlastic


@pytest.mark.parametrize("cost", ["params", "macs", "units", "layerwise"])
def test_penalty_is_weight_times_cost(cost):
    plastic = FakePlastic()
    loss = Penalty(cost=cost, weight=1e-3).loss(plastic)
    assert loss.item() == pytest.approx(1e-3 * plastic.expected_cost(cost).item())
    loss.backward()
    assert all((logits.grad > 0).all() for logits in plastic.logits())


def test_layerwise_weights_go_to_their_groups():
    plastic = FakePlastic(sizes=(4, 3, 5))
    penalty = Penalty(cost="layerwise", weight={"fc1": 0.5, "fc[12]": 0.1})
    penalty.bind(plastic)
    loss = penalty.loss(plastic)
    assert loss.item() == pytest.approx(0.5 * 4 * 0.95 * 3 + 0.1 * 3 * 0.95 * 5)
    loss.backward()
    assert not plastic.groups[2].gate.logits.grad.any()  # no pattern matches it: it costs nothing
    assert plastic.groups[0].gate.logits.grad.all()


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ConfigurationError) as error:
        Penalty(cost="layerwise", weight={"fc1": 1.0, "conv*": 1.0}).bind(FakePlastic())
    assert str(error.value) == "weight: 'conv*' matches no unit group; there are ['fc1', 'fc2']"


def test_names_with_brackets_match_themselves():
    assert match_patterns({"stem[0]": 1}, ["stem[0]", "stem0"], "x") == {"stem[0]": 1, "stem0": 1}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Penalty(cost="flops"),
            "cost must be one of 'params', 'weights', 'macs', 'units', 'layerwise', got 'flops'",
        ),
        (lambda: Penalty(weight=-1.0), "weight must be a finite number >= 0, got -1.0"),
        (lambda: Penalty("layerwise", {"a": math.nan}), "weight must be a finite number >= 0, got nan"),
        (
            lambda: Penalty(weight={"a": 1.0}),
            "weights per group need cost=\"layerwise\", got cost='params'; give one float",
        ),
        (
            lambda: Budget(target=0.0),
            "target must be a fraction in (0, 1] as a float, or a cost above 1 (or an int), got 0.0",
        ),
        (
            lambda: Budget(target=True),
            "target must be a fraction in (0, 1] as a float, or a cost above 1 (or an int), got True",
        ),
        (lambda: Budget(rate=0.0), "rate must be a finite number > 0, got 0.0"),
        (lambda: Budget(ceiling=math.inf), "ceiling must be a finite number > 0, got inf"),
        (lambda: Budget(gain=-1.0), "gain must be a finite number >= 0, got -1.0"),
        (lambda: Budget(steps=0), "steps must be a whole number >= 1 of updates (or None), got 0"),
        (lambda: Budget(steps=2.5), "steps must be a whole number >= 1 of updates (or None), got 2.5"),
        (lambda: Budget(steps=True), "steps must be a whole number >= 1 of updates (or None), got True"),
        (lambda: Budget(path="linear"), "path must be one of 'geometric', 'cubic', got 'linear'"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ConfigurationError) as error:
        make()
    assert str(error.value) == message
