"""A bench's arms: what is trained, after what, for how long."""

import json

import pytest

from npn.errors import ConfigurationError
from npn.experiments.engine.bench import difference_lines, differences
from npn.experiments.engine.campaign import Arm, Campaign
from npn.experiments.engine.rundir import RunDirectory, finished_run, write_json
from npn.experiments.lenet5 import recipe as lenet5
from npn.experiments.lenet5.arms import ARMS, COMPARED, LABELS
from npn.experiments.lenet5.options import LeNetOptions


@pytest.fixture
def campaign(tmp_path):
    """A campaign whose runs cost 100 MACs an epoch for plain nets, and 1,000 for others."""
    made = []

    def train(experiment, options, path, resume):
        made.append((path.name, options))
        directory = RunDirectory(path)
        directory.start(options.over(lenet5.defaults(options)))
        epochs = sum(int(part) for part in options.epochs.split(","))
        macs = epochs * (100 if options.mode == "scratch" else 1000)
        write_json(directory.result_file, {"training_macs": macs, "stages": [{"epochs": epochs}]})

    options = LeNetOptions(epochs="1,2,3")
    return Campaign(tmp_path, lenet5.EXPERIMENT, options, lenet5.STAGES, ARMS, train), made


def test_runs_follow_those_that_they_depend_on(campaign, tmp_path):
    runs, made = campaign
    found = runs.trained([0], ["scratch-macs", "found"])
    names = [name for name, _ in made]
    assert names[:3] == ["scratch-1600-0", "sparsify-1600-0", "scratch-macs-1600-0"]
    assert [(name, run.path.name) for name, run in found] == [
        (arm, f"{arm}-{budget}-0") for arm in ("scratch-macs", "found") for budget in (1600, 2750, 5320)
    ]
    assert len(names) == len(set(names)) == 12, "the shrunk nets serve both arms"
    settings = dict(made)
    assert settings["found-5320-0"].like == str(tmp_path / "sparsify-5320-0")
    assert settings["scratch-1600-0"].epochs == "6", "one stage, as long as the three"
    assert settings["scratch-macs-1600-0"].epochs == "60", "6,000 MACs at 100 an epoch"


def test_a_teacher_is_of_the_same_seed_and_has_no_budget(campaign, tmp_path):
    runs, made = campaign
    runs.trained([3], ["taught"])
    assert [name for name, _ in made] == ["dense-augmented-3", "taught-5320-3"]
    assert made[1][1].teacher == str(tmp_path / "dense-augmented-3") and made[1][1].augment and made[0][1].augment
    assert made[0][1].budget is None


def test_a_folder_of_runs_may_be_moved(campaign, tmp_path):
    runs, made = campaign
    runs.runs = tmp_path / "here"
    runs.trained([0], ["found"])
    before = len(made)
    runs.runs = runs.runs.rename(tmp_path / "there")
    assert [run.path.parent.name for _, run in runs.trained([0], ["found"])] == 3 * ["there"] and len(made) == before
    runs.options = LeNetOptions(epochs="1,2,4")
    with pytest.raises(ConfigurationError, match=r"holds a run with other settings: expected .*epochs='1,2,4'"):
        runs.trained([0], ["sparsify"])


def test_every_arm_has_a_label_and_depends_on_arms_that_there_are():
    assert set(LABELS) == set(ARMS)
    for arm in ARMS.values():
        assert {arm.like, arm.teacher, arm.macs_of, arm.base} - {None} <= set(ARMS)
        assert (arm.macs_of is None) == (arm.base is None)
    assert {name for pair in COMPARED for name in pair} <= set(ARMS)


def test_differences_are_paired_by_seed():
    def result(mode, seed, accuracy, budget=2.0):
        validation = {"validation_accuracy": accuracy**2}
        return {"mode": mode, "seed": seed, "accuracy": accuracy, **validation, "options": {"budget": budget}}

    runs = [result("a", 0, 0.5), result("a", 1, 0.7), result("b", 1, 0.6), result("b", 0, 0.5), result("b", 9, 0.1)]
    (entry,) = differences([*runs, result("a", 0, 0.9, budget=3.0)], [("a", "b"), ("a", "c")])
    assert entry["accuracy"]["pairs"] == 2 and entry["accuracy"]["mean"] == pytest.approx(0.05)
    assert entry["accuracy"]["half_width"] == pytest.approx(12.706 * 0.05, rel=1e-3)  # t(0.975, 1) s / sqrt 2
    assert entry["validation_accuracy"]["mean"] == pytest.approx((0.0 + 0.13) / 2)
    assert "| a - b | 2 | 2 | +5.00 ± 63.53 | +6.50 ± 82.59 |" in "\n".join(difference_lines([entry]))
    assert difference_lines([]) == []
    full = [result("full", 0, 0.8, budget=None), result("full", 1, 0.8, budget=None)]  # no budget: beside every one
    (beside,) = differences([*runs, *full], [("a", "full")])
    assert beside["budget"] == 2.0 and beside["accuracy"]["mean"] == pytest.approx(-0.2)


def test_arms_without_runs_to_depend_on(tmp_path):
    with pytest.raises(ConfigurationError, match=r"^expected a finished run of lenet5-mnist in .*, found no result"):
        finished_run(tmp_path, "lenet5-mnist")
    write_json(tmp_path / "result.json", {"experiment": "moons"})
    with pytest.raises(ConfigurationError, match=r"in .*, found one of moons$"):
        finished_run(tmp_path, "lenet5-mnist")


def test_a_mode_that_no_arm_has(campaign):
    runs, made = campaign
    with pytest.raises(ConfigurationError, match=r"^modes must be among sparsify, .*, got 'shrink'$"):
        runs.trained([0], ["sparsify", "shrink"])
    assert made == [] and isinstance(ARMS["dense"], Arm)


def test_runs_of_versions_that_had_fewer_settings_are_used(campaign, tmp_path):
    runs, made = campaign
    directory = runs.run("scratch", 0, 1600.0)
    saved = json.loads(directory.options_file.read_text())
    del saved["augment"]
    write_json(directory.options_file, saved)
    assert runs.run("scratch", 0, 1600.0).path == directory.path and len(made) == 1
    write_json(directory.options_file, saved | {"augment": True})
    with pytest.raises(ConfigurationError, match="holds a run with other settings"):
        runs.run("scratch", 0, 1600.0)
