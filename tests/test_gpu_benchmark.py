"""`benchmarks/gpu.sh` on the CPU, with tiny networks and legs."""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import npn
from npn.experiments.data.splits import Data, Split
from npn.experiments.engine.campaign import Campaign
from npn.experiments.peers.arms import NAMES
from npn.experiments.peers.bench import Wanted, bench
from npn.experiments.peers.networks import NETWORKS
from npn.experiments.peers.options import PeerOptions
from npn.experiments.resnet import recipe as resnet
from npn.experiments.resnet.arms import arms

pytestmark = pytest.mark.usefixtures("traces_are_shared")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MISSING = ("matplotlib", "plotly", "scipy", "sklearn", "pooch", "typer", "rich", "pytest", "hypothesis", "tensorboard")


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def options(tmp_path):
    given = {"device": "cpu", "out": tmp_path, "data": None, "leg": "dense", "epochs": "3", "depth": 8, "seeds": "0"}
    given |= {"dataset": "cifar10", "decay": "steps", "precision": "fp32", "budget": 0.5, "rounds": 1}
    given |= {"file": "train.json", "at_once": 1}
    return argparse.Namespace(**given)


@pytest.fixture
def tiny(monkeypatch):
    def images(dataset="cifar10", folder=None):
        y = torch.arange(32) % 2
        split = Split((60 + 100 * y.view(-1, 1, 1, 1)).expand(32, 3, 32, 32).to(torch.uint8).contiguous(), y)
        return Data(split, split, split, classes=10)

    monkeypatch.setattr(resnet, "cifar", images)
    monkeypatch.setattr(resnet, "BATCH_SIZE", 16)


def later(seconds=1000.0):
    return time.monotonic() + seconds


def test_the_time_is_divided_without_rest(options):
    import gpu

    options.minutes = 8.0
    shares = gpu.plan(options, gpu.PARTS)
    assert list(shares) == ["checks", "steps", "train"] and sum(shares.values()) == pytest.approx(480 - gpu.END)
    assert gpu.plan(options, ["train"]) == {"train": pytest.approx(480 - gpu.END)}
    assert sum(gpu.plan(options, ["checks", "steps"]).values()) == pytest.approx(480 - gpu.END)
    assert gpu.plan(options, ["train", "peers"]) == dict.fromkeys(("train", "peers"), pytest.approx(240 - gpu.END / 2))


