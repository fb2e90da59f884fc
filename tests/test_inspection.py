"""`inspect`: weights of groups, reasons of frozen dimensions, selection."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from npn.errors import ConfigurationError
from npn.inspection import inspect


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(torch.relu(self.body(torch.relu(self.norm(self.stem(x))))).mean((2, 3)))


def test_a_group_carries_its_rows_its_columns_and_its_normalisation():
    found = inspect(Net(), torch.zeros(1, 3, 5, 5))
    stem, body = found.groups
    assert (stem.name, stem.units) == ("stem", 8)
    assert stem.params == 8 * 3 * 9 + 8 + 2 * 8 + 6 * 8 * 9
    assert stem.macs == 25 * (8 * 3 * 9 + 6 * 8 * 9)
    assert (body.params, body.macs) == (6 * 8 * 9 + 6 + 4 * 6, 25 * 6 * 8 * 9 + 4 * 6)
    assert "stem.weight[0]" in stem.produced_by and stem.read_by == ("body.weight[1]",)


def test_totals_are_those_of_the_model():
    found = inspect(Net(), torch.zeros(1, 3, 5, 5))
    assert found.params == sum(p.numel() for p in Net().parameters())
    assert found.macs == 25 * (8 * 3 * 9 + 6 * 8 * 9) + 24


def test_frozen_dimensions_name_their_reason():
    reasons = {row.name: row.reason for row in inspect(Net(), torch.zeros(1, 3, 5, 5)).frozen}
    assert reasons["head.weight[0]"] == "it is the model's output"
    assert "an input of fixed size" in reasons["stem.weight[1]"] and "test_inspection.py:" in reasons["stem.weight[1]"]


def test_the_model_is_untouched_and_the_result_is_plain():
    model = Net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    text = json.dumps(inspect(model, torch.zeros(2, 3, 5, 5)).as_dict())
    assert json.loads(text)["groups"][0]["name"] == "stem"
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_selection_moves_groups_to_the_frozen_ones():
    found = inspect(Net(), torch.zeros(1, 3, 5, 5), skip="bo*")
    assert [row.name for row in found.groups] == ["stem"]
    assert any(row.reason == "left out by only= or skip=" for row in found.frozen)
    with pytest.raises(ConfigurationError, match=r"pattern 'nothing' matches no group; the model has: stem, body"):
        inspect(Net(), torch.zeros(1, 3, 5, 5), only="nothing")


def test_the_norm_that_keeps_most_channels_is_named():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            h = torch.relu(self.up(self.norm(x)))
            return x + self.down(h / (h.norm(dim=1, keepdim=True).mean(-1, keepdim=True) + 1))

    found = inspect(nn.Sequential(nn.Linear(4, 8), Block(), Block(), nn.Linear(8, 2)), torch.zeros(1, 3, 4))
    assert not found.groups
    name = "test_inspection.py"
    line = 1 + next(i for i, line in enumerate(Path(__file__).read_text().splitlines()) if "h.norm(dim=1" in line)
    assert found.norm == f"mean at {name}:{line} is over all channels of a stream, which keeps 32 of them"
    assert inspect(Net(), torch.zeros(1, 3, 5, 5)).norm is None
