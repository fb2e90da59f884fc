import math
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import npn
from npn.errors import CheckpointError, ConfigurationError, NonFiniteLossError, ResizeError
from npn.growth import Growth, closed_units, units_to_open


class FakeGate:
    def __init__(self, probability, grace=None):
        self.probability = torch.tensor(probability)
        self.grace = torch.zeros(len(probability), dtype=torch.long) if grace is None else torch.tensor(grace)

    @property
    def mask(self):
        return self.probability > 0.5

    def keep_probability(self):
        return self.probability


class FakePlastic:
    """Groups given as name=[keep probabilities]; new units come first, so that growing moves the old ones."""

    def __init__(self, **groups):
        self.groups = [FakeGroup(name, FakeGate(probability)) for name, probability in groups.items()]
        self.refuse = False

    def group(self, name):
        return next(group for group in self.groups if group.name == name)

    def grow(self, added, grace):
        if self.refuse:
            raise ResizeError("no")
        changes = {}
        for name, count in added.items():
            gate, before = self.group(name).gate, self.group(name).size
            gate.probability = torch.cat([torch.full((count,), 0.95), gate.probability])
            gate.grace = torch.cat([torch.full((count,), grace), gate.grace])
            changes[name] = (before, before + count)
        return SimpleNamespace(changes=changes)

    def open(self, group, units, *, grace):
        gate = self.group(group).gate
        gate.probability[units] = 0.95
        gate.grace[units] = grace

    def compact(self, below=1e-3):
        for group in self.groups:
            keep = group.gate.probability >= below
            group.gate.probability, group.gate.grace = group.gate.probability[keep], group.gate.grace[keep]

    def weights(self):
        return [torch.zeros(group.size, 3) for group in self.groups]

    def sizes(self):
        return {group.name: int(group.gate.mask.sum()) for group in self.groups}

    def physical(self):
        return {group.name: group.size for group in self.groups}


class FakeGroup:
    def __init__(self, name, gate):
        self.name, self.gate = name, gate

    @property
    def size(self):
        return len(self.gate.probability)


def test_every_full_group_gets_one_unit_held_open():
    plastic, growth = FakePlastic(a=[0.9], b=[0.9, 0.8]), Growth(grace=7)
    report = growth.step(1.0, plastic)
    assert report.changes == {"a": (1, 2), "b": (2, 3)}
    assert plastic.group("a").gate.grace.tolist() == [7, 0]


def test_the_loss_must_fall_below_its_value_at_the_last_growth():
    plastic, growth = FakePlastic(a=[0.9]), Growth()
    sizes = []
    for loss in (1.0, 1.0, 1.2, 0.9, 0.95, 0.8):
        growth.step(loss, plastic)
        sizes.append(plastic.group("a").size)
    assert sizes == [2, 2, 2, 3, 3, 4]


def test_the_fall_is_measured_from_the_last_growth_not_from_the_best_loss():
    plastic, growth = FakePlastic(a=[0.9]), Growth()
    growth.step(1.0, plastic)
    plastic.group("a").gate.probability[1] = 0.1
    assert growth.step(0.5, plastic) is None  # a closed unit: no growth, but the best loss is 0.5 now
    plastic.group("a").gate.probability[1] = 0.9
    assert growth.step(0.7, plastic).changes == {"a": (2, 3)}


def test_min_delta():
    plastic, growth = FakePlastic(a=[0.9]), Growth(min_delta=0.1)
    assert growth.step(1.0, plastic) is not None
    assert growth.step(0.95, plastic) is None
    assert growth.step(0.89, plastic) is not None


def test_a_closed_unit_holds_up_its_own_group_only():
    plastic, growth = FakePlastic(a=[0.9, 0.2], b=[0.9]), Growth()
    assert growth.step(1.0, plastic).changes == {"b": (1, 2)}


def test_units_in_grace_count_as_open():
    plastic, growth = FakePlastic(a=[0.9, 0.2]), Growth()
    plastic.group("a").gate.grace[1] = 3
    assert growth.step(1.0, plastic).changes == {"a": (2, 3)}


