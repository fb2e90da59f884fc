"""Many runs in one folder: each is made once, resumed where it was stopped, and never taken for another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from npn.errors import ConfigurationError
from npn.experiments.engine.options import Options, in_one_stage
from npn.experiments.engine.recipe import Experiment
from npn.experiments.engine.rundir import RunDirectory

Train = Callable[[Experiment, Options, Path, bool], object]  # the last: resume


def planned(
    options: Options,
    stages: Mapping[str, Sequence[int]],
    seeds: Sequence[int],
    modes: Sequence[str],
    budgets: Mapping[str, Sequence[float | None]],
) -> list[Options]:
    """Settings of every seed, mode and budget; modes of one stage train as long as those of several.

    Args:
        options: of every run but for mode, seed and budget.
        stages: mode -> epochs of each stage by default, "sparsify" among them.
        seeds, modes: to train with.
        budgets: mode -> what it trains to, for every mode that there is.

    Raises:
        ConfigurationError: an unknown mode, or epochs that cannot be.
    """
    for mode in modes:
        if mode not in budgets:
            raise ConfigurationError(f"modes must be among {', '.join(budgets)}, got {mode!r}")
    whole = in_one_stage(options.epochs, stages["sparsify"])
    return [
        replace(
            options, mode=mode, seed=seed, budget=budget, epochs=whole if len(stages[mode]) == 1 else options.epochs
        )
        for seed in seeds
        for mode in modes
        for budget in budgets[mode]
    ]


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
