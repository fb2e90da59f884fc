"""The bench of the comparison: which runs it makes, what time leaves undone, and the files that it writes."""

import json
import shutil
from functools import partial

import pytest

from npn.errors import ConfigurationError
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.engine.stopping import Deadline, Interrupted, OutOfTime
from npn.experiments.peers import bench as peers
from npn.experiments.peers import runs as peer_runs
from npn.experiments.peers.arms import NAMES
from npn.experiments.peers.options import PeerOptions
from npn.experiments.peers.recipe import defaults
from npn.experiments.peers.tuning import SEED, best, settings

from .conftest import unrendered

ARMS = ("reinmax", "slimming", "rigl", "found", "torch-pruning")


class Trainer:
    """Writes results as a training would; the validation accuracy is best in trial 1."""

    def __init__(self, limit=10**9):
        self.made, self.options, self.limit = [], {}, limit

    def __call__(self, experiment, options, path, resume):
        if len(self.made) == self.limit:
            raise Interrupted
        self.made.append(path.name)
        self.options[path.name] = options
        directory = RunDirectory(path)
        directory.start(options.over(defaults(options)))
        options = directory.options(PeerOptions)
        trial = options.settings == settings("torch-pruning" if options.mode == "group-sparsity" else options.mode, 1)
        accuracy = 0.9 + 0.05 * ("trial1" in path.name) + 0.001 * options.seed * (options.seed < SEED)
        directory.append({"validation_loss": 0.5})
        directory.finish(
            {
                "experiment": "peers", "mode": options.mode, "seed": options.seed, "accuracy": accuracy,
                "validation_accuracy": accuracy, "params": 100, "params_with_biases": 110, "macs": 100,
                "sparse_macs": 100, "training_macs": 1000, "seconds": 2.0, "architecture": "3-4",
                "stages": [{"epochs": 6}], "options": options.as_dict(), "versions": {"npn": "0"},
                "machine": {"processor": "p", "cores": 1, "threads": 1, "device": "cpu"}, "trial": trial,
                **({"before": {"training_macs": 500, "seconds": 1.0}} if options.start else {}),
            }
        )  # fmt: skip


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "missing", partial(peer_runs.missing, problem=lambda network: None))
    wanted = peers.Wanted(("lenet300",), ARMS, (0.1,), (0, 1), trials=2)

    def bench(train, wanted=wanted, rendered=()):
        with unrendered(*rendered):
            return peers.bench(tmp_path / "out" / "p", tmp_path / "runs", PeerOptions(epochs="1,2,1"), wanted, train)

    return bench


def test_trials_choose_the_settings_of_the_runs(bench, tmp_path):
    train = Trainer()
    files, stopped = bench(train, rendered=["p.png"])
    assert not stopped and [file.name for file in files] == ["p.json", "p.md", "p.png"]
    assert len(train.made) == len(set(train.made)) == 4 * 4 + 4, "what torch-pruning continues is trained as well"
    assert train.made[:2] == ["reinmax-trial0-0.1-100", "reinmax-trial1-0.1-100"]
    assert {name for name in train.made if not name.endswith("-100")} == {
        *(f"{arm}-trial1-0.1-{seed}" for arm in ("reinmax", "rigl", "found", "torch-pruning") for seed in (0, 1)),
        *(f"group-sparsity-trial1-{seed}" for seed in (0, 1)),
    }
    assert train.options["found-trial1-0.1-1"].like == str(tmp_path / "runs" / "lenet300" / "reinmax-trial1-0.1-1")
    start = train.options["torch-pruning-trial1-0.1-1"].start
    assert start == str(tmp_path / "runs" / "lenet300" / "group-sparsity-trial1-1")
    summary = json.loads(files[0].read_text())["networks"][0]
    points = {point["mode"]: point for point in summary["points"]}
    assert points["reinmax"]["runs"] == 2 and points["reinmax"]["training_macs"]["mean"] == 1000
    assert points["torch-pruning"]["training_macs"]["mean"] == 1500, "both of its runs"
    assert summary["missing"] == [{"mode": "slimming", "budget": 0.1, "runs": 2, "why": "needs BatchNorm"}]
    assert [len(cell["trials"]) for cell in summary["trials"]] == [2] * 4
    assert {entry["second"] for entry in summary["differences"]} == {"found", "torch-pruning"}
    again = Trainer()
    bench(again)
    assert again.made == []


def test_what_has_not_run_is_said(bench):
    some = Trainer(limit=7)  # of two methods two trials and a seed each; a trial of the third
    files, stopped = bench(some, rendered=["p.png"])
    assert stopped
    page = files[1].read_text()
    assert "| NPN, ReinMax | 10.0% | 1 (1 not run) | 100 |" in page
    assert "| RigL | 10.0% | 1 (1 not run) | 100 |" in page
    assert "| plain net, widths that NPN (ReinMax) found, from scratch | 10.0% | not run |" in page
    assert "| Torch-Pruning, group norm | 10.0% | not run |" in page
    assert "| network slimming | 10.0% | needs BatchNorm |" in page
    rest = Trainer()
    files, stopped = bench(rest)
    assert not stopped and len(rest.made) == 13 and "not run" not in files[1].read_text()


