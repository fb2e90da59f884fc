"""What the benchmarks measure with; no time is asserted."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import npn
from npn.experiments.engine import timing

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import common

    return common


class Clock:
    """Time that passes only where a call lets it."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.drift = 1.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def call(self, seconds, log, name):
        def run():
            log.append(name)
            self.now += seconds * self.drift
            self.drift *= 1.001  # the machine slows down all the time

        return run


def test_ratios_are_taken_between_two_baselines_and_outlive_drift(monkeypatch):
    clock, log = Clock(monkeypatch), []
    calls = {"plain": clock.call(2.0, log, "plain"), "twice": clock.call(4.0, log, "twice")}
    found = timing.interleaved(calls, "plain", rounds=5, repeats=2, warmup=1)
    assert log[:9] == 9 * ["plain"] and log[9:18] == 3 * ["plain"] + 3 * ["twice"] + 3 * ["plain"]
    assert len(log) == 6 * 18 and len(found["twice"].ratios) == 5
    summary = found["twice"].summary()
    assert summary["median"] == pytest.approx(2.0, abs=1e-3)
    assert found["plain"].summary()["median"] == pytest.approx(1.0, abs=1e-3)
    assert found["twice"].seconds[-1] > 1.05 * found["twice"].seconds[0], "the drift that the ratios do not show"


def test_seconds_are_per_call_without_the_first(monkeypatch):
    clock, log = Clock(monkeypatch), []
    clock.drift = 1.0
    taken = timing.seconds(clock.call(3.0, log, "a"), repeats=1)
    assert taken == pytest.approx(3.0 * 1.001) and len(log) == 2
    timing.seconds(clock.call(3.0, log, "b"), warm=False)
    assert log == ["a", "a", "b"]


def test_one_value_is_its_own_quartile():
    assert timing.quartiles([0.5]) == {"median": 0.5, "quartile_low": 0.5, "quartile_high": 0.5}


def test_files_name_the_command_and_the_processor(common, tmp_path, monkeypatch):
    monkeypatch.setattr(common.sys, "argv", ["/somewhere/benchmarks/step.py", "--rounds", "3"])
    row = {"median": 1.234, "quartile_low": 1.0, "quartile_high": 1.5, "seconds": 0.0125}
    table = common.timing_table({"arm": row, "plain": row}, "step", aim={"arm": "1.45"})
    json_file, page = common.write(tmp_path / "new" / "step", "Title", {"rows": {"arm": row}}, [table], ["A note."])
    found = json.loads(json_file.read_text())
    assert found["command"] == "python benchmarks/step.py --rounds 3" and found["rows"] == {"arm": row}
    assert found["machine"]["processor"] and found["machine"]["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"]
    text = page.read_text()
    assert text.startswith("# Title\n\n| step | ratio | quartiles | ms | aim |")
    assert "| arm | 1.23 | 1.00-1.50 | 12.50 | 1.45 |" in text and "| plain | 1.23 | 1.00-1.50 | 12.50 | - |" in text
    assert "A note." in text and found["machine"]["processor"] in text


def test_widths_are_as_a_run_prints_them(common):
    assert npn.count_params(common.lenet5()) == 431080
    assert common.lenet5("9-8-128-23").fc1.weight.shape == (23, 128)


@pytest.mark.parametrize("text", ["9-8-127-23", "9-8-23", "nine"])
def test_other_widths_are_refused(common, text):
    with pytest.raises(SystemExit, match=f"expected an architecture such as 20-50-800-500, .* got '{text}'"):
        common.lenet5(text)


def test_a_round_of_resizes_ends_at_the_size_where_it_began(common):
    import resize

    subject = resize.Subject()
    sizes = {group.name: group.size for group in subject.plastic.groups}
    subject.close()
    seen = []
    for call in (*subject.whole().values(), *subject.parts().values()):
        call()
        seen.append({group.name: group.size for group in subject.plastic.groups})
    smaller = {name: size - round(0.1 * size) for name, size in sizes.items()}
    assert seen == [smaller, smaller, sizes, sizes, sizes, sizes, smaller, smaller, smaller, sizes]


def test_below_zero_probability_nothing_is_removed():
    """What `benchmarks/runs.py` means by masks alone."""
    plastic = npn.attach(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)), torch.zeros(2, 3))
    for k in (7.0, math.inf):
        plastic.k = k
        with torch.no_grad():
            plastic.logits()[0][:3] = -100.0
        assert not plastic.compact(below=0.0) and plastic.groups[0].size == 6
    assert plastic.compact(below=1e-9) and plastic.groups[0].size == 3


def test_memory_of_a_step_is_counted_with_weights_under_masks(common):
    """Weights, gradients and momentum, the kept activations, and a masked copy of what reads closed units."""
    import runs

    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 4)
    plastic = npn.attach(model, x)
    weights = torch.optim.SGD(plastic.weights(), lr=0.1, momentum=0.9)
    gates = torch.optim.SGD(plastic.logits(), lr=0.1)
    recipe = SimpleNamespace(forward=lambda model, x: model(x), step=lambda *_: None, weights=weights, gates=gates)
    memory = runs.Memory(recipe)
    for closed in ([], [3]):
        plastic.close("0", closed)
        for number in range(3):  # the momentum is made in the first step
            recipe.step(None, 0, number)
            weights.zero_grad()
            plastic.backward(lambda: recipe.forward(model, x).sum())
            weights.step()
    parameters, logits, hidden = 8 * 4 + 8 + 2 * 8 + 2, 8, 16 * 8
    every = 4 * (3 * parameters + 2 * logits + hidden)
    assert memory.found[0] == every and memory.found[1] >= every + 4 * 2 * 8


def test_the_mode_of_the_antithetic_pass_matters_with_batch_statistics_only(common):
    """Without BatchNorm both modes are the same to the last bit; the network is as it was afterwards."""
    import antithetic

    x, y = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 2
    for normalised in (False, True):
        torch.manual_seed(0)
        middle = nn.BatchNorm1d(6) if normalised else nn.Identity()
        model = nn.Sequential(nn.Linear(4, 6), middle, nn.ReLU(), nn.Linear(6, 2))
        plastic = npn.attach(model, x, estimator="arm")
        plastic.k = 1.0
        before = {name: value.clone() for name, value in model.state_dict().items()}

        def loss(model=model):
            return nn.functional.cross_entropy(model(x), y)

        train, evaluated = (antithetic.differences(plastic, loss, mode, draws=5) for mode in (False, True))
        assert len(set(train)) > 1 and (train == evaluated) == (not normalised)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert train == antithetic.differences(plastic, loss, False, draws=5)
