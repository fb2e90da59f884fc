"""Many runs in one folder: each is made once, resumed where it was stopped, and never taken for another."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from npn.errors import ConfigurationError
from npn.experiments.options import Options
from npn.experiments.rundir import RunDirectory
from npn.experiments.runner import Experiment

Train = Callable[[Experiment, Options, Path, bool], object]  # the last: resume


def run_name(options: Options) -> str:
    """Name of a run's folder among those of other modes, budgets and seeds.

    Example:
        >>> run_name(Options(mode="expand", seed=1, budget=0.5)), run_name(Options(mode="dense", seed=0))
        ('expand-0.5-1', 'dense-0')
    """
    parts = (options.mode, None if options.budget is None else f"{options.budget:g}", options.seed)
    return "-".join(str(part) for part in parts if part is not None)


def finished(path: Path, experiment: Experiment, options: Options, train: Train) -> RunDirectory:
    """The run of these options, trained unless it is there already.

    Args:
        path: folder of the run.
        experiment, options: what to run.
        train: runs an experiment with options in a folder, resuming if told to.

    Raises:
        ConfigurationError: there is a run with other options.
    """
    directory, options = RunDirectory(path), options.over(experiment.defaults(options))
    if directory.finished or directory.unfinished:
        there, wanted = replace(directory.options(experiment.options), data=None), replace(options, data=None)
        if there != wanted:
            raise ConfigurationError(
                f"{path} holds a run with other settings: expected {wanted}, found {there}; delete it, or choose "
                "another folder with --runs"
            )
    if not directory.finished:
        train(experiment, options, path, directory.unfinished)
    return directory