def test_torch_and_numpy_are_enough():
    """The script itself on the CPU, with every other package missing and no time to begin anything."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({MISSING!r}))\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import gpu, gpu_checks, gpu_steps, gpu_train, gpu_peers\n"
        "from npn.experiments.engine import runner\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(npn.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_check_that_fails_stops_no_other(options, monkeypatch, capsys):
    import gpu
    import gpu_checks

    def fails(device):
        raise RuntimeError("no\nluck | at all")

    names = ("the handle follows the model to the device", "no step waits for the device")
    chosen = {"first": fails} | {name: gpu_checks.CHECKS[name] for name in names}
    monkeypatch.setattr(gpu_checks, "CHECKS", chosen)
    gpu_checks.main(options, later())
    found = json.loads((options.out / "checks.json").read_text())
    assert [entry["result"] for entry in found["checks"].values()] == ["FAIL", "pass", "skip"]
    assert found["checks"]["first"]["reason"].startswith("RuntimeError: no luck / at all (test_gpu_benchmark.py:")
    about = {"machine": found["machine"], "versions": {}, "command": "c"}
    text = gpu.page({"checks": found}, {"checks": "ended"}, about)
    assert "| no step waits for the device | skip |" in text and "| only on CUDA |" in text
    gpu_checks.main(options, later(-1.0))
    found = json.loads((options.out / "checks.json").read_text())["checks"]
    assert {entry["reason"] for entry in found.values()} == {"no time left"}


def test_steps_are_measured_in_every_way_that_there_is(options, monkeypatch):
    import gpu
    import gpu_steps

    name, build = next(iter(gpu_steps.networks(8).items()))
    monkeypatch.setattr(gpu_steps, "networks", lambda depth: {name: build})
    monkeypatch.setattr(gpu_steps, "BATCH_SIZE", 4)
    gpu_steps.main(options, later())
    content = json.loads((options.out / "steps.json").read_text())
    found = {key.removeprefix(f"{name}; "): row for key, row in content["steps"].items()}
    assert sorted(found) == sorted(f"{way}; {step}" for way in gpu_steps.WAYS for step in gpu_steps.STEPS)
    assert all(found[f"eager; {step}"]["seconds"] > 0 for step in gpu_steps.STEPS)
    assert found["graphs; plain"] == {"reason": "only on CUDA"}
    counts = [found[f"eager; {step}"]["operators"] for step in ("plain", "k = inf", "reinmax")]
    assert counts[0] <= counts[1] < counts[2]
    about = {"machine": content["machine"], "versions": {}, "command": "c"}
    text = gpu.page({"steps": content}, {}, about)
    assert f"| {name} | eager | plain | " in text and "| 16, 32, 64 | " in text and "| 7, 14, 29 | " in text


def test_operators_are_counted():
    import gpu_steps

    x = torch.ones(3)
    assert gpu_steps.operators(lambda: x + x) == 1 and gpu_steps.operators(lambda: (x + x) * x) == 2


def test_legs_stop_in_time_and_go_on(options, tiny, monkeypatch, capsys):
    """As often as it takes; a bench takes the finished runs as they are."""
    import gpu_train

    monkeypatch.setattr(gpu_train, "LEAST", 0.0)
    monkeypatch.setattr(gpu_train, "time", argparse.Namespace(monotonic=lambda: 0.0))  # none passes until a leg begins
    for leg, name in (("dense", "dense-0"), ("sparsify", "sparsify-0.5-0")):
        options.leg, found = leg, []
        for _ in range(3):
            found.append(gpu_train.main(options, 1e-3)[name])  # less than any epoch takes
        assert [state["epochs"] for state in found] == [1, 2, 3]
        assert [state["state"] for state in found] == ["open", "open", "finished"]
        assert [state["reason"][:15] for state in found] == ["stopped in time", "stopped in time", ""]
    options.leg = "dense,other"
    found = gpu_train.main(options, -1.0)
    assert found["other-0.5-0"]["reason"] == f"expected one of {', '.join(gpu_train.ARMS)}"
    assert found["dense-0"]["accuracy"].endswith("%") and json.loads((options.out / "train.json").read_text())["legs"]
    options.epochs = "4"
    assert gpu_train.main(options, -1.0)["dense-0"]["reason"] == "no time left"
    options.epochs = "3"

    def trains(*given):
        raise AssertionError("everything is there")

    dense = gpu_train.Leg("dense", None, 0)
    stored = gpu_train.settings(options, dense, graphs=False)
    common = {**stored.as_dict(), "mode": None, "seed": None, "budget": None}
    campaign = Campaign(
        gpu_train.folder(options, dense).parent,
        resnet.EXPERIMENT,
        type(stored)(**common),
        resnet.STAGES,
        arms([0.5]),
        trains,
    )
    assert [name for name, run in campaign.trained([0], ["dense", "sparsify"]) if run.finished] == ["dense", "sparsify"]


def test_legs_of_several_seeds_and_budgets():
    import gpu_train

    found = gpu_train.legs("dense,sparsify,sparsify:0.4", 0.5, "0,2")
    assert [leg.name for leg in found[:3]] == ["dense-0", "sparsify-0.5-0", "sparsify-0.4-0"]
    assert [leg.name for leg in found[3:]] == ["dense-2", "sparsify-0.5-2", "sparsify-0.4-2"]


def test_epochs_per_stage(options):
    import gpu_train

    options.epochs = "2,4,1"
    dense, shrunk = gpu_train.legs("dense,sparsify", 0.5, "0")
    assert gpu_train.settings(options, dense, graphs=False).epochs == "7" and gpu_train.length(options) == 7
    assert gpu_train.settings(options, shrunk, graphs=False).epochs == "2,4,1"
    assert gpu_train.folder(options, shrunk) == options.out / "runs" / "cifar10-8-2+4+1-steps" / "sparsify-0.5-0"


def test_legs_train_at_a_time_in_processes_of_their_own(options, monkeypatch):
    import gpu

    options.leg, options.seeds, options.at_once = "dense,sparsify:0.4", "0-1", 3
    begun = []

    def part(name, seconds, *more):
        begun.append((name, *more))
        file = options.out / more[more.index("--file") + 1]
        file.write_text(json.dumps({"machine": {}, "legs": {file.stem: {"epochs": 1}}}))
        return "ended" if "dense" in more else "exit status 1"

    monkeypatch.setattr(gpu, "run_part", part)
    assert gpu.run_pieces("train", options, 60.0) in ("2 ended, 2 exit status 1", "2 exit status 1, 2 ended")
    assert ("train", "--leg", "sparsify:0.4", "--seeds", "1", "--file", "train-sparsify-0.4-1.json") in begun
    assert len(gpu.collected(options.out)["train"]["legs"]) == 4
    assert gpu.run_pieces("train", options, -1.0) == "4 no time left" and len(begun) == 4


def test_methods_run_in_processes_of_their_own_but_for_those_that_follow():
    import gpu_peers

    found = gpu_peers.cells("lenet5:0.01,resnet20", "reinmax,found,scratch")
    assert [(cell.network, cell.budget) for cell in found[::2]] == [
        ("lenet5", 0.01), *(("resnet20", budget) for budget in (0.6, 0.4, 0.25))
    ]  # fmt: skip
    assert {cell.arms for cell in found} == {("reinmax", "found"), ("scratch",)}
    assert found[0].arguments[-1] == "peers-lenet5-0.01-reinmax.json"
    assert [cell.arms for cell in gpu_peers.cells("lenet5:0.1", "found,scratch")] == [("found",), ("scratch",)]
    assert sum(len(cell.arms) for cell in gpu_peers.cells("lenet5:0.1", "")) == len(NAMES)


def test_methods_stop_in_time_and_go_on(options, monkeypatch, tmp_path, capsys):
    """A bench takes the finished runs as they are."""
    import gpu
    import gpu_peers

    images = Split(torch.rand(32, 1, 28, 28), torch.arange(32) % 10)
    few = replace(NETWORKS["lenet300"], data=lambda folder: Data(images, images, images, classes=10), batch_size=16)
    monkeypatch.setitem(NETWORKS, "lenet300", few)
    options.networks, options.arms, options.epochs, options.trials = "lenet300:0.2", "reinmax,slimming", "1,1,1", 1
    options.file, name = "peers.json", "lenet300 0.2 reinmax"
    assert gpu_peers.main(options, later(0.0))[name] == {
        "accuracies": "",
        "reason": "no time left; --from goes on with it",
    }
    found = gpu_peers.main(options, later())
    assert found[name]["accuracies"].count("%") == 1 and not found[name]["reason"]
    assert found["lenet300 0.2 slimming"] == {"accuracies": "", "reason": "needs BatchNorm"}
    results = gpu.collected(options.out)
    about = {"machine": results["peers"]["machine"], "versions": {}, "command": "c"}
    assert "| lenet300 | 0.2 | slimming |  | needs BatchNorm |" in gpu.page(results, {}, about)
    files, stopped = bench(
        tmp_path / "page",
        options.out / "runs" / "bench-peers",
        PeerOptions(epochs="1,1,1", device="cpu"),
        Wanted(["lenet300"], ["reinmax"], [0.2], [0], trials=1),
        lambda *given: pytest.fail("everything is there"),
    )
    assert not stopped and "NPN, ReinMax | 20.0% | 1 |" in files[1].read_text()


def test_a_leg_without_its_data_says_so(options, tmp_path):
    import gpu_train

    options.data = str(tmp_path)
    found = gpu_train.main(options, later())
    assert found["dense-0"]["reason"].startswith("ConfigurationError: expected the binary version of cifar10")


def test_graphs_that_failed_their_check_are_not_used(tmp_path):
    import gpu_checks
    import gpu_train

    assert gpu_train.GRAPHS in gpu_checks.CHECKS
    file = tmp_path / "checks.json"
    assert not gpu_train._graphs_failed(file)
    for result, failed in (("pass", False), ("skip", False), ("FAIL", True)):
        file.write_text(json.dumps({"checks": {gpu_train.GRAPHS: {"result": result}}}))
        assert gpu_train._graphs_failed(file) is failed
