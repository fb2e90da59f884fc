"""The six gradient estimators on LeNet-5: the quality of their gradients, and the networks that they end with."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn
from npn.errors import ConfigurationError
from npn.experiments.engine.campaign import Train, finished
from npn.experiments.engine.options import Options, stage_lengths
from npn.experiments.engine.recipe import Recipe
from npn.experiments.engine.rundir import RunDirectory, make_folder, write_json
from npn.experiments.engine.training import shuffled
from npn.experiments.estimators import gradients
from npn.experiments.estimators import page as estimators_page
from npn.experiments.estimators.gradients import ESTIMATORS, UNBIASED, Quality
from npn.experiments.lenet5 import recipe as lenet5
from npn.experiments.report.provenance import command_line, machine, versions
from npn.experiments.report.tables import spread

Row = dict[str, Any]

STAGES = (3, 10, 5)
MOMENTS = ("start", "middle", "end")
TRAINED_BY = "reinmax"  # the net of the three moments, and the pace of "equal time"
OTHER_ORDER = 10_000  # an epoch that no run reaches, so that the measured batches are others than the trained ones
REFERENCE_SEED = 1_000_000


@dataclass(frozen=True)
class Settings:
    """Numbers of measurements.

    Attributes:
        draws: single draws of each estimator, per batch.
        reference: draws of the unbiased reference, per batch.
        batches: training batches to average over.
        rounds: measurements of the time of each step.

    Raises:
        ConfigurationError: a number is too small.
    """

    draws: int = 500
    reference: int = 4000
    batches: int = 1
    rounds: int = 30

    def __post_init__(self) -> None:
        least = {"draws": 2, "reference": 2, "batches": 1, "rounds": 1}
        for name, value in asdict(self).items():
            if value < least[name]:
                raise ConfigurationError(f"{name} must be at least {least[name]}, got {value}")


def bench(
    out: Path, runs: Path, options: Options, seeds: Sequence[int], names: Sequence[str], how: Settings, train: Train
) -> list[Path]:
    """Measure gradients at three moments, train with every estimator for equal epochs and for equal time, write all.

    Finished runs and measurements in `runs` are used as they are, and a stopped run is resumed.

    Args:
        out: path without ending; .json, .md and .png are written.
        runs: folder of the single runs and of the measurements at the moments.
        options: settings of every run, without mode, seed and estimator.
        seeds: of the runs; the moments are those of the first.
        names: estimators to train with; the gradients of all six are measured.
        how: numbers of measurements.
        train: trains one run.

    Returns:
        The files written.

    Raises:
        ConfigurationError: an unknown estimator, or `runs` holds runs with other settings.
    """
    make_folder(out.parent)
    for name in names:
        if name not in ESTIMATORS:
            raise ConfigurationError(f"estimators must be among {', '.join(ESTIMATORS)}, got {name!r}")
    lengths = stage_lengths(options.epochs, STAGES)
    options = replace(options, mode="sparsify", epochs=_text(lengths))
    watched = replace(options, seed=seeds[0], estimator=TRAINED_BY)
    moments = measure_moments(runs, watched, how, train)
    cost = step_costs(moments)
    rows = []
    for seed in seeds:
        for name in names:
            equal_time = shortened(lengths, cost[name] / cost[TRAINED_BY])
            for protocol, stages in (("equal epochs", lengths), ("equal time", equal_time)):
                wanted = replace(options, seed=seed, estimator=name, epochs=_text(stages))
                path = runs / ("moments" if wanted == watched else f"{name}-{'-'.join(map(str, stages))}-{seed}")
                rows.append(_row(protocol, finished(path, lenet5.EXPERIMENT, wanted, train)))
    summary = {
        "experiment": "estimators on lenet5-mnist, sparsify",
        "settings": asdict(how),
        "trained_by": TRAINED_BY,
        "moments": moments,
        "step_cost": cost,
        "ends": summarise(rows),
        "runs": rows,
        "command": command_line(),
        "options": {key: value for key, value in options.as_dict().items() if value is not None and key != "data"},
        "versions": versions(),
        "machine": machine(options.device or "cpu"),
    }
    return estimators_page.write(out, summary)


def measure_moments(runs: Path, options: Options, how: Settings, train: Train) -> dict[str, dict[str, Any]]:
    """Measure gradients and step times at the start, in the middle and near the end of the plastic stage of one run.

    Args:
        runs: folder of the single runs.
        options: settings of the run.
        how: numbers of measurements.
        train: trains the run.

    Returns:
        Moment -> measurements, see `measure_moment`.
    """
    folder = runs / "moments"
    watched = replace(lenet5.EXPERIMENT, build=lambda complete: _saving(lenet5.build(complete), folder))
    finished(folder, watched, options, train)
    if missing := [moment for moment in MOMENTS if not (folder / f"{moment}.npn").exists()]:
        raise ConfigurationError(
            f"{folder} holds a finished run that kept no state for {', '.join(missing)}: not one of this bench; "
            "delete it, or choose another folder with --runs"
        )
    settings = {**asdict(how), "threads": torch.get_num_threads()}
    measured = {}
    for moment in MOMENTS:
        cache = folder / f"{moment}.json"
        known = json.loads(cache.read_text()) if cache.exists() else {}
        if known.get("settings") != settings:
            recipe = lenet5.build(lenet5.EXPERIMENT.complete(options))
            npn.load(folder / f"{moment}.npn", recipe.plastic)
            known = {"settings": settings, **measure_moment(recipe, how)}
            write_json(cache, known)
        measured[moment] = {key: value for key, value in known.items() if key != "settings"}
    return measured


def _saving(recipe: Recipe, folder: Path) -> Recipe:
    """Make the recipe save its net and gates at the moments."""
    inner, epochs = recipe.step, next(stage.epochs for stage in recipe.schedule.stages if stage.name == "plastic")
    epoch_of = dict(zip(MOMENTS, (0, epochs // 2, epochs - 1), strict=True))

    def step(stage: npn.Stage, position: int, batch: int) -> None:
        inner(stage, position, batch)
        for moment, epoch in epoch_of.items():
            if stage.name == "plastic" and (position, batch) == (epoch, 0):
                npn.save(folder / f"{moment}.npn", recipe.plastic)

    recipe.step = step
    return recipe


def measure_moment(recipe: Recipe, how: Settings) -> dict[str, Any]:
    """Measure every estimator on the same batches, with fixed weights and gates, in train mode.

    The reference is the unbiased estimator with the smallest variance times seconds; its draws are others than the
    single ones.

    Args:
        recipe: at the moment.
        how: numbers of measurements.
    """
    plastic = recipe.plastic
    plastic.model.train()
    device = str(recipe.data.train.x.device)
    batches = list(zip(range(how.batches), shuffled(recipe.data, recipe.batch_size, 0, OTHER_ORDER), strict=False))
    losses = [_loss(x, y) for _, (x, y) in batches]
    times = gradients.step_times(plastic, losses[0], ESTIMATORS, how.rounds, device)
    found: dict[str, list[dict[str, Quality]]] = {name: [] for name in ESTIMATORS}
    chosen = []
    for number, loss in enumerate(losses):
        singles = {
            name: gradients.draws(plastic, loss, name, how.draws, seed=100 * number + i)
            for i, name in enumerate(ESTIMATORS)
        }
        price = {name: float(singles[name].var(0).sum()) * times[name]["seconds"] for name in UNBIASED}
        chosen.append(min(price, key=lambda name: price[name]))
        reference = gradients.draws(plastic, loss, chosen[-1], how.reference, seed=REFERENCE_SEED + number)
        for name in ESTIMATORS:
            found[name].append(gradients.by_group(plastic, singles[name], reference))
    return {
        **recipe.measure(plastic),
        "physical_units": {group.name: group.size for group in plastic.groups},
        "k": plastic.k,
        "batch_size": recipe.batch_size,
        "reference": {"estimator": chosen, "draws": how.reference, "independent_of_single_draws": True},
        "quality": {name: _mean(found[name]) for name in ESTIMATORS},
        "step": times,
    }


def _loss(x: Tensor, y: Tensor) -> Callable[[nn.Module], Tensor]:
    return lambda model: F.cross_entropy(model(x), y)


def _mean(batches: Sequence[Mapping[str, Quality]]) -> dict[str, Quality]:
    """Average each number over the batches where it could be measured."""
    mean: dict[str, Quality] = {}
    for group in batches[0]:
        mean[group] = {}
        for key in batches[0][group]:
            values = [value for batch in batches if (value := batch[group][key]) is not None]
            mean[group][key] = fmean(values) if values else None
    return mean


def step_costs(moments: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the time of a step with each estimator over that of a dense step, averaged over the moments.

    Args:
        moments: see `measure_moments`.
    """
    steps = [moment["step"] for moment in moments.values()]
    return {name: fmean(step[name]["median"] for step in steps) for name in steps[0]}


