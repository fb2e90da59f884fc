import math
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npn.errors import CheckpointError, ConfigurationError
from npn.schedule import Plateau, Schedule, Stage, annealed


@pytest.fixture
def plastic():
    return SimpleNamespace(k=-1.0)


def paper_schedule():
    return Schedule(Stage("pretrain", 2), Stage("plastic", 3, k=7.0), Stage("finetune", 1))


def plateau_schedule():
    return Schedule(
        Stage("pretrain", 2),
        Stage("plastic", 6, k=1.0, k_end=32.0, until=Plateau(patience=2, min_delta=0.1)),
        Stage("finetune", 3, until=Plateau(patience=1, mode="max", minimum=2)),
    )


def run(schedule, plastic, metrics, stop_after=math.inf):
    """Loop over the schedule and return what each epoch was like."""
    log = []
    for epoch in schedule:
        stage = schedule.enter(epoch, plastic)
        schedule.observe(metrics[epoch])
        log.append((epoch, stage.name, plastic.k))
        if epoch >= stop_after:
            break
    return log


def test_stages_follow_from_the_epoch_number(plastic):
    schedule = paper_schedule()
    seen = []
    for epoch in range(schedule.epochs):
        assert not schedule.done
        seen.append((schedule.enter(epoch, plastic).name, plastic.k))
    assert seen == [("pretrain", math.inf)] * 2 + [("plastic", 7.0)] * 3 + [("finetune", math.inf)]
    assert schedule.done
    assert schedule.spans() == [("pretrain", 0, 2), ("plastic", 2, 5), ("finetune", 5, 6)]


def test_iteration_gives_each_epoch_once(plastic):
    schedule = paper_schedule()
    assert schedule.stage is None
    assert [epoch for epoch, _, _ in run(schedule, plastic, [0.0] * 6)] == [0, 1, 2, 3, 4, 5]
    assert list(schedule) == []
    assert schedule.stage is schedule.stages[-1]


def test_epochs_may_be_entered_in_any_order(plastic):
    schedule = paper_schedule()
    assert [schedule.enter(epoch, plastic).name for epoch in (4, 0, 5, 2)] == [
        "plastic",
        "pretrain",
        "finetune",
        "plastic",
    ]


@pytest.mark.parametrize("epoch", [-1, 6, 1.0, True])
def test_epochs_outside_the_schedule_are_refused(plastic, epoch):
    with pytest.raises(ConfigurationError, match=r"epoch must be a whole number from 0 to 5, got"):
        paper_schedule().enter(epoch, plastic)
    assert plastic.k == -1.0


def test_annealing_meets_both_ends_exactly(plastic):
    schedule = Schedule(Stage("a", 5, k=0.1, k_end=1000.0), Stage("b", 3, k=0.0, k_end=9.0, anneal="linear"))
    ks = []
    for epoch in schedule:
        schedule.enter(epoch, plastic)
        ks.append(plastic.k)
    assert ks[0] == 0.1 and ks[4] == 1000.0 and ks[5:] == [0.0, 4.5, 9.0]
    assert ks[:5] == pytest.approx([0.1, 1.0, 10.0, 100.0, 1000.0])


@settings(deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(-1.0, 2.0), st.sampled_from(["geometric", "linear"]))
def test_annealed_stays_between_its_ends(start, end, fraction, how):
    low, high = min(start, end), max(start, end)
    assert low * (1 - 1e-12) <= annealed(start, end, fraction, how) <= high * (1 + 1e-12)
    assert annealed(start, end, fraction, how) == pytest.approx(annealed(end, start, 1.0 - fraction, how))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule(), "a schedule needs at least one stage, got none"),
        (lambda: Schedule(Stage("a", 1), Stage("a", 2)), "stage names must differ, used more than once: 'a'"),
        (lambda: Schedule("a"), "a schedule is made of npn.Stage objects, got 'a'"),
        (lambda: Stage("", 1), "a stage needs a non-empty name, got ''"),
        (lambda: Stage("a", 0), "stage 'a': epochs must be a whole number >= 1, got 0"),
        (lambda: Stage("a", 1.5), "stage 'a': epochs must be a whole number >= 1, got 1.5"),
        (lambda: Stage("a", 1, k=-1.0), "stage 'a': k must be >= 0 (math.inf is a mode), got -1.0"),
        (lambda: Stage("a", 1, k=math.nan), "stage 'a': k must be >= 0 (math.inf is a mode), got nan"),
        (
            lambda: Stage("a", 2, k=1.0, k_end=2.0, anneal="x"),
            "stage 'a': anneal must be \"geometric\" or \"linear\", got 'x'",
        ),
        (
            lambda: Stage("a", 2, k_end=7.0),
            "stage 'a': k_end needs a finite k and must itself be finite and >= 0, got k=inf, k_end=7.0; "
            "anneal to a large finite k and let the next stage have k=math.inf",
        ),
        (
            lambda: Stage("a", 2, k=0.0, k_end=7.0),
            "stage 'a': geometric annealing needs k > 0 and k_end > 0, got k=0.0, k_end=7.0; use anneal=\"linear\"",
        ),
        (lambda: Stage("a", 1, k=1.0, k_end=7.0), "stage 'a': k_end needs at least 2 epochs, got epochs=1"),
        (lambda: Plateau(0), "Plateau patience must be a whole number >= 1, got 0"),
        (lambda: Plateau(1, minimum=-1), "Plateau minimum must be a whole number >= 0, got -1"),
        (lambda: Plateau(1, min_delta=-0.1), "Plateau min_delta must be a finite number >= 0, got -0.1"),
        (lambda: Plateau(1, mode="least"), 'Plateau mode must be "min" or "max", got \'least\''),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ConfigurationError) as error:
        make()
    assert str(error.value) == message


def test_infinite_k_end_is_refused():
    with pytest.raises(ConfigurationError, match=r"k_end needs a finite k and must itself be finite"):
        Stage("a", 2, k=1.0, k_end=math.inf)


def test_a_plateau_ends_its_stage_and_shortens_the_training(plastic):
    # In the second stage 0.95 and 0.92 improve by less than 0.1; the third must last two epochs.
    metrics = [9.0, 9.0, *[1.0, 0.95, 0.92], *[0.5, 0.5, 0.5]]
    schedule = plateau_schedule()
    log = run(schedule, plastic, metrics)
    assert [name for _, name, _ in log] == ["pretrain"] * 2 + ["plastic"] * 3 + ["finetune"] * 2
    assert schedule.spans() == [("pretrain", 0, 2), ("plastic", 2, 5), ("finetune", 5, 7)]
    assert schedule.epochs == 11
    assert log[4][2] == pytest.approx(4.0)  # annealing goes by the stage's full length


def test_a_metric_that_improves_keeps_the_stage_going(plastic):
    metrics = [9.0, 9.0, *[1.0, 0.95, 0.8, 0.75, 0.6, 0.55], *[0.5, 0.6, 0.7]]
    log = run(plateau_schedule(), plastic, metrics)
    assert [name for _, name, _ in log] == ["pretrain"] * 2 + ["plastic"] * 6 + ["finetune"] * 3


def test_nan_is_no_improvement(plastic):
    log = run(plateau_schedule(), plastic, [0.0, 0.0] + [math.nan] * 9)
    assert [name for _, name, _ in log].count("plastic") == 2
    assert Plateau(1).improves(1.0, None) and not Plateau(1).improves(math.nan, None)


def test_a_range_loop_spends_left_over_epochs_in_the_last_stage(plastic):
    schedule = plateau_schedule()
    metrics = [9.0, 9.0] + [1.0] * 9
    log = []
    for epoch in range(schedule.epochs):
        name = schedule.enter(epoch, plastic).name
        schedule.observe(metrics[epoch])
        log.append((name, plastic.k, schedule.done))
    assert [name for name, _, _ in log] == ["pretrain"] * 2 + ["plastic"] * 3 + ["finetune"] * 6
    assert [done for _, _, done in log] == [False] * 6 + [True] * 5
    assert all(k == math.inf for _, k, _ in log[5:])


def test_going_back_starts_afresh(plastic):
    schedule = plateau_schedule()
    metrics = [9.0, 9.0] + [1.0] * 9
    first = run(schedule, plastic, metrics)
    again = []
    for epoch in range(schedule.epochs):
        again.append((epoch, schedule.enter(epoch, plastic).name, plastic.k))
        schedule.observe(metrics[epoch])
        if schedule.done:
            break
    assert first == again


def test_going_back_restores_the_stages_that_a_plateau_ended(plastic):
    schedule = plateau_schedule()
    run(schedule, plastic, [1.0] * 11)
    schedule.enter(1, plastic)
    assert not schedule.done
    assert schedule.spans() == [("pretrain", 0, 2), ("plastic", 2, 8), ("finetune", 8, 11)]


def test_going_back_within_a_later_stage_keeps_the_earlier_end(plastic):
    schedule = plateau_schedule()
    run(schedule, plastic, [1.0] * 11)
    assert schedule.enter(5, plastic).name == "finetune"
    assert schedule.spans() == [("pretrain", 0, 2), ("plastic", 2, 5), ("finetune", 5, 8)]


def test_observe_before_the_first_epoch_is_refused():
    with pytest.raises(ConfigurationError, match=r"call enter\(epoch, plastic\) first"):
        plateau_schedule().observe(1.0)


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=11, max_size=11), st.integers(0, 10))
def test_a_resumed_run_continues_identically(metrics, stop):
    plastic = SimpleNamespace(k=-1.0)
    whole = run(plateau_schedule(), plastic, metrics)
    first = plateau_schedule()
    log = run(first, plastic, metrics, stop_after=stop)
    second = plateau_schedule()
    second.load_state_dict(first.state_dict())
    log += run(second, plastic, metrics)
    assert log == whole


def test_the_state_is_plain():
    schedule = plateau_schedule()
    next(iter(schedule))
    schedule.observe(0.5)

    def plain(value):
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or type(value) in (int, float, str)

    assert all(type(key) is str and plain(value) for key, value in schedule.state_dict().items())


def test_foreign_states_are_refused(plastic):
    schedule = paper_schedule()
    schedule.enter(3, plastic)
    before = schedule.state_dict()
    with pytest.raises(CheckpointError, match="the state belongs to other stages"):
        schedule.load_state_dict(plateau_schedule().state_dict())
    with pytest.raises(CheckpointError, match="lacks best, ends, epoch, stages, stale"):
        schedule.load_state_dict({})
    assert schedule.state_dict() == before
