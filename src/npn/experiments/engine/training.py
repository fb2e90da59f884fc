"""Trains a recipe epoch by epoch: batches, one epoch, measurements."""

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import npn
from npn import distributed
from npn._utils.models import evaluating
from npn.experiments.data.splits import Data, Split
from npn.experiments.engine import processes
from npn.experiments.engine.recipe import Recipe, Row
from npn.experiments.engine.training_cost import TrainingMacs
from npn.integrations.tensorboard import keep_histogram

HISTOGRAM_BINS = 20


def epochs(recipe: Recipe, seed: int) -> Iterator[tuple[npn.Stage, Row]]:
    """Train the epochs that the schedule has left.

    Args:
        recipe: to train.
        seed: of the run.

    Yields:
        After each epoch its stage and its measurements.
    """
    call: Callable[[Tensor], Tensor] = partial(recipe.forward, recipe.plastic.model)
    if distributed.size() > 1:
        calling = processes.Calling(recipe.plastic.model, recipe.forward)
        call = distributed.wrap(recipe.plastic, calling)
    effort = TrainingMacs(recipe)
    for epoch in recipe.schedule:
        stage = recipe.schedule.enter(epoch, recipe.plastic)
        position = epoch - span(recipe.schedule, stage)[0]
        if position == 0:
            recipe.begin(stage)
            if recipe.fits(stage):
                npn.fit_to_budget(recipe.plastic, round_to=recipe.round_to)
            if recipe.start_from is not None and 0.0 < stage.k < math.inf:
                inform(recipe, recipe.start_from, seed, epoch)
        macs = effort.epoch(stage)
        row = _epoch(recipe, call, epoch, stage, position, seed)
        yield stage, {**row, "training_macs": macs + row["training_macs"]}


def inform(recipe: Recipe, criterion: str, seed: int, epoch: int, batches: int = 20) -> None:
    """Let the gates start from the importance of their units on some batches of training data, at the same mean.

    Args:
        recipe: to train.
        criterion: of `npn.importance`.
        seed: of the run.
        epoch: the batches are the first of this epoch.
        batches: number of batches.
    """
    plastic = recipe.plastic

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(recipe.logits(model, batch[0]), batch[1])

    chosen = list(itertools.islice(shuffled(recipe.data, recipe.batch_size, seed, epoch), batches))
    with evaluating(plastic.model):
        npn.start_from(plastic, npn.importance(plastic, criterion, chosen, loss))


def span(schedule: npn.Schedule, stage: npn.Stage) -> tuple[int, int]:
    """Return the first epoch of a stage and the epoch after its last.

    Args:
        schedule: with the stage.
        stage: to find.
    """
    return next((start, stop) for name, start, stop in schedule.spans() if name == stage.name)


