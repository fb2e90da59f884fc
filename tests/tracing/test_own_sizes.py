"""Code that asks a layer for its size: the layer says the new one after a resize, and in a rehearsal."""

import pytest
import torch
from torch import nn

import npn

from ..zoo.checks import check_grow, check_shrink


class Asks(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem, self.conv, self.fc = nn.Linear(6, 32), nn.Conv2d(8, 5, 1), nn.Linear(80, 7)
        self.head = nn.Linear(7, 2)

    def forward(self, x):
        h = torch.relu(self.stem(x)).view(len(x), 8, 2, 2)
        if self.how == "in_channels":
            h = h.reshape(-1, self.conv.in_channels, 4, 1).reshape(len(x), self.conv.in_channels, 2, 2)
        h = torch.relu(self.conv(h)).repeat(1, 1, 2, 2)
        if self.how == "out_channels":
            h = h.view(len(x), self.conv.out_channels * 16)
        elif self.how == "in_features":
            h = h.view(-1, self.fc.in_features)
        else:
            h = h.flatten(1)
        return self.head(torch.relu(self.fc(h)))


@pytest.mark.parametrize("how", ["in_channels", "out_channels", "in_features"])
def test_sizes_that_code_reads_from_a_layer(how):
    torch.manual_seed(0)
    model, x = Asks(how).eval(), torch.randn(3, 6)
    plastic = npn.attach(model, x)
    assert {"conv", "fc"} <= {group.name for group in plastic.groups}
    check_shrink(plastic, x)
    check_grow(plastic, x)


class StateGroups(nn.Module):
    """Three numbers follow the number of state groups, and one that happens to be a multiple of it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.n_groups, self.inner, self.states, self.head_dim = 2, 8, 8, 4
        self.inp, self.out = nn.Linear(5, self.inner + self.states), nn.Linear(self.inner, 2)

    def forward(self, x):
        z, s = self.inp(x).split([self.inner, self.states], -1)
        z = z.view(len(x), self.n_groups, self.head_dim)
        z = z / (1 + z.pow(2).mean(-1, keepdim=True))
        s = s.view(len(x), self.n_groups, -1).softmax(-1).unsqueeze(-1)
        return self.out((z.unsqueeze(-2) * s).sum(-2).reshape(len(x), self.inner))


def test_all_numbers_but_one_follow():
    torch.manual_seed(0)
    model, x = StateGroups().eval(), torch.randn(3, 5)
    plastic = npn.attach(model, x)
    assert plastic.sizes() == {"inp": 2}
    check_grow(plastic, x)
    check_shrink(plastic, x)
    assert plastic.sizes() == {"inp": model.n_groups} and model.n_groups != 2
    assert (model.inner, model.states, model.head_dim) == (4 * model.n_groups, 4 * model.n_groups, 4)
