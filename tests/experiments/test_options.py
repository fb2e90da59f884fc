"""Settings: what a user gives, what the experiment decides, and what a resumed run insists on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npn.errors import ConfigurationError
from npn.experiments.engine.options import Options, stage_lengths
from npn.experiments.lenet5 import recipe as lenet5
from npn.experiments.lenet5.options import LeNetOptions
from npn.experiments.resnet import recipe as resnet
from npn.experiments.resnet.options import ResNetOptions


@given(st.lists(st.integers(1, 400), min_size=1, max_size=5), st.data())
def test_a_total_is_divided_without_rest(default: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(len(default), 2000))
    lengths = stage_lengths(str(total), default)
    assert sum(lengths) == total
    assert len(lengths) == len(default)
    assert min(lengths) >= 1


def test_lengths_keep_the_proportions_of_the_default() -> None:
    assert stage_lengths(None, [20, 180, 20]) == [20, 180, 20]
    assert stage_lengths("220", [20, 180, 20]) == [20, 180, 20]
    assert stage_lengths("22", [20, 180, 20]) == [2, 18, 2]
    assert stage_lengths("4,5,6", [20, 180, 20]) == [4, 5, 6]


@pytest.mark.parametrize("epochs", ["2", "0", "-5", "1,2", "1,0,2", "many", "", "1.5"])
def test_lengths_that_cannot_be_are_refused(epochs: str) -> None:
    with pytest.raises(ConfigurationError, match="one per"):
        stage_lengths(epochs, [20, 180, 20])


def test_what_is_given_goes_over_the_defaults() -> None:
    options = Options(seed=3, penalty=0.0).over(Options(mode="expand", seed=0, penalty=1e-3, k=7.0))
    assert options == Options(mode="expand", seed=3, penalty=0.0, k=7.0)


def test_a_resumed_run_keeps_its_settings() -> None:
    saved = Options(mode="expand", seed=3, k=7.0)
    assert Options().resumed(saved) == saved
    assert Options(seed=3).resumed(saved) == saved
    with pytest.raises(ConfigurationError, match=r"seed=3.*seed=4"):
        Options(seed=4).resumed(saved)


def test_one_stage_has_one_number() -> None:
    with pytest.raises(ConfigurationError) as error:
        stage_lengths("1,2", [220])
    assert str(error.value) == "epochs must be one number of at least 1, got '1,2'"


def test_a_plain_net_has_no_price() -> None:
    with pytest.raises(ConfigurationError) as error:
        Options(mode="scratch", penalty=1e-6).checked_mode(["scratch"])
    assert str(error.value) == "scratch trains a plain net of the budget's size: give a budget, not a penalty"


@pytest.mark.parametrize("name", ["penalty", "budget"])
def test_the_full_net_has_no_price(name: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Options(mode="dense", **{name: 0.5}).checked_mode(["dense"])
    assert str(error.value) == "dense trains the full net at no price: leave out the penalty and the budget"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("name", ["penalty", "budget"])
def test_prices_and_budgets_are_finite(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError) as error:
        Options(mode="sparsify", **{name: value}).checked_mode(["sparsify"])
    assert str(error.value) == f"{name} must be a finite number of at least 0, got {value}"


@pytest.mark.parametrize(("mode", "overshoot"), [("sparsify", 2.0), ("expand", 0.9), ("expand", float("nan"))])
@pytest.mark.parametrize(("experiment", "settings"), [(lenet5, LeNetOptions), (resnet, ResNetOptions)])
def test_growth_alone_ends_above_its_budget(experiment, settings, mode: str, overshoot: float) -> None:
    options = settings(mode=mode, overshoot=overshoot)
    with pytest.raises(ConfigurationError) as error:
        experiment.build(options.over(experiment.defaults(options)))
    assert str(error.value) == (
        f"overshoot is for the mode 'expand' and at least 1, got {overshoot:g} for mode {mode!r}"
    )
