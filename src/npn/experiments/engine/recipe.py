"""What an experiment is: a recipe, built from settings, that the runner trains, and the outcome that it leaves."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import npn
from npn.experiments.data.splits import Data
from npn.experiments.engine.options import Options

Row = dict[str, Any]


@dataclass
class Recipe:
    """What an experiment hands to the runner: everything that a training needs, built and tracked.

    Attributes:
        plastic: the attached model.
        schedule: its stages.
        weights: optimizer of `plastic.weights()`.
        gates: optimizer of `plastic.logits()`.
        data: on the model's device.
        batch_size: examples per step.
        measure: the size as the experiment reports it, at least `params` and `architecture`.
        growth: the policy that adds units during stages of finite k, if any.
        compact_below: units whose keep probability has fallen below this are removed after each epoch.
        settle: epochs at the end of a stage in which nothing grows, so that what is new has time to prove itself.
        grow_first: a budget's price stays at nothing while growth goes on, instead of closing what has just grown.
        step: called before each training step with the stage, the epoch's position in it and the batch's position in
            the epoch; sets learning rates and the like.
        snapshot: called at the end of each stage; its tensors are kept for the pictures.
        augment: changes a batch of training inputs, as stored; its draws come from the generator alone, which follows
            from seed and epoch.
        prepare: makes what the model takes of inputs as stored.
        forward: calls the model, or a plain copy of it, on prepared inputs.
        scaler: of the loss, where the precision needs one.
        about: goes into the result as it is.
    """

    plastic: npn.Plasticity
    schedule: npn.Schedule
    weights: Optimizer
    gates: Optimizer
    data: Data
    batch_size: int
    measure: Callable[[npn.Plasticity], dict[str, Any]]
    growth: npn.Growth | None = None
    compact_below: float = 1e-3
    settle: int = 1
    grow_first: bool = False
    step: Callable[[npn.Stage, int, int], None] = lambda stage, position, batch: None
    snapshot: Callable[[nn.Module], dict[str, Tensor]] = lambda model: {}
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    prepare: Callable[[Tensor], Tensor] = lambda x: x
    forward: Callable[[nn.Module, Tensor], Tensor] = lambda model, x: model(x)
    scaler: torch.amp.GradScaler | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def grows(self, stage: npn.Stage, position: int) -> bool:
        """Whether something may grow after this epoch of the stage."""
        return (
            self.growth is not None
            and not self.growth.done
            and math.isfinite(stage.k)
            and position < stage.epochs - self.settle
        )

    def logits(self, model: nn.Module, x: Tensor) -> Tensor:
        """The logits of a batch of inputs as stored."""
        return self.forward(model, self.prepare(x))


@dataclass(frozen=True)
class Experiment:
    """One entry of `npn run`.

    Attributes:
        name: as on the command line.
        defaults: the settings that a user leaves open, given those that are set.
        build: makes the recipe from complete settings; everything random in it follows from the global seed.
        draw: makes the pictures in the run's folder.
        sample: a plain model of the recipe's kind at any width and an example batch of two for it, from complete
            settings; without data, on the CPU.
        checkpoint_every: epochs between checkpoints.
        threads: how many torch may use, or None for its own choice. Small networks only wait for a second one, all the
            more on a machine that has other work.
        options: the class of its settings.
    """

    name: str
    defaults: Callable[[Options], Options]
    build: Callable[[Options], Recipe]
    draw: Callable[[Path, "Outcome"], list[Path]]
    sample: Callable[[Options], tuple[nn.Module, Tensor]]
    checkpoint_every: int = 1
    threads: int | None = None
    options: type[Options] = Options


@dataclass(frozen=True)
class Outcome:
    """A finished run: its result, one row per epoch, and each stage's snapshot."""

    result: Row
    rows: list[Row]
    snapshots: dict[str, dict[str, Tensor]]