def test_a_compacted_group_grows_again():
    plastic, growth = FakePlastic(a=[0.9, 1e-4]), Growth()
    assert growth.step(1.0, plastic) is None
    plastic.compact()
    assert growth.step(0.9, plastic).changes == {"a": (1, 2)}


def test_dead_slots_are_reused_before_units_are_added():
    plastic, growth = FakePlastic(a=[0.3, 0.9, 0.1]), Growth(revive=3, grace=5)
    assert [growth.step(loss, plastic) for loss in (1.0, 0.9, 0.8)] == [None, None, None]
    gate = plastic.group("a").gate
    assert gate.mask.tolist() == [False, True, True]  # the lowest keep probability first
    assert gate.grace.tolist() == [0, 0, 5]
    assert plastic.physical() == {"a": 3}
    assert [(event.step, event.loss, event.added, event.reopened) for event in growth.history] == [
        (3, 0.8, {}, {"a": 1})
    ]
    growth.step(0.7, plastic)  # the wait starts afresh
    assert plastic.sizes() == {"a": 2}


def test_reopening_also_waits_for_the_loss():
    plastic, growth = FakePlastic(a=[0.9, 0.1], b=[0.9]), Growth(revive=2)
    growth.step(1.0, plastic)  # b grows at 1.0
    for _ in range(4):
        growth.step(1.0, plastic)
    assert plastic.sizes() == {"a": 1, "b": 2}
    growth.step(0.9, plastic)
    assert plastic.sizes() == {"a": 2, "b": 3}


def test_reuse_and_addition_in_one_step_hit_the_right_units():
    plastic, growth = FakePlastic(a=[0.9, 0.1, 0.9]), Growth(units=3, revive=1, grace=5)
    assert growth.step(1.0, plastic).changes == {"a": (3, 5)}
    gate = plastic.group("a").gate
    assert gate.mask.all()
    assert gate.grace.tolist() == [5, 5, 0, 5, 0]  # two new units in front of the old three


def test_revive_none_leaves_closed_units_alone():
    plastic, growth = FakePlastic(a=[0.9, 0.1]), Growth(revive=None, patience=100)
    for step in range(50):
        assert growth.step(1.0 - step / 100, plastic) is None
    assert plastic.sizes() == {"a": 1}


def test_growth_is_over_when_the_loss_stops_improving():
    plastic, growth = FakePlastic(a=[0.9]), Growth(patience=3)
    for loss in (1.0, 1.0, 1.1):
        growth.step(loss, plastic)
        assert not growth.done
    growth.step(1.2, plastic)
    assert growth.done
    assert growth.step(0.1, plastic) is None
    assert growth.step(math.nan, plastic) is None
    assert plastic.physical() == {"a": 2}


def test_a_growth_gives_the_loss_time_to_improve():
    plastic, growth = FakePlastic(a=[0.9]), Growth(patience=2)
    growth.step(1.0, plastic)
    plastic.group("a").gate.probability[1] = 0.1
    growth.step(0.5, plastic)
    plastic.group("a").gate.probability[1] = 0.9
    assert growth.step(0.7, plastic) is not None  # one step without improvement, but a growth
    growth.step(0.7, plastic)
    assert not growth.done
    growth.step(0.7, plastic)
    assert growth.done


def test_growth_is_over_when_every_group_is_at_its_limit():
    plastic, growth = FakePlastic(a=[0.9], b=[0.9]), Growth(limit={"a": 2, "*": 3})
    growth.step(1.0, plastic)
    assert plastic.physical() == {"a": 2, "b": 2} and not growth.done
    growth.step(0.9, plastic)
    assert plastic.physical() == {"a": 2, "b": 3} and growth.done


def test_a_closed_unit_below_the_limit_is_room():
    plastic, growth = FakePlastic(a=[0.9, 0.1]), Growth(limit=2, revive=2)
    growth.step(1.0, plastic)
    assert not growth.done
    growth.step(0.9, plastic)
    assert plastic.sizes() == {"a": 2} and growth.done


