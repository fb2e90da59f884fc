"""Many runs in one folder: each is trained once, and resumed where it was stopped."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from npn.errors import ConfigurationError
from npn.experiments.engine.options import Options, in_one_stage
from npn.experiments.engine.recipe import Experiment, Outcome
from npn.experiments.engine.rundir import RunDirectory

# trains an experiment with options in a folder, and resumes if the last argument is True
Train = Callable[[Experiment, Options, Path, bool], Outcome]


def planned(
    options: Options,
    stages: Mapping[str, Sequence[int]],
    seeds: Sequence[int],
    modes: Sequence[str],
    budgets: Mapping[str, Sequence[float | None]],
) -> list[Options]:
    """List the settings of every seed, mode and budget; modes of one stage train as long as those of several.

    Args:
        options: settings of every run, without mode, seed and budget.
        stages: mode -> epochs of each stage by default, "sparsify" among them.
        seeds: to train with.
        modes: to train in.
        budgets: mode -> its budgets, for every mode that exists.

    Raises:
        ConfigurationError: an unknown mode, or epochs that do not fit the stages.
    """
    for mode in modes:
        if mode not in budgets:
            raise ConfigurationError(f"modes must be among {', '.join(budgets)}, got {mode!r}")
    whole = in_one_stage(options.epochs, stages["sparsify"])
    return [
        replace(
            options,
            mode=mode,
            seed=seed,
            budget=budget,
            epochs=whole if len(stages[mode]) == 1 else options.epochs,
            growth_init=options.growth_init if mode == "expand" else None,
        )
        for seed in seeds
        for mode in modes
        for budget in budgets[mode]
    ]


def run_name(options: Options) -> str:
    """Name the folder of a run after its mode, budget and seed.

    Args:
        options: of the run.

    Example:
        >>> run_name(Options(mode="expand", seed=1, budget=0.5)), run_name(Options(mode="dense", seed=0))
        ('expand-0.5-1', 'dense-0')
    """
    parts = (options.mode, None if options.budget is None else f"{options.budget:g}", options.seed)
    return "-".join(str(part) for part in parts if part is not None)


def finished(path: Path, experiment: Experiment, options: Options, train: Train) -> RunDirectory:
    """Train a run unless the folder holds it already.

    Args:
        path: folder of the run.
        experiment: to train.
        options: settings of the run.
        train: trains it, and resumes where it was stopped.

    Returns:
        The folder of the finished run.

    Raises:
        ConfigurationError: the folder holds a run with other settings.
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


def trained(runs: Path, experiment: Experiment, wanted: Sequence[Options], train: Train) -> list[RunDirectory]:
    """Train the runs that a folder does not hold yet.

    Args:
        runs: folder of the runs.
        experiment: to train.
        wanted: settings of each run, see `planned`.
        train: trains one run.

    Returns:
        The folders of all runs, finished.

    Raises:
        ConfigurationError: a folder holds a run with other settings.
    """
    return [finished(runs / run_name(options), experiment, options, train) for options in wanted]
