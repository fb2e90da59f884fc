"""Trains a recipe stage by stage, keeps its metrics, and stops and resumes without changing the result."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import npn
from npn import distributed
from npn.experiments.data.splits import Data, Split
from npn.experiments.engine import processes
from npn.experiments.engine.execution import threads
from npn.experiments.engine.observers import Observer, Observers
from npn.experiments.engine.options import Options
from npn.experiments.engine.recipe import Experiment, Outcome, Recipe, Row
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.engine.stopping import Deadline, Interrupted, OutOfTime, stop_signal
from npn.experiments.report.tables import command_line, machine, versions
from npn.integrations.tensorboard import keep_histogram
from npn.tracing.single import evaluating

HISTOGRAM_BINS = 20


@dataclass
class Progress:
    """What a run has come to beyond the recipe's own state: kept in checkpoints."""

    rows: int = 0
    seconds: float = 0.0
    stages: list[Row] = field(default_factory=list)
    snapshots: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def run(
    experiment: Experiment,
    options: Options,
    directory: RunDirectory,
    observer: Observer,
    *,
    resume: bool = False,
    stop_after: float | None = None,
) -> Outcome:
    """Train from the start, or from the directory's checkpoint, to the end; write result, model and pictures.

    Under `torchrun` several processes train together: each takes its part of every batch and draws its own masks, the
    first evaluates and writes. A run can be resumed with another number of them.

    Args:
        experiment: what to run.
        options: the user's settings; for a run to resume, none may contradict those it began with.
        directory: where the run lives. Without `resume`, what an earlier run left there is deleted.
        observer: is told of every epoch and stage.
        resume: go on from the checkpoint.
        stop_after: minutes from now after which no epoch may be under way, as far as the last epochs let one tell.

    Returns:
        What is in the directory afterwards.

    Raises:
        Interrupted: on SIGINT or SIGTERM, once the epoch under way is finished and in a checkpoint.
        OutOfTime: likewise, because of `stop_after`.
        ConfigurationError: a setting cannot be, or differs from that of the run to resume.
        CheckpointError: there is nothing to resume from, or it is damaged.
    """
    deadline = Deadline(stop_after)
    saved = directory.options(experiment.options) if resume else None
    options = options.over(experiment.defaults(options)) if saved is None else options.resumed(saved)
    processes.check_device(options.device)
    with processes.group(), threads(experiment.threads):
        torch.manual_seed(options.seed or 0)
        recipe = experiment.build(options)
        if resume:
            progress = _resume(recipe, directory)
        else:
            processes.from_first(lambda: directory.start(options))
            progress = Progress()
        observer = Observers([observer] if distributed.rank() == 0 else [])
        _train(recipe, options.seed or 0, directory, progress, observer, experiment.checkpoint_every, deadline)
        return processes.from_first(lambda: _conclude(experiment, recipe, options, directory, progress))


def _train(
    recipe: Recipe,
    seed: int,
    directory: RunDirectory,
    progress: Progress,
    observer: Observer,
    checkpoint_every: int,
    deadline: Deadline,
) -> None:
    """Every epoch that is left."""
    schedule, began = recipe.schedule, time.perf_counter() - progress.seconds
    with stop_signal() as stop:
        for stage, row in epochs(recipe, seed):
            processes.from_first(partial(directory.append, row))
            progress.rows += 1
            seconds, progress.seconds = progress.seconds, time.perf_counter() - began
            deadline.epoch(progress.seconds - seconds)
            observer.epoch(row, schedule.epochs)
            _, start, stop_epoch = _span(schedule, stage)  # now: a plateau may just have ended the stage
            if row["epoch"] + 1 == stop_epoch:
                progress.stages.append(_stage_entry(row, stop_epoch - start, progress))
                progress.snapshots[stage.name] = recipe.snapshot(recipe.plastic.model)
                observer.stage(progress.stages[-1])
            stopped, late = processes.any_of(stop.is_set(), deadline.near)
            if stopped or late or schedule.done or progress.rows % checkpoint_every == 0:
                processes.from_first(partial(_checkpoint, recipe, directory, progress))
            if (stopped or late) and not schedule.done:
                raise Interrupted if stopped else OutOfTime


