"""Runs on two processes: the same as one where it can be, stopped and killed, and resumed with any number of them."""

import json
import os
import signal
from unittest import mock

import pytest
import torch
import torch.distributed.run as agent
from typer.testing import CliRunner

from npn import distributed
from npn.cli import main as cli
from npn.errors import ConfigurationError
from npn.experiments.data.splits import Data, Split
from npn.experiments.engine import processes, runner, training
from npn.experiments.engine.options import Options
from npn.experiments.engine.recipe import Experiment
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.engine.stopping import Interrupted
from npn.experiments.moons import recipe as moons
from npn.experiments.resnet import recipe as resnet56
from npn.experiments.resnet.options import ResNetOptions

from ..processes import Died, launch
from .conftest import Recorder
from .test_resnet56 import images

OPTIONS = Options(mode="sparsify", seed=1, epochs="2,12,1", penalty=1.0)
EPOCHS = 15
UNDRAWN = Experiment(**{**vars(moons.EXPERIMENT), "draw": lambda *_: [], "checkpoint_every": 1})


def train(path, resume=False, kill_after=None, interrupt=None, options=OPTIONS):
    """A run in this process; the last process dies after so many updates, or asks to stop after an epoch."""
    recorder, count, step = Recorder(), 0, torch.optim.Adam.step
    last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1

    def counted(self, *args, **kwargs):
        nonlocal count
        count += 1
        if last and count == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if last and count == interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    with mock.patch.object(torch.optim.Adam, "step", counted):
        try:
            runner.run(UNDRAWN, options, RunDirectory(path), recorder, resume=resume)
        except Interrupted:
            return "interrupted", recorder.epochs
    return "finished", recorder.epochs


