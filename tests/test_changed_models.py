"""A model whose layers were replaced after attach: every use of the handle says so, and what to do instead."""

import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import npn
from npn.errors import ResizeError

X = torch.zeros(2, 4)


class Adapted(nn.Module):
    """As LoRA wraps a layer."""

    def __init__(self, base):
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def adapt(model):
    model[0] = Adapted(model[0])


def add_parameter(model):
    model[2].lora_A = nn.Parameter(torch.zeros(2, 6))


def insert_layer(model):
    model[1] = nn.Sequential(nn.ReLU(), nn.Linear(6, 6))


def quantize(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)


CHANGES = {
    "there is no 0.weight": [adapt, quantize],
    "there is no 2.weight": [lambda model: parametrizations.weight_norm(model[2])],
    "2.lora_A is new": [add_parameter],
    "1.1.weight is new": [insert_layer],
}
USES = {
    "call": lambda plastic: plastic.model(X),
    "backward": lambda plastic: plastic.backward(lambda: plastic.model(X).square().mean()),
    "compact": lambda plastic: plastic.compact(),
    "grow": lambda plastic: plastic.grow({"0": 1}),
    "export": lambda plastic: plastic.export(),
}


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("what, change", [(what, change) for what, changes in CHANGES.items() for change in changes])
def test_is_told(use, what, change, used):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    plastic = npn.attach(model, X)
    plastic.k = 7.0
    plastic.close("0", [1])
    if used:
        USES["backward"](plastic)
    change(model)
    message = (
        f"the model has other parameters than when it was attached: {what}, as after quantization, an adapter such as "
        "LoRA, or a parametrization. Do that to the plain model that plastic.export() returns, or call "
        "plastic.detach() before and npn.attach after it"
    )
    with pytest.raises(ResizeError, match=f"^{re.escape(message)}$"):
        USES[use](plastic)
    assert plastic.group("0").size == 6


def test_a_layer_of_the_same_shape_takes_the_place_of_another():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    plastic = npn.attach(model, X)
    plastic.close("0", [1])
    plastic.backward(lambda: model(X).square().mean())
    model[2] = nn.Linear(6, 3)
    x = torch.randn(2, 4)
    torch.testing.assert_close(model(x), plastic.export()(x))
    plastic.backward(lambda: model(x).square().mean())
    gradient = model[2].weight.grad
    assert gradient[:, 1].abs().sum() == 0 and gradient.abs().sum() > 0


class Dynamic(nn.Module):
    """Makes its activation anew in every pass."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        self.activation = nn.ReLU()
        return self.b(self.activation(self.a(x)))


def test_modules_without_parameters_come_and_go():
    model, x = Dynamic(), torch.randn(2, 4)
    plastic = npn.attach(model, X)
    plastic.k = 7.0
    plastic.close("a", [1])
    plastic.backward(lambda: model(x).square().mean())
    table = plastic.masked_weights.table
    plastic.backward(lambda: model(x).square().mean())
    assert plastic.logits()[0].grad is not None and plastic.masked_weights.table is table
    torch.testing.assert_close(model(x), plastic.export()(x))


class SettingUp(nn.Sequential):
    """Registers a buffer in its first pass."""

    def forward(self, x):
        if not hasattr(self, "steps"):
            self.register_buffer("steps", torch.zeros(6))
        return super().forward(x)


def test_a_buffer_of_the_first_pass_is_told():
    model = SettingUp(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    plastic = npn.attach(model, X)
    model(X)
    with pytest.raises(ResizeError, match=r"steps is new, .* Call the model once before npn\.attach"):
        plastic.export()
    plastic = npn.attach(plastic.detach(), X)
    plastic.close("0", [1])
    assert plastic.compact().changes == {"0": (6, 5)}
