"""Forward passes that decide by flags and counters in buffers: their present values decide, a warning says where."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import npn

from ..zoo.checks import check_grow, check_shrink

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers, and what a function makes of the units between them by values of buffers."""

    def __init__(self, code):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)
        self.shift = nn.Parameter(torch.randn(8))
        self.register_buffer("ready", torch.tensor(True))
        self.register_buffer("step", torch.tensor(3.0))
        self.register_buffer("rows", torch.tensor([True, False, True, True]))
        self.register_buffer("mean", torch.ones(8))
        self.code = code

    def forward(self, x):
        return self.b(self.code(self, torch.tanh(self.a(x))))


LINE = f"{Path(__file__).name}:{Net.forward.__code__.co_firstlineno + 1}"
WARNED = (
    f"the forward pass decides by values of its buffers at {LINE}: what was found holds while they decide as they do "
    "now; other values have to use the weights in the same way, and what a first call sets up has to be set up before "
    "npn.attach"
)


def initialised(net, h):
    if not net.ready:
        with torch.no_grad():
            net.shift.copy_(-h.mean(0))
            net.ready.fill_(True)
    return h + net.shift


def annealed(net, h):
    net.step += 1
    return (h + net.shift) * min(1.0, net.step.item() / 10)


def after_warm_up(net, h):
    return (h + net.shift).cumsum(0) if net.step > 2 else h + net.shift


def some_rows(net, h):
    return h[net.rows] + net.shift


def starting(net, args):
    net.step.fill_(3.0)


CODES = [initialised, annealed, after_warm_up, some_rows]


@pytest.mark.parametrize("code", CODES, ids=lambda f: f.__name__)
def test_units_come_and_go(code):
    torch.manual_seed(0)
    net = Net(code)
    state = copy.deepcopy(net.state_dict())
    with pytest.warns(UserWarning, match=f"^{re.escape(WARNED)}$") as caught:
        plastic = npn.attach(net, X)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert plastic.sizes() == {"a": 8}
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    second = copy.deepcopy(plastic)
    for each in (plastic, second):  # the checks compare one call with another
        each.model.register_forward_pre_hook(starting)
    check_shrink(plastic, X)
    check_grow(second, X)


@pytest.mark.filterwarnings("ignore:the forward pass decides by values of its buffers")
def test_a_counter_goes_on_between_attaching_and_resizing():
    plastic = npn.attach(Net(annealed).eval(), X)
    plastic.model(X)
    plastic.close("a", [1, 2])
    step = plastic.model.step.clone()
    masked = plastic.model(X)
    assert plastic.compact().changes == {"a": (8, 6)}
    plastic.grow({"a": 3})
    assert torch.equal(plastic.model.step, step + 1)
    plastic.model.step.copy_(step)
    torch.testing.assert_close(plastic.model(X), masked)


@pytest.mark.filterwarnings("ignore:the forward pass decides by values of its buffers")
def test_a_buffer_of_the_units_that_decides_keeps_them():
    def by_mean(net, h):
        return h * 2 + net.mean if net.mean.sum() > 4 else h

    reason = r"a\.weight\[0\]: the code fixes this size at test_buffers_decide\.py"
    with pytest.raises(npn.PlasticityError, match=reason):
        npn.attach(Net(by_mean), X)


def test_norms_are_not_followed_where_buffers_decide():
    net = Net(lambda net, h: nn.functional.layer_norm(h, h.shape[1:]) if net.ready else h)
    message = f"norms in the order of their calls, which values of the buffers may change at {LINE}; attach without"
    with pytest.raises(npn.PlasticityError, match=re.escape(message)):
        npn.attach(net, X, streams=True)


def test_a_weight_that_is_left_out_by_a_buffer_is_named():
    message = (
        f"shift take no part in the forward pass on example_inputs, which decides by values at {LINE}: if other inputs "
        "use them"
    )
    with pytest.warns(UserWarning, match="decides by values") as caught:
        npn.attach(Net(lambda net, h: h if net.ready else h + net.shift), X)
    assert any(str(each.message).startswith(message) for each in caught)
