"""Recurrent layers of which the example inputs show a single step: zeros stand for the hidden units."""

import pytest
import torch
from torch import nn

import npn

from ..zoo.checks import check_resizes


class Policy(nn.Module):
    """A step of a policy, which gets the state of the step before if there is one."""

    def __init__(self, make):
        super().__init__()
        self.f, self.cell, self.o = nn.Linear(5, 12), make(), nn.Linear(10, 2)

    def forward(self, x, state=None):
        f = self.f(x).relu()
        if isinstance(self.cell, nn.RNNBase):
            h, state = self.cell(f[:, None]) if state is None else self.cell(f[:, None], state)
            return self.o(h[:, -1]), state
        state = self.cell(f) if state is None else self.cell(f, state)
        return self.o(state[0] if isinstance(state, tuple) else state), state


class Alone(Policy):
    def forward(self, x, state=None):
        return super().forward(x, state)[0]


MAKES = {
    "GRUCell": lambda: nn.GRUCell(12, 10),
    "LSTMCell": lambda: nn.LSTMCell(12, 10),
    "RNNCell": lambda: nn.RNNCell(12, 10),
    "LSTM": lambda: nn.LSTM(12, 10, 2, batch_first=True),
    "GRU": lambda: nn.GRU(12, 10, batch_first=True),
}


@pytest.mark.parametrize("name", MAKES)
def test_hidden_units_come_and_go(name):
    def attached():
        torch.manual_seed(0)
        x = torch.randn(3, 5, dtype=torch.float64)
        return npn.attach(Alone(MAKES[name]).double(), x), x

    plastic = attached()[0]
    assert plastic.sizes() == {"f": 12, "cell": 10}
    check_resizes(attached)


@pytest.mark.parametrize("name", MAKES)
def test_and_are_closed_and_removed_where_a_state_is_given(name):
    torch.manual_seed(0)
    model, x = Alone(MAKES[name]).double().eval(), torch.randn(3, 5, dtype=torch.float64)

    def steps(model):
        first, state = Policy.forward(model, x)
        return first, Policy.forward(model, x, state)[0]

    plastic = npn.attach(model, x)
    plastic.close("cell", [1, 4, 9])
    with npn.masked(plastic):
        masked = steps(model)
    small = plastic.export()
    plastic.compact()
    assert model.cell.hidden_size == 7
    for found in (steps(model), steps(small)):
        torch.testing.assert_close(found, masked)
    plastic.grow({"cell": 2})
    torch.testing.assert_close(steps(model), masked)
