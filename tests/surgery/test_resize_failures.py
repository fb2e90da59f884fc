"""Resizes that fail or are refused change nothing."""

import pytest
import torch
from torch import nn

from npn.errors import ConfigurationError, ResizeError
from npn.surgery import apply, apply_plan, edits, plan_growth, plan_removal

from .training import equal, photograph, steps, trained


def failing(monkeypatch, at):
    """Let the `at`-th change of a tensor fail."""
    calls, original = [], edits.set_data

    def broken(tensor, value):
        calls.append(1)
        if len(calls) == at:
            raise MemoryError("injected")
        original(tensor, value)

    monkeypatch.setattr(edits, "set_data", broken)


@pytest.mark.parametrize("at", [1, 2, 4, 6, 8, 10])
@pytest.mark.parametrize("kind", ["compact", "grow"])
def test_failure_half_way_leaves_everything_as_it_was(tiny, monkeypatch, kind, at):
    model, plastic, optimizers, x, y = trained(tiny)
    plastic.close("0", [1])
    plastic.close("3", [2, 3])
    before, out = photograph(model, plastic, *optimizers), model.eval()(x)
    with monkeypatch.context() as patch:
        failing(patch, at)
        with pytest.raises(MemoryError, match=r"injected"):
            plastic.compact() if kind == "compact" else plastic.grow({"0": 1, "3": 2})
    assert equal(before, photograph(model, plastic, *optimizers))
    assert torch.equal(model(x), out)
    steps(model.train(), plastic, optimizers, x, y)
    assert plastic.compact().changes == {"0": (3, 2), "3": (4, 2)}


@pytest.mark.parametrize("where", ["check_shapes", "moved_state"])
def test_failure_before_and_after_the_edits(tiny, monkeypatch, where):
    model, plastic, optimizers, _, _ = trained(tiny)
    plastic.close("0", [1])
    plastic.close("3", [2])
    with torch.no_grad():
        plastic.group("3").gate.logits[2] = 1.0  # reopened by training, which `compact` takes note of
    before = photograph(model, plastic, *optimizers)

    def broken(*_):
        raise ResizeError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(apply, where, broken)
        with pytest.raises(ResizeError, match=r"injected"):
            plastic.compact()
    assert equal(before, photograph(model, plastic, *optimizers))
    assert plastic.compact() and not plastic.group("3").gate.shut.any()


def test_model_changed_by_hand_is_noticed(tiny):
    model, plastic = tiny["mlp"].attach()
    plastic.close("0", [0])
    model[4] = nn.Linear(3, 5)
    with pytest.raises(ResizeError, match=r"4.weight has shape \(5, 3\) where \(2, 3\) was planned; .*by hand"):
        plastic.compact()
    assert model[0].out_features == 4


def test_bad_requests_change_nothing(tiny):
    model, plastic = tiny["mlp"].attach()
    for wrong in (1.5, -1, True, "2"):
        with pytest.raises(ConfigurationError, match=r"whole number >= 0"):
            plastic.grow({"0": wrong})
    with pytest.raises(ConfigurationError, match=r"no group 'nope'; the model has: 0, 2"):
        plastic.grow({"nope": 1})
    with pytest.raises(ConfigurationError, match=r"units 0 to 3, got"):
        plastic.close("0", [4])
    with pytest.raises(ConfigurationError, match=r"units 0 to 3"):
        plastic.open("0", [-1])
    assert not plastic.grow({"0": 0}) and not plastic.compact()
    assert model[0].out_features == 4


def test_plans_are_checked(tiny):
    _, plastic = tiny["mlp"].attach()
    with pytest.raises(ResizeError, match=r"no group 'x'; the model has: 0, 2"):
        plan_removal(plastic.structure, {"x": [0]})
    with pytest.raises(ResizeError, match=r"units 0 to 3, cannot remove \[7\]"):
        plan_removal(plastic.structure, {"0": [1, 7]})
    with pytest.raises(ResizeError, match=r"cannot remove all 4 units of '0'"):
        plan_removal(plastic.structure, {"0": range(4)})
    assert not plan_removal(plastic.structure, {"0": []}).units
    assert not plan_growth(plastic.structure, plastic.structure).units


def test_apply_plan_alone(tiny):
    """Surgery knows nothing of gates: a plain model and a plan are enough."""
    model, plastic = tiny["conv"].attach()
    plastic.detach()
    x, _ = tiny["conv"].data()
    with torch.no_grad():
        model[3].weight[:, 1] = 0
    wanted = model.eval()(x)
    apply_plan(model, plan_removal(plastic.structure, {"0": [1]}))
    torch.testing.assert_close(model(x), wanted)
    assert model[0].out_channels == model[1].num_features == model[3].in_channels == 2
