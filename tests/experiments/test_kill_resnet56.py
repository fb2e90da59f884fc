"""A run with augmentation that is killed, also while it writes, ends as if nothing had happened."""

from npn.experiments.resnet import recipe as resnet56
from npn.experiments.resnet.options import ResNetOptions

from .test_kill import check_kills, forks
from .test_resnet56 import images


@forks
def test_three_kills_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(resnet56, "cifar", images)
    monkeypatch.setattr(resnet56, "BATCH_SIZE", 16)
    monkeypatch.setattr(resnet56, "GATE_LEARNING_RATE", 0.1)
    options = ResNetOptions(depth=8, seed=3, epochs="1,6,1", budget=0.3)
    check_kills(tmp_path, resnet56.EXPERIMENT, options, kills=3, steps=12)  # of 24 updates of the gates
