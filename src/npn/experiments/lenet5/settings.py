"""Which settings of LeNet-5 the validation images prefer: a learning rate, a weight decay, how far growth goes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from npn.errors import ConfigurationError
from npn.experiments.engine.bench import made_with, result_files
from npn.experiments.engine.campaign import Campaign, Train
from npn.experiments.engine.rundir import write_json
from npn.experiments.lenet5.arms import ARMS
from npn.experiments.lenet5.options import LeNetOptions
from npn.experiments.lenet5.recipe import DECAYED, EXPERIMENT, LEARNING_RATE, STAGES, WEIGHT_DECAY
from npn.experiments.report.provenance import made_by
from npn.experiments.report.tables import markdown_table, number_spread, percent_spread, spread

# (learning rate, weight decay): one of them changed at a time from (0.0035, 0.2), then from the best of those
TRIALS = (
    (0.00175, 0.2),
    (0.0035, 0.05),
    (0.0035, 0.1),
    (0.0035, 0.2),
    (0.0035, 0.4),
    (0.007, 0.1),
    (0.007, 0.2),
    (0.014, 0.2),
)
SETTINGS = {"learning_rate": "rate", "weight_decay": "decay", "overshoot": "overshoot"}  # in a trial -> in its name
SPREAD = ("validation_accuracy", "validation_loss", "params")


def bench(
    out: Path,
    runs: Path,
    options: LeNetOptions,
    seeds: Sequence[int],
    modes: Sequence[str],
    trials: Sequence[Sequence[float]],
    budget: float,
    train: Train,
) -> list[Path]:
    """Train every mode with every trial, and write `out` with the endings .json and .md.

    Args:
        out: path without ending.
        runs: folder of the single runs; finished ones are used as they are.
        options: settings of every run.
        seeds: to train with.
        modes: names of `ARMS`.
        trials: learning rate, weight decay and, for growth, overshoot of each.
        budget: weights to end with.
        train: trains one run.

    Returns:
        The files written.

    Raises:
        ConfigurationError: an unknown mode, or `runs` holds runs with other settings.
    """
    arms = {
        _name(mode, trial): replace(
            arm, budgets=(budget,), settings={**arm.settings, **dict(zip(SETTINGS, trial, strict=False))}
        )
        for mode, arm in ARMS.items()
        for trial in trials
    }
    names = [_name(mode, trial) for mode in modes for trial in trials]
    made = Campaign(runs, EXPERIMENT, options, STAGES, {**ARMS, **arms}, train).trained(seeds, names)
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, run in made:
        rows.setdefault(name, []).append({**run.result(), "validation_loss": run.metrics()[-1]["validation_loss"]})
    results = [result for each in rows.values() for result in each]
    summary: dict[str, Any] = {
        "experiment": "lenet5-mnist, settings",
        "budget": budget,
        "trials": {name: {key: spread([run[key] for run in each]) for key in SPREAD} for name, each in rows.items()},
        **made_with(results, different=(*SETTINGS, "mode", "seed", "budget", "data", "epochs", "teacher", "augment")),
    }
    files = result_files(out)[:2]
    write_json(files[0], summary)
    files[1].write_text(page(summary, seeds), encoding="utf-8")
    return files


def parse_trials(text: str) -> tuple[tuple[float, ...], ...]:
    """Read trials as a user writes them.

    Args:
        text: a learning rate, a weight decay and perhaps an overshoot with colons between them, and commas between
            trials.

    Raises:
        ConfigurationError: the text has another form, or a number is negative.

    Example:
        >>> parse_trials("0.007:0.1,0.0035:0.2:4")
        ((0.007, 0.1), (0.0035, 0.2, 4.0))
    """
    found = []
    for trial in text.split(","):
        try:
            numbers = tuple(map(float, trial.split(":")))
        except ValueError:
            numbers = ()
        if len(numbers) not in (2, 3) or not (numbers[0] > 0.0 and all(number >= 0.0 for number in numbers)):
            raise ConfigurationError(
                f'trials must look like "0.007:0.1,0.0035:0.2" (rate:decay, or rate:decay:overshoot), got {trial!r}'
            )
        found.append(numbers)
    return tuple(found)


def _name(mode: str, trial: Sequence[float]) -> str:
    return " ".join([mode, *(f"{name} {value:g}" for name, value in zip(SETTINGS.values(), trial, strict=False))])


def page(summary: dict[str, Any], seeds: Sequence[int]) -> str:
    """Write the Markdown page: validation accuracy and loss of every setting, and the record of how it was made.

    Args:
        summary: content of the JSON file.
        seeds: that every setting was tried with.
    """
    rows = [
        (
            name,
            percent_spread(trial["validation_accuracy"], bold=False),
            number_spread(trial["validation_loss"], 4),
            f"{trial['params']['mean']:,.0f}",
        )
        for name, trial in summary["trials"].items()
    ]
    return "\n".join(
        [
            "# LeNet-5: settings by validation data",
            "",
            markdown_table(("setting", "validation accuracy", "validation loss", "weights"), rows),
            "",
            f"Last epoch of shorter trainings to a budget of {summary['budget']:,.0f}, seeds "
            f"{', '.join(map(str, seeds))}, which no other bench uses; in use are a learning rate of {LEARNING_RATE:g} "
            f"and a weight decay of {WEIGHT_DECAY:g}, less for budgets under {DECAYED:,.0f}, in proportion. Mean and "
            "standard deviation over the seeds; a share of 5,000 "
            "images has itself a standard error of 0.14 points at 99%. Test images were not looked at.",
            "",
            made_by(summary, per=" a run"),
            "",
        ]
    )
