"""Prepares a run, trains it to its end, and stops and resumes it without changing the result."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import npn
from npn import distributed
from npn.cuda_graphs import own_stream
from npn.errors import CheckpointError
from npn.experiments.engine import processes
from npn.experiments.engine.execution import threads
from npn.experiments.engine.observers import Observer, Observers
from npn.experiments.engine.options import Options
from npn.experiments.engine.pages import write_report
from npn.experiments.engine.recipe import Experiment, Outcome, Recipe, Row
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.engine.stopping import Deadline, Interrupted, OutOfTime, stop_signal
from npn.experiments.engine.training import epochs, evaluate, span
from npn.experiments.report.provenance import command_line, machine, versions


@dataclass
class Progress:
    """State of a run besides the recipe's; checkpoints keep it.

    Attributes:
        rows: number of epochs that have ended.
        seconds: that they took.
        stages: summaries of the stages that have ended.
        snapshots: stage -> tensors that were kept at its end.
        frames: of the animation, if there is to be one.
        ended: seconds from the start to the end of each epoch.
    """

    rows: int = 0
    seconds: float = 0.0
    stages: list[Row] = field(default_factory=list)
    snapshots: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    frames: list[dict[str, Tensor]] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)


def run(
    experiment: Experiment,
    options: Options,
    directory: RunDirectory,
    observer: Observer,
    *,
    resume: bool = False,
    stop_after: float | None = None,
    frames: int = 0,
) -> Outcome:
    """Train to the end, from the start or from a checkpoint; write result, model, figures and report.

    Under `torchrun` several processes train together: each takes its part of every batch and draws its own masks, and
    the first one evaluates and writes. Any number of processes can resume the run.

    Args:
        experiment: to run.
        options: settings of the user; those of a resumed run must not contradict the ones that it began with.
        directory: of the run. Without `resume`, files of an earlier run there are deleted.
        observer: is called after every epoch and stage, on the first process.
        resume: continue from the checkpoint.
        stop_after: limit in minutes from now. The run stops before an epoch that would end later, judged by the last
            epochs.
        frames: of an animation, spread evenly over the epochs; 0 for none. A resumed run adds those that it still can.

    Returns:
        The finished run.

    Raises:
        Interrupted: after SIGINT or SIGTERM, once the epoch has ended and a checkpoint is written.
        OutOfTime: the same, because of `stop_after`.
        ConfigurationError: a setting is not allowed, or differs from that of the run to resume; another command trains
            in the folder.
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    deadline = Deadline(stop_after)
    if resume:
        options = options.resumed(experiment.complete(directory.options(experiment.options)))
    else:
        options = experiment.complete(options)
    processes.check_device(options.device)
    with processes.group(), threads(experiment.threads), own_stream(options.device), ExitStack() as held:
        torch.manual_seed(options.seed or 0)
        recipe = experiment.build(options)
        macs = npn.count_macs(recipe.plastic.model, recipe.prepare(recipe.data.test.x[:1]))
        processes.from_first(lambda: held.enter_context(directory.held()))
        if resume:
            progress = _resume(recipe, directory)
        else:
            processes.from_first(lambda: directory.start(options))
            progress = Progress()
        shown = observer if processes.rank() == 0 else Observers()
        try:
            _train(recipe, options.seed or 0, directory, progress, shown, experiment.checkpoint_every, deadline, frames)
        except Interrupted:
            processes.from_first(lambda: write_report(directory, experiment.name))
            raise
        outcome = processes.from_first(lambda: _conclude(experiment, recipe, options, directory, progress, macs))
        processes.from_first(lambda: write_report(directory))
        return outcome


def _train(
    recipe: Recipe,
    seed: int,
    directory: RunDirectory,
    progress: Progress,
    observer: Observer,
    checkpoint_every: int,
    deadline: Deadline,
    frames: int,
) -> None:
    """Train the epochs that are left; record each of them, and write checkpoints."""
    schedule, began = recipe.schedule, time.perf_counter() - progress.seconds
    with stop_signal() as stop:
        for stage, row in epochs(recipe, seed):
            processes.from_first(partial(directory.append, row))
            progress.rows += 1
            seconds, progress.seconds = progress.seconds, time.perf_counter() - began
            progress.ended.append(round(progress.seconds, 3))
            deadline.epoch(progress.seconds - seconds)
            observer.epoch(row, schedule.epochs)
            if frames and _begins_frame(row["epoch"], schedule.epochs, frames):
                progress.frames.append(_frame(recipe, row["epoch"]))
            start, end = span(schedule, stage)  # after the epoch: a plateau may have ended the stage
            if row["epoch"] + 1 == end:
                progress.stages.append(_stage_entry(row, end - start, progress))
                progress.snapshots[stage.name] = recipe.snapshot(recipe.plastic.model)
                observer.stage(progress.stages[-1])
            stopped, late = processes.any_of(stop.is_set(), deadline.near)
            if stopped or late or schedule.done or progress.rows % checkpoint_every == 0:
                processes.from_first(partial(_checkpoint, recipe, directory, progress))
            if (stopped or late) and not schedule.done:
                raise Interrupted if stopped else OutOfTime


