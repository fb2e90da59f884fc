"""A trace ends after some time, with a message that names what takes long, and leaves the model as it was."""

import itertools

import pytest
import torch
from torch import nn

import npn
from npn._utils.models import model_tensors
from npn.errors import TraceError
from npn.tracing.capture import deadline
from npn.tracing.capture.deadline import Deadline
from npn.tracing.capture.graph import capture
from npn.tracing.grouping.walk import walk
from npn.tracing.one_trace import SECONDS, single_trace

WAY_OUT = (
    "expected a graph that can be followed in this time: give shorter example_inputs if a loop there runs over them, "
    "or trace only a part of the model: npn.attach(model.backbone, ...)"
)
X = torch.zeros(2, 4)


class Loop(nn.Module):
    """A hundred steps of a recurrence."""

    def __init__(self):
        super().__init__()
        self.inner, self.head, self.calls = nn.Linear(4, 4), nn.Linear(4, 2), 0

    def forward(self, x):
        self.calls += 1
        for _ in range(100):
            x = torch.tanh(x)
        return self.head(self.inner(x))


def line():
    return Loop.forward.__code__.co_firstlineno + 3


@pytest.fixture
def clock(monkeypatch):
    """Each look at the clock takes a second, all of it the processor's."""
    monkeypatch.setattr(deadline, "monotonic", itertools.count().__next__)
    monkeypatch.setattr(deadline, "process_time", itertools.count(0, 1000).__next__)


def test_recording_ends_and_names_the_op(clock):
    model = Loop()
    with pytest.raises(TraceError) as caught:
        single_trace(model, X, seconds=20.0)
    assert str(caught.value) == (
        "tracing was not over after 20 s: 21 operations recorded, the last one is tanh_20 at "
        f"test_deadline.py:{line()}; {WAY_OUT}"
    )
    assert model.calls == 0


def test_following_labels_ends_and_names_the_op(clock):
    model = Loop()
    captured = capture(model, X)
    total = len(captured.graph.nodes)
    with pytest.raises(TraceError) as caught:
        walk(captured, model_tensors(model), Deadline(20.0))
    assert str(caught.value) == (
        f"tracing was not over after 20 s: 25 of {total} operations followed, the last one is tanh at "
        f"test_deadline.py:{line()}; {WAY_OUT}"
    )


def test_attach_ends_and_leaves_the_model(clock, monkeypatch):
    model = Loop()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    defaults = tuple(20.0 if value == SECONDS else value for value in single_trace.__defaults__)
    monkeypatch.setattr(single_trace, "__defaults__", defaults)
    with pytest.raises(TraceError, match=r"^tracing was not over after 20 s: 21 operations recorded"):
        npn.attach(model, X)
    assert model.calls == 0 and model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_enough_time(clock):
    assert [group.name for group in single_trace(Loop(), X, seconds=300.0).groups] == ["inner"]


def test_waiting_does_not_count(clock, monkeypatch):
    monkeypatch.setattr(deadline, "process_time", lambda: 0.0)
    assert [group.name for group in single_trace(Loop(), X, seconds=20.0).groups] == ["inner"]