def shortened(lengths: Sequence[int], factor: float) -> list[int]:
    """Shorten the plastic stage, the only one that uses an estimator, so that slower steps take as long.

    Args:
        lengths: epochs of the three stages.
        factor: time of a step over that of a step of the original stage.

    Example:
        >>> shortened([3, 10, 5], 1.6)
        [3, 6, 5]
    """
    pretrain, plastic, finetune = lengths
    return [pretrain, max(1, round(plastic / max(1.0, factor))), finetune]


def _row(protocol: str, directory: RunDirectory) -> Row:
    result = directory.result()
    keys = ("seed", "accuracy", "params", "params_with_biases", "macs", "architecture", "seconds")
    plastic = next(stage["seconds"] for stage in result["stages"] if stage["stage"] == "plastic")
    return {
        "protocol": protocol,
        "estimator": result["options"]["estimator"],
        "epochs": result["options"]["epochs"],
        **{key: result[key] for key in keys},
        "plastic_seconds": plastic,
    }


def summarise(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Compute the spread over the seeds.

    Args:
        rows: one per protocol, estimator and seed.

    Returns:
        Protocol -> estimator -> spreads.
    """
    ends: dict[str, dict[str, Any]] = {}
    for row in rows:
        ends.setdefault(row["protocol"], {}).setdefault(row["estimator"], []).append(row)
    keys = ("accuracy", "params", "seconds", "plastic_seconds")
    return {
        protocol: {
            name: {
                "runs": len(found),
                "epochs": found[0]["epochs"],
                **{key: spread([row[key] for row in found]) for key in keys},
            }
            for name, found in estimators.items()
        }
        for protocol, estimators in ends.items()
    }


def _text(lengths: Sequence[int]) -> str:
    return ",".join(map(str, lengths))
