"""What the `npn` command does with settings: handed on as they were given, or refused in one line."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import requests
from typer.testing import CliRunner

import npn
from npn.cli import app, bench, run
from npn.cli.options import Launch
from npn.experiments.engine import processes, runner
from npn.experiments.engine.options import Options
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.engine.stopping import Interrupted
from npn.experiments.estimators import bench as estimators
from npn.experiments.estimators.bench import ESTIMATORS, Settings
from npn.experiments.growing import bench as growing
from npn.experiments.lenet5 import bench as frontier
from npn.experiments.lenet5 import recipe as lenet5
from npn.experiments.lenet5.options import LeNetOptions
from npn.experiments.moons import recipe as moons
from npn.experiments.moons.options import MoonsOptions
from npn.experiments.peers import bench as peers
from npn.experiments.peers.options import PeerOptions
from npn.experiments.resnet import bench as resnet_bench
from npn.experiments.resnet import recipe as resnet56
from npn.experiments.resnet.options import ResNetOptions

MAKEFILE = Path(__file__).parents[1] / "Makefile"


def call(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output.lstrip("\n")  # an empty progress display


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def finished(tmp_path):
    """A folder as a finished run leaves it."""
    directory = RunDirectory(tmp_path / "run")
    directory.start(Options(mode="sparsify", seed=1, epochs="2,3,2", device="cpu"))
    npn.save(directory.model_file, moons.MoonsNet(7, 4))
    sizes = {"params": 36, "params_with_biases": 42, "architecture": "7-4-2", "macs": 50}
    directory.finish({"experiment": "moons", "accuracy": 0.5, **sizes})
    return directory


# -- runs that are there


def test_a_finished_run_is_deleted_only_when_told_to(finished, monkeypatch):
    out, started = finished.path, []
    monkeypatch.setattr(runner, "run", lambda *args, **kwargs: started.append((args[2].path, kwargs["resume"])))
    before = content(out)
    message = f"error: {out} holds a finished run: --overwrite deletes it, --out takes another\n"
    assert call("run", "moons", "--seed", "1", "--out", out) == (1, message)
    assert not started and content(out) == before
    assert call("run", "moons", "--seed", "1", "--out", out, "--overwrite")[0] == 0
    assert started == [(out, False)]


def test_the_default_folder_is_protected_as_well(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished.path, "runs/moons-sparsify-0")
    message = "error: runs/moons-sparsify-0 holds a finished run: --overwrite deletes it, --out takes another\n"
    assert call("run", "moons") == (1, message)


def test_the_help_says_what_overwrite_deletes():
    text = CliRunner().invoke(app, ["run", "moons", "--help"], env={"COLUMNS": "200"}).output
    assert "Delete what an earlier run left in --out." in text


def test_the_demo_can_be_repeated():
    runs = [line for line in MAKEFILE.read_text().splitlines() if "/npn run " in line]
    assert runs and all("--overwrite" in line for line in runs)


@pytest.mark.parametrize("command", [("run",), ("bench",)])
def test_a_folder_that_cannot_be_is_refused_before_training(tmp_path, monkeypatch, command):
    monkeypatch.setattr(runner, "epochs", lambda *_: pytest.fail("nothing may train"))
    taken = tmp_path / "file"
    taken.touch()
    out = taken if command == ("run",) else taken / "moons"  # a bench writes beside this name
    message = f"cannot make the folder {taken} for results: [Errno 17] File exists: '{taken}'; --out takes another"
    assert call(*command, "moons", "--epochs", "1,1,1", "--out", out) == (1, f"error: {message}\n")


def test_settings_are_checked_before_a_file_is_written(tmp_path):
    code, text = call("run", "moons", "--epochs", "1,x,1", "--out", tmp_path / "run", "--tensorboard")
    assert code == 1 and text.startswith("error: epochs must be") and not (tmp_path / "run").exists()


# -- devices and downloads


@pytest.mark.parametrize("device", ["gpu0", "cuda", "cuda:3"])
def test_a_device_that_is_not_here_is_refused_before_anything_is_deleted(finished, monkeypatch, device):
    monkeypatch.setattr(processes, "devices", lambda: ["cpu", "mps"])
    before = content(finished.path)
    assert call("run", "moons", "--device", device, "--out", finished.path, "--overwrite") == (
        1,
        f"error: device must be one that torch finds here (cpu, mps), got {device!r}; choose one of these, or install "
        "a torch and a driver that find it\n",
    )
    assert content(finished.path) == before


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("lenet5-mnist", "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz"),
        ("resnet56-cifar10", "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"),
    ],
)
@pytest.mark.parametrize("error", [requests.ConnectionError("no\nroute"), ValueError("another hash")], ids=type)
def test_without_a_network_the_data_can_be_named(tmp_path, monkeypatch, name, url, error):
    def retrieve(*args, **kwargs):
        raise error

    monkeypatch.delenv("NPN_DATA", raising=False)
    monkeypatch.setattr("pooch.retrieve", retrieve)
    why = f"{type(error).__name__}: {' '.join(str(error).split())}"
    assert call("run", name, "--out", tmp_path / "run") == (
        1,
        f"error: expected to download {url}, got {why}; fetch it elsewhere and name its folder with --data or "
        "NPN_DATA\n",
    )
    assert not (tmp_path / "run").exists()


# -- options of a run


@pytest.fixture
def ran(monkeypatch):
    """What `npn run` would have been given."""
    seen = []
    monkeypatch.setattr(run, "start", lambda *given: seen.append(given))
    return seen


SETTINGS = {"mode": "expand", "seed": 3, "k": 5.5, "estimator": "arm", "function": "hard_sigmoid", "penalty": 1e-6}
SETTINGS |= {"budget": 0.25, "epochs": "1,2,3", "device": "cuda", "growth_init": "pair", "start_from": "fisher"}
OWN = {"depth": 20, "dataset": "cifar100", "decay": "cosine", "stream": True, "blocks": True, "precision": "bf16"}
OWN |= {"channels_last": True, "compile": True, "graphs": True, "antithetic_eval": True, "overshoot": 3.0}
OWN |= {"round_to": 8}
LENET = {"learning_rate": 0.5, "weight_decay": 0.25, "augment": True, "teacher": "t", "like": "l", "weights": True}
LENET |= {"preset": "paper", "overshoot": 3.0}
HOW = {"out": Path("there"), "resume": True, "overwrite": True, "stop_after": 1.5, "tensorboard": True}
HOW |= {"json": True}


@pytest.mark.parametrize(
    ("name", "experiment", "expected"),
    [
        ("moons", moons.EXPERIMENT, MoonsOptions(**SETTINGS, preset="paper")),
        ("lenet5-mnist", lenet5.EXPERIMENT, LeNetOptions(**SETTINGS, data="d", **LENET)),
        ("resnet56-cifar10", resnet56.EXPERIMENT, ResNetOptions(**SETTINGS, data="d", **OWN)),
    ],
)
def test_every_option_gets_to_the_run(ran, name, experiment, expected):
    given = {key: value for key, value in expected.as_dict().items() if value is not None}
    assert expected.as_dict().keys() - given.keys() <= {"data"}, "an option without a value here is not tested"
    arguments = []
    for key, value in (given | HOW).items():
        option = f"--{key.replace('_', '-')}"
        arguments += [option] if value is True else [option, value]
    assert call("run", name, *arguments) == (0, "")
    assert ran == [(experiment, expected, Launch(**HOW))]


def test_an_animation_is_asked_for(ran):
    assert call("run", "moons", "--animate") == (0, "")
    assert ran[0][2] == Launch(animate=True)


@pytest.mark.parametrize("name", ["moons", "lenet5-mnist"])
def test_a_preset_that_cannot_be_is_refused_in_one_line(tmp_path, name):
    message = "the preset 'paper' is for the modes sparsify and expand, got 'dense'; leave it out"
    arguments = ("--preset", "paper", "--mode", "dense", "--out", tmp_path / "run")
    assert call("run", name, *arguments) == (1, f"error: {message}\n")
    assert not (tmp_path / "run").exists()


# -- benches

BENCHES = {"lenet5": frontier, "resnet56": resnet_bench, "growth": growing, "estimators": estimators}


@pytest.fixture
def benched(tmp_path, monkeypatch):
    """What each bench would have been given; its page says its name."""
    seen = []
    page = tmp_path / "page.md"
    page.write_text("the page\n")

    def bench(*given):
        seen.append(given)
        return [tmp_path / "page.json", page]

    for module in BENCHES.values():
        monkeypatch.setattr(module, "bench", bench)
    return seen


SHARED = ["--device", "cpu", "--data", "d", "--seeds", "0-1,4", "--out", "o", "--runs", "r"]
GIVEN = {"device": "cpu", "data": "d"}
PLACES = (Path("o"), Path("r"))
DEFAULT_MODES = ["sparsify", "expand", "scratch", "found", "scratch-macs", "scratch-macs-grown", "dense"]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (
            "lenet5",
            ["--modes", "sparsify, expand", "--budgets", "1600, 0.5", "--k", "5", "--epochs", "1,2,3"],
            (LeNetOptions(**GIVEN, k=5.0, epochs="1,2,3"), [0, 1, 4], ["sparsify", "expand"], [1600.0, 0.5]),
        ),
        ("lenet5", [], (LeNetOptions(**GIVEN), [0, 1, 4], DEFAULT_MODES, None)),
        (
            "resnet56",
            ["--modes", "dense , scratch", "--budgets", "0.5, 0.25", "--depth", "20", "--stream"],
            (ResNetOptions(**GIVEN, depth=20, stream=True), [0, 1, 4], ["dense", "scratch"], [0.5, 0.25]),
        ),
        (
            "estimators",
            ["--estimators", "arm, rloo", "--epochs", "1,2,1", "--budget", "4000", "--draws", "7", "--rounds", "2"],
            (Options(**GIVEN, budget=4000.0, epochs="1,2,1"), [0, 1, 4], ["arm", "rloo"], Settings(7, 4000, 1, 2)),
        ),
        # its epochs are an option of its own, with a default
        ("estimators", ["--k", "5"], (Options(**GIVEN, k=5.0, epochs="3,10,5"), [0, 1, 4], ESTIMATORS, Settings())),
        (
            "growth",
            ["lenet5-mnist", "--inits", "zero, pair", "--epochs", "1,2,1"],
            ("lenet5-mnist", Options(**GIVEN, epochs="1,2,1"), [0, 1, 4], ["zero", "pair"]),
        ),
        ("estimators", [], (Options(**GIVEN, epochs="3,10,5"), [0, 1, 4], ESTIMATORS, Settings())),
    ],
)
def test_a_bench_gets_what_was_given(benched, name, options, expected):
    code, text = call("bench", name, *SHARED, *options)
    assert code == 0 and text.startswith("the page\n"), text
    assert benched == [(*PLACES, *expected, bench.train_or_resume)]


@pytest.mark.parametrize("name", ["lenet5", "resnet56"])
@pytest.mark.parametrize("budgets", ["abc", "0.5,", "0.5;0.25", "-1", "0", "nan", "inf"])
def test_budgets_that_are_no_numbers(benched, name, budgets):
    assert call("bench", name, f"--budgets={budgets}") == (
        1,
        f'error: budgets must be numbers above 0, separated by commas, as "0.5,0.25", got {budgets!r}\n',
    )
    assert benched == []


@pytest.mark.parametrize("name", ["lenet5", "resnet56"])
def test_a_bench_to_budgets_takes_no_penalty(benched, name):
    assert call("bench", name, "--penalty", "1e-6")[0] == 2
    assert benched == []


@pytest.mark.parametrize("name", [*BENCHES, "moons"])
def test_a_stopped_bench_goes_on_with_its_own_command(tmp_path, monkeypatch, name):
    def stopped(*args, **kwargs):
        raise Interrupted

    def bench(out, runs, *rest):
        experiment = resnet56.EXPERIMENT if name == "resnet56" else lenet5.EXPERIMENT
        rest[-1](experiment, Options(), runs / "one", False)

    monkeypatch.setattr(runner, "run", stopped)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if name in BENCHES:
        monkeypatch.setattr(BENCHES[name], "bench", bench)
    command = ["bench", name, "--seeds", "0", "--runs", str(tmp_path / "the runs")]
    monkeypatch.setattr(sys, "argv", ["/bin/npn", *command])
    how = "Start again with" if name == "moons" else "Go on with the same command"  # the moons' runs are not kept
    assert call(*command) == (
        130,
        f"Stopped. {how}: npn bench {name} --seeds 0 --runs '{tmp_path / 'the runs'}'\n",
    )


def test_the_comparison_gets_what_was_given(tmp_path, monkeypatch):
    seen, page = [], tmp_path / "page.md"
    page.write_text("the page\n")
    monkeypatch.setattr(peers, "bench", lambda *given: (seen.append(given), ([page, page], False))[1])
    names = [
        "--arms",
        "arm, scratch",
        "--networks",
        "lenet5",
        "--budgets",
        "0.02",
        "--trials",
        "2",
        "--epochs",
        "1,2,3",
        "--precision",
        "bf16",
    ]
    code, text = call("bench", "peers", *SHARED, *names)
    assert code == 0 and text.startswith("the page\n"), text
    ((*places, options, wanted, _),) = seen
    assert tuple(places) == PLACES and options == PeerOptions(**GIVEN, epochs="1,2,3", precision="bf16")
    assert wanted == peers.Wanted(["lenet5"], ["arm", "scratch"], (0.02,), [0, 1, 4], 2)


def test_a_stopped_comparison_writes_what_there_is(tmp_path, monkeypatch):
    def stopped(*args, **kwargs):
        raise Interrupted

    monkeypatch.setattr(runner, "run", stopped)
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    command = ["bench", "peers", "--arms", "arm", "--networks", "lenet5", "--stop-after", "5"]
    command += ["--out", str(tmp_path / "o"), "--runs", str(tmp_path / "r")]
    monkeypatch.setattr(sys, "argv", ["/bin/npn", *command])
    code, text = call(*command)
    assert code == 130 and text.endswith(f"Stopped. Go on with: npn {' '.join(command)}\n")
    assert (tmp_path / "o.md").read_text().count("| NPN, ARM | 5.0% | not run |") == 2


# -- export


def test_a_run_on_a_gpu_is_exported_without_one(finished, monkeypatch):
    options = json.loads(finished.options_file.read_text()) | {"device": "cuda", "data": "/gone"}
    finished.options_file.write_text(json.dumps(options))
    monkeypatch.setattr(moons, "moons", None)
    code, text = call("export", finished.path, "--format", "pt2")
    assert code == 0, text
    assert (finished.path / "model.pt2").stat().st_size > 0