def test_a_group_without_a_limit_keeps_growing():
    plastic, growth = FakePlastic(a=[0.9], b=[0.9]), Growth(limit={"a": 1})
    assert growth.step(1.0, plastic).changes == {"b": (1, 2)}
    assert not growth.done


def test_max_params():
    plastic, growth = FakePlastic(a=[0.9, 0.9]), Growth(max_params=10)  # three parameters a unit
    for loss in (1.0, 0.9, 0.8, 0.7):
        growth.step(loss, plastic)
    assert plastic.physical() == {"a": 4} and growth.done


def test_only():
    plastic, growth = FakePlastic(conv1=[0.9], conv2=[0.9], head=[0.9]), Growth(only=["conv*"])
    assert set(growth.step(1.0, plastic).changes) == {"conv1", "conv2"}


@pytest.mark.parametrize(("units", "sizes"), [(2, [12, 14]), (0.25, [12, 15]), (0.01, [11, 12])])
def test_several_units_at_a_time(units, sizes):
    plastic, growth = FakePlastic(a=[0.9] * 10), Growth(units=units)
    seen = []
    for loss in (1.0, 0.9):
        growth.step(loss, plastic)
        seen.append(plastic.group("a").size)
    assert seen == sizes


def test_a_step_never_passes_the_limit():
    plastic, growth = FakePlastic(a=[0.9] * 10), Growth(units=1.0, limit=13)
    assert growth.step(1.0, plastic).changes == {"a": (10, 13)}


@pytest.mark.parametrize("loss", [math.nan, math.inf, torch.tensor(math.nan)])
def test_a_loss_that_is_no_number_changes_nothing(loss):
    plastic, growth = FakePlastic(a=[0.9]), Growth()
    growth.step(1.0, plastic)
    before = growth.state_dict()
    with pytest.raises(NonFiniteLossError, match=r"at step 2; nothing was grown"):
        growth.step(loss, plastic)
    assert plastic.physical() == {"a": 2} and growth.state_dict() == before


def test_a_refused_resize_changes_nothing():
    plastic, growth = FakePlastic(a=[0.9], b=[0.9, 0.1]), Growth(revive=1)
    plastic.refuse = True
    before = growth.state_dict()
    with pytest.raises(ResizeError):
        growth.step(1.0, plastic)
    assert growth.state_dict() == before and plastic.sizes() == {"a": 1, "b": 1}
    plastic.refuse = False
    growth.step(1.0, plastic)
    assert plastic.sizes() == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": 0}, "units must be an int >= 1 or a float fraction > 0 of the size, got 0"),
        ({"units": True}, "units must be an int >= 1 or a float fraction > 0 of the size, got True"),
        ({"units": -0.5}, "units must be an int >= 1 or a float fraction > 0 of the size, got -0.5"),
        ({"limit": 0}, "limit must be a whole number >= 1, got 0"),
        ({"limit": {"a": 0}}, "limit must be a whole number >= 1, got 0"),
        ({"max_params": 0}, "max_params must be a whole number >= 1, got 0"),
        ({"revive": 0}, "revive must be a whole number >= 1, got 0"),
        ({"patience": 0}, "patience must be a whole number >= 1 of validations, got 0"),
        ({"grace": -1}, "grace must be a whole number >= 0 of calls of backward, got -1"),
        ({"grace": 0.5}, "grace must be a whole number >= 0 of calls of backward, got 0.5"),
        ({"min_delta": math.nan}, "min_delta must be a finite number >= 0, got nan"),
        ({"only": []}, "only must name at least one group, got none"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ConfigurationError) as error:
        Growth(**options)
    assert str(error.value) == message


