"""The public face: names, representations that say where a training stands, and options that fail at once."""

import importlib.resources
import math
import pkgutil
import types

import pytest
import torch
from torch import nn

import npn
from npn.errors import ConfigurationError
from npn.functional import function_name


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def test_no_public_name_is_both_a_function_and_a_module():
    modules = {module.name for module in pkgutil.iter_modules(npn.__path__)}
    functions = {name for name in npn.__all__ if isinstance(getattr(npn, name), types.FunctionType)}
    assert "attach" in functions and not functions & modules
    assert {"UnitGroup", "Frozen", "CostTerm", "inspect"} <= set(npn.__all__)


def test_types_are_shipped():
    assert importlib.resources.files("npn").joinpath("py.typed").is_file()


def test_representations_say_where_a_training_stands():
    budget = npn.Budget(cost="params", target=0.5)
    assert repr(budget) == "Budget(cost='params', target=0.5; no model yet)"
    model = net()
    plastic = npn.attach(model, torch.zeros(1, 4), penalty=budget)
    assert repr(plastic) == (
        "Plasticity(k=inf, params=58 of 58 at attach, groups={'0': 8}, "
        "penalty=Budget(cost='params', target=0.5; bound=29, price=0))"
    )
    plastic.close("0", [0, 1, 2])
    plastic.compact()
    assert "params=37 of 58 at attach, groups={'0': 5}" in repr(plastic)
    schedule = npn.Schedule(npn.Stage("pretrain", 2), npn.Stage("plastic", 3, k=7.0))
    assert repr(schedule) == "Schedule(pretrain: 2, plastic: 3; not begun)"
    schedule.enter(2, plastic)
    assert repr(schedule) == "Schedule(pretrain: 2, plastic: 3; epoch 2 of 5, stage 'plastic')"
    growth = npn.Growth(units=2, grace=3)
    growth.step(1.0, plastic)
    assert repr(growth) == "Growth(units=2, grace=3; 2 units in 1 growths, 0 of 20 validations without improvement)"


def test_a_wrong_estimator_fails_on_assignment():
    plastic = npn.attach(net(), torch.zeros(1, 4))
    with pytest.raises(ConfigurationError, match=r"^estimator must be one of arm, .*, got 'remax'$"):
        plastic.estimator = "remax"
    assert plastic.estimator == "reinmax"
    with pytest.raises(ConfigurationError, match=r"^grace must be a whole number >= 0 of calls of backward, got 0.5$"):
        plastic.open("0", [0], grace=0.5)
    with pytest.raises(ConfigurationError, match=r"^the growth of '0' must be a whole number >= 0 of units, got True$"):
        plastic.grow({"0": True})


class Steep:
    """A gate function of one's own, without a `repr`."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def __call__(self, x):
        return torch.sigmoid(self.slope * x)

    def derivative(self, x):
        return self.slope * torch.sigmoid(self.slope * x) * torch.sigmoid(-self.slope * x)

    def inverse(self, probability):
        return torch.logit(probability) / self.slope


def test_a_checkpoint_of_a_custom_gate_function_loads_with_an_equal_one(tmp_path):
    assert function_name(Steep(2.0)) == function_name(Steep(2.0)) != function_name(Steep(3.0))
    plastic = npn.attach(net(), torch.zeros(1, 4), function=Steep(2.0))
    plastic.k = 3.0
    plastic.close("0", [3])
    npn.save(tmp_path / "a.npn", plastic)
    other = npn.load(tmp_path / "a.npn", npn.attach(net(), torch.zeros(1, 4), function=Steep(2.0)))
    assert other.k == 3.0 and torch.equal(other.group("0").gate.mask, plastic.group("0").gate.mask)
    with pytest.raises(npn.PlasticityError, match=r"Steep\(slope=2.0\), these are .*Steep\(slope=3.0\)"):
        npn.load(tmp_path / "a.npn", npn.attach(net(), torch.zeros(1, 4), function=Steep(3.0)))


def test_processes_share_what_a_penalty_names_and_nothing_else():
    class Mine(npn.CostTerm):
        """Holds a tensor that is no one else's business."""

        def __init__(self):
            super().__init__("params")
            self.private = torch.ones(3)

        def loss(self, plastic):
            return 1e-3 * plastic.expected_cost("params")

    assert Mine().shared_tensors() == []
    budget = npn.Budget(cost="params", target=0.5)
    assert [tensor is budget.multiplier for tensor in budget.shared_tensors()] == [True]
    plastic = npn.attach(net(), torch.zeros(1, 4), penalty=Mine())
    plastic.k = math.inf
    assert plastic.expected_cost("params") == 58
