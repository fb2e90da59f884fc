"""Many runs in one folder: each is trained once, and resumed where it was stopped."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from npn.errors import ConfigurationError
from npn.experiments.engine.options import Options, in_one_stage
from npn.experiments.engine.recipe import Experiment, Outcome
from npn.experiments.engine.rundir import RunDirectory

# trains an experiment with options in a folder, and resumes if the last argument is True
Train = Callable[[Experiment, Options, Path, bool], Outcome]


@dataclass(frozen=True)
class Arm:
    """One way to train in a bench, with every seed to every budget.

    Attributes:
        mode: of its runs.
        budgets: of its runs; `(None,)` for a mode without one.
        settings: further settings of its runs.
        like: arm whose runs, of the same seed and budget, are `like` which these are trained.
        teacher: arm whose runs, of the same seed, teach these.
        start: arm whose runs, of the same seed, these continue.
        macs_of: arm; these runs are those of `base`, but as long as the training costs as many multiply-adds as the
            runs of that arm, of the same seed and budget.
        base: arm with the same settings and another number of epochs; see `macs_of`.
    """

    mode: str
    budgets: Sequence[float | None]
    settings: Mapping[str, Any] = field(default_factory=dict)
    like: str | None = None
    teacher: str | None = None
    start: str | None = None
    macs_of: str | None = None
    base: str | None = None


STARTS = ("pair", "split", "select")  # of new units, beside "zero", which the arm "expand" has
STARTS_COMPARED = tuple((f"expand-{init}", "expand") for init in STARTS)


def arms_of_starts(budgets: Sequence[float | None]) -> dict[str, Arm]:
    """List the arms that grow with other starts of new units than the arm "expand".

    Args:
        budgets: of each.

    Example:
        >>> list(arms_of_starts((None,)))
        ['expand-pair', 'expand-split', 'expand-select']
    """
    return {f"expand-{init}": Arm("expand", budgets, {"growth_init": init}) for init in STARTS}


class Campaign:
    """The runs of a bench: each is trained once, after those that it depends on.

    Args:
        runs: folder of the runs.
        experiment: to train.
        options: settings of every run, without mode, seed and budget.
        stages: mode -> epochs of each stage by default, "sparsify" among them. Modes of one stage train as long as
            those of several.
        arms: name -> arm, for all that there are.
        train: trains one run.

    Raises:
        ConfigurationError: the epochs do not fit the stages.
    """

    def __init__(
        self,
        runs: Path,
        experiment: Experiment,
        options: Options,
        stages: Mapping[str, Sequence[int]],
        arms: Mapping[str, Arm],
        train: Train,
    ) -> None:
        self.runs, self.experiment, self.options, self.stages, self.arms = runs, experiment, options, stages, arms
        self.train = train
        self._whole = in_one_stage(options.epochs, stages["sparsify"])

    def trained(self, seeds: Sequence[int], names: Sequence[str]) -> list[tuple[str, RunDirectory]]:
        """Train the runs of some arms that the folder does not hold yet, and those that they depend on.

        Args:
            seeds: to train with; all arms of one before the next.
            names: of the arms.

        Returns:
            Arm and folder of each run of these arms, finished.

        Raises:
            ConfigurationError: an unknown arm, or a folder holds a run with other settings.
        """
        for name in names:
            if name not in self.arms:
                raise ConfigurationError(f"modes must be among {', '.join(self.arms)}, got {name!r}")
        return [
            (name, self.run(name, seed, budget))
            for seed in seeds
            for name in names
            for budget in self.arms[name].budgets
        ]

    def run(self, name: str, seed: int, budget: float | None) -> RunDirectory:
        """Train one run unless the folder holds it, and before it those that it depends on.

        Args:
            name: of its arm.
            seed: of the run.
            budget: of the run; without effect for arms that have none.
        """
        arm = self.arms[name]
        budget = None if tuple(arm.budgets) == (None,) else budget
        epochs = self.options.epochs
        if len(stages := self.stages[arm.mode]) == 1:
            epochs = self._whole or str(stages[0])
        depending = {
            key: str(self.run(other, seed, budget).path)
            for key, other in (("like", arm.like), ("teacher", arm.teacher), ("start", arm.start))
            if other
        }
        if arm.macs_of and arm.base:
            same, costly = (self.run(other, seed, budget).result() for other in (arm.base, arm.macs_of))
            per_epoch = same["training_macs"] / sum(stage["epochs"] for stage in same["stages"])
            epochs = str(max(1, round(costly["training_macs"] / per_epoch)))
        settings = {"mode": arm.mode, "seed": seed, "budget": budget, "epochs": epochs, **arm.settings, **depending}
        growth_init = arm.settings.get("growth_init", self.options.growth_init)
        settings["growth_init"] = growth_init if arm.mode == "expand" else None
        options = replace(self.options, **settings)
        return finished(self.runs / run_name(name, budget, seed), self.experiment, options, self.train)


def run_name(arm: str, budget: float | None, seed: int) -> str:
    """Name the folder of a run.

    Args:
        arm: name of its arm.
        budget: of the run, None for an arm without one.
        seed: of the run.

    Example:
        >>> run_name("sparsify", 0.5, 0), run_name("dense", None, 2)
        ('sparsify-0.5-0', 'dense-2')
    """
    return "-".join([arm, *([] if budget is None else [f"{budget:g}"]), str(seed)])


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
    directory, options = RunDirectory(path), experiment.complete(options)
    if directory.finished or directory.unfinished:
        saved = experiment.complete(directory.options(experiment.options))
        if _compared(saved) != _compared(options):
            there, wanted = replace(saved, data=None), replace(options, data=None)
            raise ConfigurationError(
                f"{path} holds a run with other settings: expected {wanted}, found {there}; delete it, or choose "
                "another folder with --runs"
            )
    if not directory.finished:
        train(experiment, options, path, directory.unfinished)
    return directory


def _compared(options: Options) -> dict[str, Any]:
    """Settings without where things lie: a folder of runs may be moved, with the runs that others depend on in it."""
    names = {key: Path(value).name for key in ("like", "teacher", "start") if (value := getattr(options, key, None))}
    return {**options.as_dict(), **names, "data": None}