def test_nothing_has_run(bench):
    files, stopped = bench(Trainer(limit=0), rendered=["p.png"])
    assert stopped and files[1].read_text().count("not run") == 4 * 2, "in the table and among the trials"
    assert all(file.stat().st_size > 0 for file in files)


def test_without_torch_pruning(bench, monkeypatch):
    monkeypatch.setattr(peers, "missing", partial(peer_runs.missing, problem=lambda network: f"fails on {network}"))
    train = Trainer()
    files, stopped = bench(train)
    assert not stopped and not any("torch-pruning" in name for name in train.made)
    assert "| Torch-Pruning, group norm | 10.0% | fails on lenet300 |" in files[1].read_text()


def test_the_best_methods_of_the_other_networks_run_on_resnet20(bench, monkeypatch):
    with pytest.raises(ConfigurationError, match=r"^the best 4 methods are not known: expected finished runs of the "):
        bench(Trainer(), peers.Wanted(("resnet20",), (), (0.4,), (0,), trials=1))
    monkeypatch.setattr(peers, "BEST", 2)
    monkeypatch.setitem(peers.NETWORKS, "lenet300", peers.NETWORKS["lenet300"].__class__(
        **vars(peers.NETWORKS["lenet300"]) | {"budgets": (0.1,)}
    ))  # fmt: skip
    bench(Trainer(), peers.Wanted(("lenet300",), ("reinmax", "one-shot", "rigl", "scratch"), (0.1,), (0,), trials=1))
    train = Trainer()
    bench(train, peers.Wanted(("resnet20",), (), (0.4,), (0,), trials=1))
    ran = {name.split("-trial")[0] for name in train.made}
    assert ran == {"reinmax", "one-shot", "scratch", "found"}, "methods on units, and plain nets"


def test_an_earlier_table_is_added_to(bench, tmp_path):
    files, _ = bench(Trainer())
    before = json.loads(files[0].read_text())
    shutil.rmtree(tmp_path / "runs")
    less = Trainer(limit=7)  # one seed of two methods
    bench(less, peers.Wanted(("lenet300",), ARMS, (0.2, 0.1), (0, 1), trials=2))
    found = json.loads(files[0].read_text())
    entry, then = found["networks"][0], before["networks"][0]
    for key in ("points", "trials"):
        assert [each for each in entry[key] if each["budget"] == 0.1] == sorted(
            then[key], key=lambda each: NAMES.index(each["mode"])
        )
    assert {(p["mode"], p["runs"]) for p in entry["points"] if p["budget"] == 0.2} == {("reinmax", 1), ("rigl", 1)}
    assert [c["mode"] for c in entry["missing"] if c["budget"] == 0.1] == ["slimming"]
    assert [d for d in entry["differences"] if d["budget"] == 0.1] == then["differences"]
    assert found["earlier"] == [{key: before[key] for key in ("command", "options", "versions", "machine")}] or (
        found["command"] == before["command"]
    )
    rest = Trainer()
    bench(rest, peers.Wanted(("lenet300",), ("rigl",), (0.2,), (0, 1), trials=2))
    assert rest.made == ["rigl-trial1-0.2-1"], "what the folder has is not run again"
    assert len(json.loads(files[0].read_text())["networks"][0]["points"]) == 4 + 2


def test_another_number_of_trials_begins_a_new_table(bench, tmp_path):
    files, _ = bench(Trainer())
    shutil.rmtree(tmp_path / "runs")
    bench(Trainer(), peers.Wanted(("lenet300",), ("rigl",), (0.2,), (0, 1), trials=1))
    assert [p["mode"] for p in json.loads(files[0].read_text())["networks"][0]["points"]] == ["rigl"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (peers.Wanted(("vgg",)), r"^networks must be among lenet300, lenet5, resnet20, got 'vgg'$"),
        (peers.Wanted(("lenet5",), ("grow",)), r"^arms must be among reinmax, .*, set, got 'grow'$"),
        (peers.Wanted(("lenet5",), (), (5320.0,)), r"^budgets are shares of the weights in \(0, 1\], got 5320$"),
        (peers.Wanted(("lenet5",), trials=0), r"^trials must be at least 1, got 0$"),
    ],
)
def test_names_and_numbers_that_there_are_not(bench, wanted, message):
    train = Trainer()
    with pytest.raises(ConfigurationError, match=message):
        bench(train, wanted)
    assert train.made == []


def test_all_methods_have_as_many_trials_and_the_same_learning_rates():
    for trial in range(1, 5):
        drawn = {name: settings(name, trial) for name in NAMES}
        assert len({(each["learning_rate"], each["weight_decay"]) for each in drawn.values()}) == 1
    assert len({settings("arm", trial)["learning_rate"] for trial in range(5)}) == 5


def test_the_best_trial_is_no_diverged_one():
    trials = [{"validation_accuracy": 0.9, "validation_loss": loss} for loss in (float("nan"), 0.4, 0.3, 0.5)]
    assert best(trials) == 2


def test_runs_share_one_limit_of_time():
    assert Deadline(None).left() is None and 0 < Deadline(5).left() <= 5
    over = Deadline(1e-9)
    with pytest.raises(OutOfTime):
        over.left()