def _begins_frame(epoch: int, epochs: int, frames: int) -> bool:
    """Whether an epoch is one of so many that are spread evenly; the first and the last one are."""
    if epoch in (0, epochs - 1) or epochs <= frames:
        return True
    return epoch * (frames - 1) // (epochs - 1) > (epoch - 1) * (frames - 1) // (epochs - 1)


def _frame(recipe: Recipe, epoch: int) -> dict[str, Tensor]:
    """What an animation shows of an epoch; the least likely units come last."""
    keep = {
        f"keep/{group.name}": group.gate.keep_probability().detach().sort(descending=True).values.cpu()
        for group in recipe.plastic.groups
    }
    return {"epoch": torch.tensor(epoch), **keep, **recipe.snapshot(recipe.plastic.model)}


def _stage_entry(row: Row, epochs: int, progress: Progress) -> Row:
    before = sum(entry["seconds"] for entry in progress.stages)
    drop = {"epoch", "stage", "loss", "keep", "cost", "bound", "training_macs"}
    return {
        "stage": row["stage"],
        "epochs": epochs,
        **{key: value for key, value in row.items() if key not in drop},
        "seconds": round(progress.seconds - before, 3),
    }


def _conclude(
    experiment: Experiment, recipe: Recipe, options: Options, directory: RunDirectory, progress: Progress, macs: int
) -> Outcome:
    """Export and measure the model, draw the figures, and write everything, the result last."""
    small = recipe.plastic.export()
    tested, score = evaluate(small, recipe.data.test, forward=recipe.logits), recipe.score
    last = {key: progress.stages[-1][key] for key in recipe.measure(recipe.plastic)}
    rows, held_out = directory.metrics(), score.keys[1]
    result = {
        "experiment": experiment.name,
        "mode": options.mode,
        "seed": options.seed,
        "processes": distributed.size(),
        score.key: score.of(*tested),
        **last,
        held_out: rows[-1][held_out],
        "macs": npn.count_macs(small, recipe.prepare(recipe.data.test.x[:1])),
        "macs_at_start": macs,
        "training_macs": sum(row["training_macs"] for row in rows),
        **recipe.about,
        "stages": progress.stages,
        "seconds": round(progress.seconds, 3),
        "epochs_ended": progress.ended,
        "command": command_line(),
        "options": options.as_dict(),
        "versions": versions(),
        "machine": machine(options.device or "cpu"),
    }
    npn.save(directory.model_file, small)
    outcome = Outcome(result, rows, progress.snapshots, progress.frames)
    experiment.draw(directory.path, outcome)
    if experiment.animate is not None and progress.frames:
        experiment.animate(directory.path, outcome)
    directory.finish(result)
    return outcome


def _stateful(recipe: Recipe) -> dict[str, Any]:
    """Objects whose state a checkpoint keeps, besides model, gates, tracked optimizers and random states."""
    optional = {"growth": recipe.growth, "scaler": recipe.scaler}
    own = {name: value for name, value in optional.items() if value is not None}
    return {"schedule": recipe.schedule, **own, **recipe.procedure.state()}


def _checkpoint(recipe: Recipe, directory: RunDirectory, progress: Progress) -> None:
    npn.save(directory.checkpoint_file, recipe.plastic, extra=vars(progress), **_stateful(recipe))


def _resume(recipe: Recipe, directory: RunDirectory) -> Progress:
    try:
        extra = npn.read_extra(directory.checkpoint_file)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. A run keeps one checkpoint alone: --overwrite starts it anew") from error
    progress = Progress(**extra)
    processes.from_first(lambda: directory.truncate(progress.rows))
    ended = sum(entry["epochs"] for entry in progress.stages)
    for stage in recipe.schedule.stages[: len(progress.stages) + (progress.rows > ended)]:
        recipe.begin(stage)
    npn.load(directory.checkpoint_file, recipe.plastic, **_stateful(recipe))
    return progress
