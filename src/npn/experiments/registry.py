"""The experiments by name, and the models of their finished runs."""

from pathlib import Path

from torch import Tensor, nn

import npn
from npn.errors import CheckpointError
from npn.experiments.engine.recipe import Experiment
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.language import recipe as language
from npn.experiments.lenet5 import recipe as lenet5
from npn.experiments.lenet300 import recipe as lenet300
from npn.experiments.moons import recipe as moons
from npn.experiments.peers import recipe as peers
from npn.experiments.resnet import recipe as resnet56

EXPERIMENTS: dict[str, Experiment] = {
    recipe.EXPERIMENT.name: recipe.EXPERIMENT for recipe in (moons, lenet5, lenet300, resnet56, language, peers)
}


def finished_model(path: Path) -> tuple[nn.Module, Tensor]:
    """Load the compact model of a finished run; neither its data nor its device are needed.

    Args:
        path: folder of the run.

    Returns:
        The model in eval mode and an example batch for it, on the CPU.

    Raises:
        CheckpointError: there is no finished run of a known experiment at `path`.
    """
    directory = RunDirectory(path)
    if not directory.finished:
        raise CheckpointError(f"there is no finished run in {path}: expected its result.json and model.pt")
    name = directory.result().get("experiment")
    if name not in EXPERIMENTS:
        raise CheckpointError(
            f"expected a run of one of {', '.join(EXPERIMENTS)} in {path}, found one of {name}; name another folder"
        )
    experiment = EXPERIMENTS[name]
    options = directory.options(experiment.options)
    model, example = experiment.sample(experiment.complete(options))
    return npn.load(directory.model_file, model).eval(), example
