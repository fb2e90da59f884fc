"""The second pass of ARM in eval mode, as in the paper's code: an option where there is BatchNorm."""

import pytest
import torch

from npn.errors import ConfigurationError
from npn.experiments.data.splits import Data, Split
from npn.experiments.engine import training
from npn.experiments.resnet import recipe as resnet56
from npn.experiments.resnet.options import ResNetOptions


def images(dataset="cifar10", folder=None):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(24) % 2
    split = Split(torch.randint(0, 255, (24, 3, 32, 32), generator=generator).to(torch.uint8), y)
    return Data(split, split, split, classes=10)


def built(**options):
    given = ResNetOptions(**({"depth": 8, "epochs": "1,1,1"} | options))
    torch.manual_seed(0)
    return resnet56.build(given.over(resnet56.defaults(given)))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(resnet56, "cifar", images)
    monkeypatch.setattr(resnet56, "BATCH_SIZE", 24)


@pytest.mark.parametrize("evaluated", [False, True])
def test_the_mode_of_each_pass(evaluated):
    """One step each of k = inf, 7 and inf again; the second pass moves no statistics in either mode."""
    recipe = built(estimator="arm", antithetic_eval=evaluated)
    model, seen = recipe.plastic.model, []
    model.bn1.register_forward_pre_hook(lambda module, args: seen.append((module.training, torch.is_grad_enabled())))
    for stage, row in training.epochs(recipe, seed=0):
        steps = [each for each in seen if each != (False, False)] if not evaluated else seen
        expected = [(True, True)] + ([(not evaluated, False)] if stage.name == "plastic" else [])
        assert steps[: len(expected)] == expected
        assert int(model.bn1.num_batches_tracked) == row["epoch"] + 1 and model.training
        seen.clear()


@pytest.mark.parametrize("estimator", ["reinmax", "double_cv"])
def test_estimators_without_such_a_pass_refuse_it(estimator):
    with pytest.raises(ConfigurationError) as error:
        built(estimator=estimator, antithetic_eval=True)
    assert str(error.value) == (
        "antithetic_eval is about a pass for its loss alone, which the estimators arm, disarm, rloo have, got "
        f"{estimator!r}"
    )