def epochs(recipe: Recipe, seed: int) -> Iterator[tuple[npn.Stage, Row]]:
    """Train epoch by epoch, as often as the schedule has any left; each ends with its stage and its measurements."""
    call: Callable[[Tensor], Tensor] = partial(recipe.forward, recipe.plastic.model)
    if distributed.size() > 1:
        calling = processes.Calling(recipe.plastic.model, recipe.forward)
        call = distributed.wrap(recipe.plastic, calling)
    for epoch in recipe.schedule:
        stage = recipe.schedule.enter(epoch, recipe.plastic)
        yield stage, _epoch(recipe, call, epoch, stage, epoch - _span(recipe.schedule, stage)[1], seed)


def _conclude(
    experiment: Experiment, recipe: Recipe, options: Options, directory: RunDirectory, progress: Progress
) -> Outcome:
    """Export the model, measure what was exported, and write everything down, the result last."""
    small = recipe.plastic.export()
    _, accuracy = evaluate(small, recipe.data.test, forward=recipe.logits)
    last = {key: progress.stages[-1][key] for key in recipe.measure(recipe.plastic)}
    result = {
        "experiment": experiment.name,
        "mode": options.mode,
        "seed": options.seed,
        "processes": distributed.size(),
        "accuracy": accuracy,
        **last,
        "macs": npn.count_macs(small, recipe.prepare(recipe.data.test.x[:1])),
        **recipe.about,
        "stages": progress.stages,
        "seconds": round(progress.seconds, 3),
        "command": command_line(),
        "options": options.as_dict(),
        "versions": versions(),
        "machine": machine(options.device or "cpu"),
    }
    npn.save(directory.model_file, small)
    outcome = Outcome(result, directory.metrics(), progress.snapshots)
    experiment.draw(directory.path, outcome)
    directory.finish(result)
    return outcome


