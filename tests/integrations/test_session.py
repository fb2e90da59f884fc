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


def session_of(*stages, **options):
    x = torch.randn(6, 4)
    session = Session(npn.Schedule(*stages), example_inputs=x, **options)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    session.begin(model, lambda: x)
    session.follow([torch.optim.Adam(model.parameters())])
    return session


def test_a_training_shorter_than_its_schedule_is_told():
    session = session_of(npn.Stage("pretrain", 1), npn.Stage("plastic", 4, k=7.0), npn.Stage("finetune", 2))
    with pytest.warns(UserWarning) as told:
        session.announce(3, "max_epochs")
    assert str(told[0].message) == (
        "the training has 3 epochs and the schedule 7, so 'plastic' is cut short and 'finetune' never begins: set "
        "max_epochs to 7 or more (training stops at the schedule's end), or shorten the stages"
    )


@pytest.mark.parametrize("epochs", [7, 20, float("inf")])
def test_a_training_that_is_long_enough_is_not(epochs, recwarn):
    session_of(npn.Stage("plastic", 4, k=7.0), npn.Stage("finetune", 3)).announce(epochs, "max_epochs")
    assert not recwarn


PLATEAU = npn.Plateau(patience=2)


@pytest.mark.parametrize("stage", [npn.Stage("plastic", 3, k=7.0), npn.Stage("until", 3, until=PLATEAU)])
def test_growth_and_plateaus_without_a_metric_are_told(stage):
    session = session_of(stage, growth=npn.Growth())
    session.enter(2)
    with pytest.warns(UserWarning, match=r"^the training never validated, so nothing grew .* want of 'val_loss': give"):
        session.finish()


def test_validations_that_miss_the_epochs_of_growth_are_told(recwarn):
    session = session_of(npn.Stage("plastic", 3, k=7.0), growth=npn.Growth(), settle=2)
    session.enter(1)
    session.validated({"val_loss": 0.5})
    with pytest.warns(UserWarning, match=r"^nothing grew: none of the 1 validations .* or lower settle=$"):
        session.finish()
    session.enter(0)
    session.validated({"val_loss": 0.5})
    recwarn.clear()
    session.finish()
    assert not recwarn