def end(path):
    directory = RunDirectory(path)
    model = torch.load(directory.model_file, weights_only=True)["model"]
    return directory.result(), directory.metrics(), model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run on two processes from beginning to end."""
    path = tmp_path_factory.mktemp("whole")
    assert launch(2, train, path) == [("finished", list(range(EPOCHS))), ("finished", [])]  # the first one shows it
    return end(path)


def test_a_run_on_two_processes_trains_as_one_does_and_shrinks(tmp_path, whole):
    result, rows, _ = whole
    assert result["processes"] == 2 and [row["epoch"] for row in rows] == list(range(EPOCHS))
    assert rows[-1]["params"] < rows[0]["params"] and result["params"] == rows[-1]["params"]
    launch(1, train, tmp_path)
    one, alone, _ = end(tmp_path)
    assert one["processes"] == 1
    for row, other in zip(rows[:2], alone[:2], strict=True):  # before any mask is drawn
        for name in ("loss", "validation_loss"):
            assert row[name] == pytest.approx(other[name], rel=1e-4)
    assert rows[3]["loss"] != alone[3]["loss"] and rows[3]["loss"] == pytest.approx(alone[3]["loss"], rel=0.3)


def killed(path, count, after, **options):
    with pytest.raises(Died) as death:
        launch(count, train, path, options.get("resume", False), after)
    assert death.value.codes[-1] == -signal.SIGKILL
    return death.value


def test_a_killed_process_ends_the_run_and_resuming_changes_nothing(tmp_path, whole):
    death = killed(tmp_path, 2, 20)
    assert death.codes == [1, -signal.SIGKILL]
    assert "npn.errors.DistributedError: process 0 waited in vain for another, which has ended or hangs" in str(death)
    assert not RunDirectory(tmp_path).finished
    launch(2, train, tmp_path, True)
    (_, rows, model), (_, all_rows, expected) = end(tmp_path), whole
    assert rows == all_rows
    assert model.keys() == expected.keys() and all(torch.equal(model[name], expected[name]) for name in model)


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    killed(tmp_path, 2, 14)
    killed(tmp_path, 1, 14, resume=True)
    ((how, first), *others) = launch(3, train, tmp_path, True)
    assert how == "finished" and others == [("finished", []), ("finished", [])]
    result, rows, _ = end(tmp_path)
    assert first[0] > 1 and [row["epoch"] for row in rows] == list(range(EPOCHS))
    assert result["processes"] == 3


def test_a_signal_to_one_process_stops_all_between_epochs(tmp_path):
    answers = launch(2, train, tmp_path, False, None, 6)
    assert [how for how, _ in answers] == ["interrupted", "interrupted"]
    assert RunDirectory(tmp_path).unfinished
    assert [row["epoch"] for row in RunDirectory(tmp_path).metrics()] == answers[0][1]


# -- the command


def command(arguments, kill_after=None):
    first = os.environ["RANK"] == "0"
    step = torch.optim.Adam.step
    count = 0

    def counted(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == kill_after and not first:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args, **kwargs)

    with mock.patch.object(torch.optim.Adam, "step", counted), mock.patch.object(moons, "EXPERIMENT", UNDRAWN):
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_the_command_says_what_to_do_and_only_one_process_talks(tmp_path):
    arguments = ["run", "moons", "--epochs", "1,2,1", "--out", tmp_path / "run"]
    with pytest.raises(Died) as death:
        launch(2, command, arguments, 14)
    code, text = death.value.answers[0]
    assert code == 1 and "error: process 0 waited in vain" in text and "--resume continues" in text
    (code, text), (other, error) = launch(2, command, arguments)
    assert code == other == 1 and "holds an unfinished run: --resume continues it" in text
    assert error.startswith("error in process 1: ")
    answers = launch(2, command, [*arguments, "--resume"])
    assert answers[0][0] == 0 and "on the test data with" in answers[0][1] and answers[1] == (0, "")
    answers = launch(2, command, [*arguments, "--resume"])
    assert answers[0][0] == 0 and "is finished already" in answers[0][1] and answers[1] == (0, "")
    (code, text), (other, error) = launch(2, command, arguments)
    assert code == other == 1 and "holds a finished run: --overwrite deletes it" in text
    assert error.startswith("error in process 1: ")


def test_bench_is_for_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(cli.app, ["bench", "moons"])
    assert result.exit_code == 1
    assert result.output == "error: npn bench runs on one process, got 2; under torchrun use npn run\n"


def torchrun(arguments, out):
    """`torch.distributed.run` as it runs from a shell, where no torch has to be imported for it."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        del os.environ[name]
    with out.open("w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    agent.main(arguments)


def test_torchrun_runs_it(tmp_path):
    starter = ["--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    run = ["-m", "npn", "run", "moons", "--epochs", "1,1,1", "--out", str(tmp_path / "run")]
    try:
        launch(1, torchrun, [*starter, *run], tmp_path / "said")
    except Died:
        pytest.fail((tmp_path / "said").read_text())
    assert (tmp_path / "said").read_text().count("on the test data with") == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["processes"] == 2


# -- ResNets


def statistics(precision):
    """The BatchNorm buffers and sizes after a short run, and whether the losses are numbers."""
    options = ResNetOptions(depth=8, epochs="1,2,1", precision=precision)
    few = images()  # fp16 is slow on a CPU
    few = Data(Split(few.train.x[:16], few.train.y[:16]), few.validation, few.test, few.classes)
    with mock.patch.object(resnet56, "cifar", lambda *_: few), mock.patch.object(resnet56, "BATCH_SIZE", 16):
        with processes.group():
            torch.manual_seed(0)
            recipe = resnet56.build(options.over(resnet56.defaults(options)))
            recipe.plastic.close("blocks.0.branch.conv1", [0, 3])  # the first epoch ends with a resize
            rows = [row for _, row in training.epochs(recipe, 0)]
        assert all(row["loss"] < 10 for row in rows)
        buffers = {name: value.tolist() for name, value in recipe.plastic.model.named_buffers()}
        return buffers, rows, None if recipe.scaler is None else recipe.scaler.get_scale()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_resnet_keeps_the_first_processs_batch_statistics(precision):
    first, other = launch(2, statistics, precision)
    assert first == other
    assert len(first[1]) == 4 and first[1][-1]["units"]["blocks.0.branch.conv1"] == 14
    assert (first[2] is None) == (precision == "fp32")


# -- who does what


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 4, 7, 12])
def test_the_parts_of_a_batch_make_up_its_mean(count, size):
    x, y = torch.rand(size, 2), torch.arange(size)
    losses, seen = [], []
    for rank in range(count):
        with (
            mock.patch.object(distributed, "size", lambda: count),
            mock.patch.object(processes, "rank", lambda r=rank: r),
        ):
            part, labels, weight = processes.shard(x, y)
        losses.append(weight * part.mean())
        seen += labels.tolist()
    assert sum(losses) / count == pytest.approx(float(x.mean()))
    assert seen == (list(range(size)) if size >= 2 * count else list(range(size)) * count)


def from_first(failing):
    def make():
        if distributed.rank() == 0 and failing:
            raise ConfigurationError("the first one's")
        return distributed.rank()

    with processes.group():
        try:
            return processes.from_first(make)
        except ConfigurationError as error:
            return str(error)


def test_what_the_first_process_makes_or_raises_is_everyones():
    assert launch(2, from_first, False) == [0, 0]
    assert launch(2, from_first, True) == ["the first one's", "the first one's"]


def test_devices_are_those_that_torch_finds(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert processes.devices() == ["cpu"]
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert processes.devices() == ["cpu", "cuda", "cuda:0", "cuda:1"]


def test_a_device_that_is_not_here(monkeypatch):
    processes.check_device(None)
    monkeypatch.setattr(processes, "devices", lambda: ["cpu", "cuda", "cuda:0"])
    message = (
        r"^device must be one that torch finds here \(cpu, cuda, cuda:0\), got 'cuda:1'; choose one of these, or "
        r"install a torch and a driver that find it$"
    )
    with pytest.raises(ConfigurationError, match=message):
        processes.check_device("cuda:1")


def test_several_processes_do_not_share_one_named_gpu(monkeypatch):
    monkeypatch.setattr(processes, "devices", lambda: ["cpu", "cuda", "cuda:0", "cuda:1"])
    processes.check_device("cuda:1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    processes.check_device("cuda")
    with pytest.raises(ConfigurationError, match=r"^2 processes cannot share cuda:1; give --device cuda$"):
        processes.check_device("cuda:1")