def evaluate(
    model: nn.Module,
    split: Split,
    batch_size: int = 1024,
    forward: Callable[[nn.Module, Tensor], Tensor] = lambda model, x: model(x),
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in eval mode; every module's own mode is as before afterwards.

    Args:
        model: maps a batch of inputs to logits (B, classes).
        split: the examples.
        batch_size: examples per forward pass.
        forward: gives the logits, where the model is not simply called.

    Returns:
        Loss in nats per example, and the share of examples classified correctly.
    """
    loss, correct = 0.0, 0
    with evaluating(model), torch.no_grad():
        for x, y in zip(split.x.split(batch_size), split.y.split(batch_size), strict=True):
            logits = forward(model, x)
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
            correct += int((logits.argmax(1) == y).sum())
    return loss / len(split), correct / len(split)


def shuffled(data: Data, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The training data in batches. The order follows from seed and epoch alone, so a resumed run sees the same one."""
    generator = torch.Generator().manual_seed(_epoch_seed(seed, epoch))
    order = torch.randperm(len(data.train), generator=generator).to(data.train.x.device)
    for chosen in order.split(batch_size):
        yield data.train.x[chosen], data.train.y[chosen]


def _epoch(
    recipe: Recipe, call: Callable[[Tensor], Tensor], epoch: int, stage: npn.Stage, position: int, seed: int
) -> Row:
    """Train for one epoch, remove what has closed, add what growth asks for, and measure."""
    plastic, model = recipe.plastic, recipe.plastic.model
    device = recipe.data.train.x.device
    generator = torch.Generator(device).manual_seed(_epoch_seed(seed, epoch))
    total, examples = torch.zeros((), dtype=torch.float64, device=device), 0  # read once: no batch waits for the device
    held = recipe.grow_first and recipe.grows(stage, position)
    processes.reseed(seed, epoch)
    model.train()
    for batch, (x, y) in enumerate(shuffled(recipe.data, recipe.batch_size, seed, epoch)):
        recipe.step(stage, position, batch)
        if held:
            plastic.penalty.reset()
        recipe.weights.zero_grad()
        recipe.gates.zero_grad()
        size = len(y)
        # the whole batch is augmented on every process: with the draws of one process
        x, y, weight = processes.shard(x if recipe.augment is None else recipe.augment(x, generator), y)
        loss = plastic.backward(
            partial(_loss, call, recipe.prepare(x), y, weight),
            scale=1.0 if recipe.scaler is None else recipe.scaler,
        )
        _update(recipe)
        total += loss.double() * size
        examples += size
    total = distributed.mean(total)
    plastic.compact(below=recipe.compact_below)
    distributed.broadcast(model.buffers())  # BatchNorm's statistics: the first process's, of its part of the data
    row = processes.from_first(lambda: _measured(recipe, epoch, stage, float(total) / examples))
    recipe.schedule.observe(row["validation_loss"])
    if recipe.growth is not None and recipe.grows(stage, position):
        recipe.growth.step(row["validation_loss"], plastic)
    distributed.check(plastic)
    return row


def _loss(call: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, weight: float) -> Tensor:
    loss = F.cross_entropy(call(x), y)
    return loss if weight == 1.0 else loss * weight


def _measured(recipe: Recipe, epoch: int, stage: npn.Stage, loss: float) -> Row:
    plastic, model = recipe.plastic, recipe.plastic.model
    validation_loss, validation_accuracy = evaluate(model, recipe.data.validation, forward=recipe.logits)
    _, accuracy = evaluate(model, recipe.data.test, forward=recipe.logits)
    return {
        "epoch": epoch,
        "stage": stage.name,
        "k": plastic.k if math.isfinite(plastic.k) else "inf",  # JSON has no infinity; float() reads both
        "loss": loss,
        "validation_loss": validation_loss,
        "validation_accuracy": validation_accuracy,
        "accuracy": accuracy,
        **recipe.measure(plastic),
        "units": dict(plastic.sizes()),
        "keep": {group.name: keep_histogram(group.gate.keep_probability(), HISTOGRAM_BINS) for group in plastic.groups},
    }


def _epoch_seed(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch


def _update(recipe: Recipe) -> None:
    """Both optimizers' steps; under a scaler, only of an optimizer that has gradients (at k = inf the gates rest)."""
    for optimizer in (recipe.weights, recipe.gates):
        if recipe.scaler is None:
            optimizer.step()
        elif any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            recipe.scaler.step(optimizer)
    if recipe.scaler is not None:
        recipe.scaler.update()


def _span(schedule: npn.Schedule, stage: npn.Stage) -> tuple[str, int, int]:
    return next(span for span in schedule.spans() if span[0] == stage.name)


def _stage_entry(row: Row, epochs: int, progress: Progress) -> Row:
    before = sum(entry["seconds"] for entry in progress.stages)
    drop = {"epoch", "stage", "loss", "keep"}
    return {
        "stage": row["stage"],
        "epochs": epochs,
        **{key: value for key, value in row.items() if key not in drop},
        "seconds": round(progress.seconds - before, 3),
    }


def _stateful(recipe: Recipe) -> dict[str, Any]:
    """What a checkpoint keeps besides the model, its gates, the tracked optimizers and the random states."""
    optional = {"growth": recipe.growth, "scaler": recipe.scaler}
    return {"schedule": recipe.schedule, **{name: value for name, value in optional.items() if value is not None}}


def _checkpoint(recipe: Recipe, directory: RunDirectory, progress: Progress) -> None:
    npn.save(directory.checkpoint_file, recipe.plastic, extra=vars(progress), **_stateful(recipe))


def _resume(recipe: Recipe, directory: RunDirectory) -> Progress:
    progress = Progress(**npn.read_extra(directory.checkpoint_file))
    processes.from_first(lambda: directory.truncate(progress.rows))
    npn.load(directory.checkpoint_file, recipe.plastic, **_stateful(recipe))
    return progress
