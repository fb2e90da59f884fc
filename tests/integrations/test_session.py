"""What all framework callbacks share."""

import pytest
import torch
from torch import nn

import npn
from npn.errors import ConfigurationError
from npn.integrations.session import Session


def test_the_optimizers_of_a_second_fit_take_the_place_of_the_first():
    x = torch.randn(6, 4)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    session = Session(npn.Schedule(npn.Stage("only", 5)), example_inputs=x)
    session.begin(model, lambda: x)
    first = torch.optim.Adam(model.parameters())
    session.follow([first])
    model(x).sum().backward()
    first.step()
    session.follow([torch.optim.Adam(model.parameters())])
    session.plastic.close("0", [1])
    session.compact()
    assert model[0].out_features == 7
    assert len(session.plastic.optimizers) == 2


def test_the_optimizer_of_a_discriminator_is_left_alone(recwarn):
    x = torch.randn(6, 4)
    model, other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), nn.Linear(2, 1)
    session = Session(npn.Schedule(npn.Stage("only", 5)), example_inputs=x)
    session.begin(model, lambda: x)
    ours, theirs = torch.optim.Adam(model.parameters()), torch.optim.Adam(other.parameters())
    session.follow([theirs, ours])
    assert session.plastic.optimizers == [session.gates, ours] and not recwarn


def test_the_growth_of_another_model_is_refused_when_training_begins():
    x, growth = torch.randn(6, 4), npn.Growth()
    first, second = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2))
    growth.step(0.7, npn.attach(first, x))
    session = Session(npn.Schedule(npn.Stage("only", 5)), example_inputs=x, growth=growth)
    session.begin(second, lambda: x)
    with pytest.raises(ConfigurationError, match=r"^this Growth has seen 1 losses of another model"):
        session.follow([torch.optim.Adam(second.parameters())])
