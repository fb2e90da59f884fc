"""Models of finished runs: read without the data set and without the device that the run had."""

import pytest
import torch

import npn
from npn.errors import CheckpointError
from npn.experiments.engine.options import Options
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.lenet5 import recipe as lenet5
from npn.experiments.moons import recipe as moons
from npn.experiments.registry import EXPERIMENTS, finished_model
from npn.experiments.resnet.model import ResNet
from npn.experiments.resnet.options import ResNetOptions


def shrunk_moons():
    return moons.MoonsNet(5, 4)


def shrunk_lenet5():
    """Units and single inputs are gone."""
    plastic = npn.attach(lenet5.LeNet5(4, 5, 6), torch.zeros(2, 1, 28, 28), columns="fc1")
    plastic.close("conv1", [0, 2])
    plastic.close("fc1.columns", [3, 7])
    return plastic.export()


def grown_resnet():
    """Smaller than the full one everywhere."""
    return ResNet(8, 100, projection=True, width=0.2)


def shrunk_resnet():
    """A whole block is gone."""
    model = ResNet(8, 10, stream=False)
    plastic = npn.attach(model, torch.zeros(1, 3, 32, 32), only="blocks.*.branch.conv1", branches="blocks.*.branch")
    plastic.close("blocks.1.branch.conv1", [0, 3])
    plastic.close("branches", [2])
    return plastic.export()


GONE = {"device": "cuda", "data": "/gone"}
RUNS = {
    "moons": ("moons", Options(**GONE), shrunk_moons, (2, 2)),
    "lenet5": ("lenet5-mnist", Options(**GONE), shrunk_lenet5, (2, 1, 28, 28)),
    "streams": (
        "resnet56-cifar10",
        ResNetOptions(**GONE, mode="expand", depth=8, dataset="cifar100", stream=True, channels_last=True),
        grown_resnet,
        (2, 3, 32, 32),
    ),
    "blocks": ("resnet56-cifar10", ResNetOptions(**GONE, depth=8, blocks=True), shrunk_resnet, (2, 3, 32, 32)),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_model_needs_neither_data_nor_device(tmp_path, name):
    experiment, options, make, shape = RUNS[name]
    torch.manual_seed(0)
    small, directory = make().eval(), RunDirectory(tmp_path)
    directory.start(options)
    npn.save(directory.model_file, small)
    directory.finish({"experiment": experiment})
    model, example = finished_model(tmp_path)
    assert example.shape == shape and example.dtype == torch.float32 and not model.training
    assert {p.device.type for p in [*model.parameters(), example]} == {"cpu"}
    x = torch.randn(shape)
    torch.testing.assert_close(model(x), small(x))
    assert npn.count_params(model) == npn.count_params(small)
    assert example.is_contiguous() == (name != "streams")


def test_every_sample_is_a_batch_of_two_for_its_model():
    for experiment in EXPERIMENTS.values():
        model, example = experiment.sample(experiment.defaults(experiment.options()))
        assert len(example) == 2 and len(model(example)) == 2


def test_where_no_run_has_finished(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"^there is no finished run in .*: expected its result.json and model.pt$"
    ):
        finished_model(tmp_path)
