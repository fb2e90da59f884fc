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


def quantize(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)


CHANGES = {
    "there is no 0.weight": [adapt, quantize],
    "there is no 2.weight": [lambda model: parametrizations.weight_norm(model[2])],
    "2.lora_A is new": [add_parameter],
}
USES = {
    "call": lambda plastic: plastic.model(X),
    "backward": lambda plastic: plastic.backward(lambda: plastic.model(X).square().mean()),
    "compact": lambda plastic: plastic.compact(),
    "grow": lambda plastic: plastic.grow({"0": 1}),
    "export": lambda plastic: plastic.export(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("what, change", [(what, change) for what, changes in CHANGES.items() for change in changes])
def test_is_told(use, what, change):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    plastic = npn.attach(model, X)
    plastic.k = 7.0
    plastic.close("0", [1])
    change(model)
    message = (
        f"the model has other parameters than when it was attached: {what}, as after quantization, an adapter such as "
        "LoRA, or a parametrization. Do that to the plain model that plastic.export() returns, or call "
        "plastic.detach() before and npn.attach after it"
    )
    with pytest.raises(ResizeError, match=f"^{re.escape(message)}$"):
        USES[use](plastic)
    assert plastic.group("0").size == 6
