"""Optimizers whose state holds a copy of the weights: what is new in it is the new weights, or a step undoes growth."""

import pytest
import torch
from torch import nn

import npn

from ..processes import together


class KeepsACopy(torch.optim.Optimizer):
    """Steps the copy and sets the weights to it, which is what a copy that was left at zero would undo."""

    def __init__(self, params, key):
        super().__init__(params, {"lr": 0.0, "key": key})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                copied = self.state[p].setdefault(group["key"], p.clone())
                p.copy_(copied.sub_(group["lr"] * p.grad if p.grad is not None else 0.0))


KEYS = ["z", "x0", "p0", "slow_buffer", "lookahead_slow_buff"]


def ready(key="z", **options):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 4)
    plastic = npn.attach(model, x, **options)
    optimizer = KeepsACopy([*plastic.weights(), *plastic.logits()], key)
    plastic.track(optimizer)
    plastic.backward(lambda: model(x).square().mean())
    optimizer.step()
    return model, x, plastic, optimizer


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("init", ["zero", "pair", "split"])
def test_growth_outlives_a_step(key, init):
    model, x, plastic, optimizer = ready(key)
    out = model(x)
    plastic.grow({"0": 2}, init=init, grace=1)
    weights = [p.clone() for p in (*plastic.weights(), *plastic.logits())]
    optimizer.step()
    torch.testing.assert_close(weights, [*plastic.weights(), *plastic.logits()])
    torch.testing.assert_close(model(x), out)


def test_averages_of_asgd_begin_at_the_new_weights():
    model, x, plastic, _ = ready()
    plastic.untrack(*plastic.optimizers)
    average = torch.optim.ASGD(plastic.weights(), lr=0.1)
    plastic.track(average)
    plastic.backward(lambda: model(x).square().mean())
    average.step()
    plastic.grow({"0": 2})
    assert torch.equal(average.state[model[0].weight]["ax"][8:], model[0].weight[8:])


def test_what_was_set_by_hand_stays():
    """`open`, `close` and single weights that are removed: a copy does not move them back."""
    model, _, plastic, optimizer = ready(unstructured="2.weight")
    plastic.close("0", [1])
    plastic.close("2.weight", [0, 9])
    logits = [gate.clone() for gate in plastic.logits()]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(logits, plastic.logits(), strict=True))
    plastic.compact()
    assert bool((optimizer.state[model[2].weight]["z"] == model[2].weight).all())


def on_each():
    model, _, plastic, optimizer = ready()
    torch.manual_seed(npn.distributed.rank())
    plastic.grow({"0": 2})
    return all(torch.equal(optimizer.state[p]["z"], p) for p in model.parameters())


def test_on_two_processes():
    assert together(2, on_each) == [True, True]
