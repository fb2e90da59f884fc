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