@pytest.mark.parametrize("option", [{"only": "fc*"}, {"limit": {"fc*": 2}}])
def test_patterns_that_match_nothing_are_refused(option):
    with pytest.raises(ConfigurationError, match=r"(only|limit): 'fc\*' matches no unit group; there are \['a'\]"):
        Growth(**option).step(1.0, FakePlastic(a=[0.9]))


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=8, max_size=8), st.integers(0, 8))
def test_a_resumed_run_continues_identically(losses, stop):
    def world():
        return FakePlastic(a=[0.9, 0.2], b=[0.9]), Growth(limit={"b": 4}, patience=3, revive=2)

    plastic, growth = world()
    for loss in losses:
        growth.step(loss, plastic)
    resumed, first = world()
    for loss in losses[:stop]:
        first.step(loss, resumed)
    second = world()[1]
    second.load_state_dict(first.state_dict())
    for loss in losses[stop:]:
        second.step(loss, resumed)
    assert resumed.sizes() == plastic.sizes() and resumed.physical() == plastic.physical()
    assert second.state_dict() == growth.state_dict()


def test_the_state_survives_a_weights_only_load(tmp_path):
    growth = Growth(revive=1)
    growth.step(1.0, FakePlastic(a=[0.9, 0.2], b=[0.9]))
    torch.save(growth.state_dict(), tmp_path / "state.pt")
    loaded = Growth()
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert loaded.history == growth.history and loaded.state_dict() == growth.state_dict()


def test_foreign_states_are_refused():
    growth = Growth()
    before = growth.state_dict()
    with pytest.raises(CheckpointError, match="it lacks bar, best, history, over, stale, waited"):
        growth.load_state_dict({"steps": 3})
    assert growth.state_dict() == before


@settings(deadline=None)
@given(
    st.integers(1, 30),
    st.integers(0, 30),
    st.integers(0, 5),
    st.one_of(st.integers(1, 9), st.floats(0.01, 2.0)),
    st.one_of(st.integers(1, 40), st.just(math.inf)),
)
def test_units_to_open_keeps_its_bounds(size, closed, waited, units, limit):
    closed = min(closed, size)
    reopened, added = units_to_open(size, closed, waited, units=units, limit=limit, revive=3)
    assert 0 <= reopened <= closed and added >= 0
    assert not added or (reopened == closed and size + added <= limit)  # dead slots first
    assert not (reopened or added) or not closed or waited >= 3
    if limit == math.inf and (not closed or waited >= 3):
        assert reopened + added == (max(1, int(units * size)) if isinstance(units, float) else units)


def test_closed_units_in_order_of_keep_probability():
    group = FakeGroup("a", FakeGate([0.4, 0.9, 0.1, 0.3, 0.2], grace=[0, 0, 0, 0, 9]))
    assert closed_units(group) == [2, 3, 0]


def test_each_group_has_its_pace():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)
    )
    plastic = npn.attach(model, torch.zeros(2, 2))
    growth = Growth(units={"0": 1.0, "2": 2}, limit={"0": 8, "2": 5})
    assert growth.step(1.0, plastic).changes == {"0": (4, 8), "2": (3, 5)}
    assert growth.done  # the group that has no pace cannot keep it going
    with pytest.raises(ConfigurationError, match="units: 'nothing' matches no unit group"):
        Growth(units={"nothing": 1}).step(1.0, plastic)
    with pytest.raises(
        ConfigurationError, match="units must be an int >= 1 or a float fraction > 0 of the size, got 0"
    ):
        Growth(units={"*": 0})


@pytest.mark.parametrize(
    ("frozen", "named"),
    [
        (["0.weight", "0.bias"], "0.weight, 0.bias"),
        (["2.weight", "2.bias"], "2.weight"),
        (["0.weight", "0.bias", "2.weight", "2.bias", "4.weight"], "0.weight, 0.bias, 2.weight and 2 more"),
    ],
)
def test_units_that_cannot_learn_are_said_aloud(frozen, named):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    plastic = npn.attach(model, torch.randn(6, 3))
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    message = (
        f"new units have entries in frozen parameters, which will not learn: {named}. Call requires_grad_(True) on "
        "them and give them to an optimizer, or do not grow these groups"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$") as caught:
        plastic.grow({"0": 2, "2": 1} if len(frozen) > 2 else {"0": 2})
    assert len(caught) == 1 and caught[0].filename == __file__
    plastic.close("0", [1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plastic.compact()