def shuffled(data: Data, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Divide the training examples of an epoch into batches in random order.

    The order follows from seed and epoch alone, so that it is the same in a resumed run.

    Args:
        data: its training part counts.
        batch_size: examples per batch; the last one may have fewer.
        seed: of the run.
        epoch: number of the epoch.

    Yields:
        Inputs and classes of each batch.
    """
    generator = torch.Generator().manual_seed(_epoch_seed(seed, epoch))
    for chosen in data.order(generator).to(data.train.x.device).split(batch_size):
        yield data.train.x[chosen], data.train.y[chosen]


def evaluate(
    model: nn.Module,
    split: Split,
    batch_size: int = 1024,
    forward: Callable[[nn.Module, Tensor], Tensor] = lambda model, x: model(x),
) -> tuple[float, float]:
    """Compute mean cross-entropy and accuracy in eval mode; afterwards every module has its own mode again.

    Args:
        model: maps a batch of inputs to logits (B, classes), or (B, classes, T) for T predictions of each example.
        split: examples.
        batch_size: examples per forward pass.
        forward: computes the logits, if calling the model does not.

    Returns:
        Loss in nats per prediction, and the share of predictions that are correct.
    """
    loss, correct = 0.0, 0
    with evaluating(model), torch.no_grad():
        for x, y in zip(split.x.split(batch_size), split.y.split(batch_size), strict=True):
            logits = forward(model, x)
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
            correct += int((logits.argmax(1) == y).sum())
    return loss / split.y.numel(), correct / split.y.numel()


def _epoch(
    recipe: Recipe, call: Callable[[Tensor], Tensor], epoch: int, stage: npn.Stage, position: int, seed: int
) -> Row:
    """Train for one epoch, remove the units that have closed, measure, and grow."""
    plastic = recipe.plastic
    loss, macs = _train(recipe, call, recipe.epochs_before + epoch, stage, position, seed)
    macs += recipe.procedure.after_epoch(plastic, stage, position, recipe.compact_below)
    distributed.broadcast(plastic.model.buffers())  # BatchNorm's statistics: those of the first process's part
    row = processes.from_first(lambda: _measured(recipe, epoch, stage, loss))
    recipe.schedule.observe(row["validation_loss"])
    if recipe.growth is not None and recipe.grows(stage, position):
        x, y = next(shuffled(recipe.data, recipe.choosing, seed, epoch))
        with warnings.catch_warnings():  # what a recipe freezes, as the projection of the moons, it freezes on purpose
            warnings.filterwarnings("ignore", message="new units have entries in frozen parameters")
            recipe.growth.step(
                row["validation_loss"], plastic, loss=lambda: F.cross_entropy(recipe.logits(plastic.model, x), y)
            )
    distributed.check(plastic)
    return {**row, "training_macs": macs}


def _train(
    recipe: Recipe, call: Callable[[Tensor], Tensor], epoch: int, stage: npn.Stage, position: int, seed: int
) -> tuple[float, int]:
    """Update the model on every batch of an epoch; return the mean loss, and what the procedure's own passes cost."""
    plastic, device = recipe.plastic, recipe.data.train.x.device
    generator = torch.Generator(device).manual_seed(_epoch_seed(seed, epoch))
    total, examples = torch.zeros((), dtype=torch.float64, device=device), 0  # read once: no batch waits for the device
    growing = recipe.grows(stage, position)
    macs, before = 0, position * math.ceil(recipe.data.epoch / recipe.batch_size)
    processes.reseed(seed, epoch)
    plastic.model.train()
    for batch, (x, y) in enumerate(shuffled(recipe.data, recipe.batch_size, seed, epoch)):
        recipe.step(stage, position, batch)
        recipe.weights.zero_grad()
        recipe.gates.zero_grad()
        size = len(y)
        # every process augments the whole batch: so the draws do not depend on the number of processes
        x, y, weight = processes.shard(x if recipe.augment is None else recipe.augment(x, generator), y)
        loss = _backward(recipe, stage, partial(_loss, recipe, call, weight), recipe.prepare(x), y)
        if recipe.grow_first and (growing or plastic.gates.grace_left):
            plastic.penalty.reset()
        _update(recipe)
        macs += recipe.procedure.after_step(plastic, stage, before + batch + 1)
        total += loss.double() * size
        examples += size
    return float(distributed.mean(total)) / examples, macs


def _backward(
    recipe: Recipe, stage: npn.Stage, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> Tensor:
    scale = 1.0 if recipe.scaler is None else recipe.scaler
    if recipe.graphs is not None:
        return recipe.graphs.backward(loss, x, y, scale=scale)
    return recipe.procedure.backward(recipe.plastic, stage, partial(loss, x, y), scale)


def _loss(recipe: Recipe, call: Callable[[Tensor], Tensor], weight: float, x: Tensor, y: Tensor) -> Tensor:
    lone = recipe.antithetic_eval and not torch.is_grad_enabled()
    with evaluating(recipe.plastic.model) if lone else contextlib.nullcontext():
        loss = recipe.loss(call(x), x, y)
    return loss if weight == 1.0 else loss * weight


def _update(recipe: Recipe) -> None:
    """Step both optimizers; a scaler skips one without gradients (at k = inf the gates have none)."""
    for optimizer in (recipe.weights, recipe.gates):
        if recipe.scaler is None:
            optimizer.step()
        elif any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            recipe.scaler.step(optimizer)
    if recipe.scaler is not None:
        recipe.scaler.update()


def _measured(recipe: Recipe, epoch: int, stage: npn.Stage, loss: float) -> Row:
    plastic, model = recipe.plastic, recipe.plastic.model
    on_test, on_validation = recipe.score.keys
    held_out = evaluate(model, recipe.data.validation, forward=recipe.logits)
    tested = evaluate(model, recipe.data.test, forward=recipe.logits)
    return {
        "epoch": epoch,
        "stage": stage.name,
        "k": plastic.k if math.isfinite(plastic.k) else "inf",  # JSON has no infinity; float() reads both
        "loss": loss,
        "validation_loss": held_out[0],
        on_validation: recipe.score.of(*held_out),
        on_test: recipe.score.of(*tested),
        **recipe.measure(plastic),
        **_priced(plastic),
        "units": dict(plastic.sizes()),
        "keep": {group.name: keep_histogram(group.gate.keep_probability(), HISTOGRAM_BINS) for group in plastic.groups},
    }


def _priced(plastic: npn.Plasticity) -> Row:
    """Report the expected cost, and its present bound: None without a budget, and where its path has not begun."""
    penalty = plastic.penalty
    bound = penalty.bound_now if isinstance(penalty, npn.Budget) else None
    with torch.no_grad():
        cost = float(plastic.expected_cost(penalty.cost))
    return {"cost": cost, "bound": None if bound is None else float(bound)}


def _epoch_seed(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch
