"""The engine's input and output: a recipe, the experiment that builds it, and the outcome of a run."""

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
from npn.experiments.engine.procedure import Procedure
from npn.experiments.engine.teaching import untaught
from npn.experiments.report.scores import ACCURACY, Score

Row = dict[str, Any]
CLOSE = 1.1  # cost over its budget up to which the rest is cut at the end of the plastic stage


@dataclass
class Recipe:
    """Everything that a training needs, built and tracked.

    Attributes:
        plastic: the attached model.
        schedule: stages of the training.
        weights: optimizer of `plastic.weights()`.
        gates: optimizer of `plastic.logits()`.
        data: on the model's device.
        batch_size: examples per step.
        measure: reports the size as the experiment counts it, at least `params` and `architecture`.
        growth: adds units during stages of finite k, if any.
        compact_below: after each epoch, units whose keep probability is below this are removed.
        settle: epochs at the end of a stage without growth, in which new units prove themselves.
        grow_first: keep the price of a budget at 0 while the network grows and its new units are held open; the path of
            the budget begins after that.
        step: called before each training step with the stage, the position of the epoch in it and the position of the
            batch in the epoch; sets learning rates.
        snapshot: called at the end of each stage, and for each frame of an animation; returns tensors to keep for the
            figures.
        augment: changes a batch of training inputs, as stored; only the generator, which follows from seed and epoch,
            decides its draws.
        loss: of logits, prepared inputs and classes, a mean over the predictions; cross-entropy by default.
        prepare: converts stored inputs to the inputs of the model.
        forward: calls the model, or a plain copy of it, on prepared inputs.
        scaler: of the loss, if the precision needs one.
        graphs: replays training steps, if they run as CUDA graphs.
        antithetic_eval: a pass for its loss alone runs in eval mode, as in the paper's code.
        round_to: where what is open has to fit the budget, groups keep multiples of so many units.
        choosing: training examples whose loss chooses among new units, where growth has init="select".
        start_from: criterion of `npn.importance` that the gates start from, see `Options`.
        about: further entries of the result.
        procedure: makes the gradients and decides what leaves the network when; by default the gates do.
        score: how good the network is, in rows and results.
        epochs_before: epochs of the training that this one continues; the order of the batches goes on after them.
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
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] = untaught
    prepare: Callable[[Tensor], Tensor] = lambda x: x
    forward: Callable[[nn.Module, Tensor], Tensor] = lambda model, x: model(x)
    scaler: torch.amp.GradScaler | None = None
    graphs: npn.CudaGraphs | None = None
    antithetic_eval: bool = False
    round_to: int = 1
    choosing: int = 1000
    start_from: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    procedure: Procedure = field(default_factory=Procedure)
    score: Score = ACCURACY
    epochs_before: int = 0

    def begin(self, stage: npn.Stage) -> None:
        """Prepare for a stage, see `Procedure.begin`.

        Args:
            stage: that begins.
        """
        gates = self.procedure.begin(self.plastic, stage)
        if gates is not None:
            self.plastic.untrack(self.gates)
            self.plastic.track(gates)
            self.gates = gates

    def grows(self, stage: npn.Stage, position: int) -> bool:
        """Return whether the network may grow after an epoch.

        Args:
            stage: of the epoch.
            position: of the epoch in the stage.
        """
        return (
            self.growth is not None
            and not self.growth.done
            and math.isfinite(stage.k)
            and position < stage.epochs - self.settle
        )

    def fits(self, stage: npn.Stage) -> bool:
        """Return whether what is open has to fit the budget from this stage on.

        So it has once the gates have decided, and have come close to it: a stage that was too short would else
        end in one large cut.

        Args:
            stage: that has begun.
        """
        stages, plastic, budget = self.schedule.stages, self.plastic, self.plastic.penalty
        decided = any(0.0 < before.k < math.inf for before in stages[: stages.index(stage)]) and math.isinf(stage.k)
        by_gates = plastic.gates.decision is None
        if not (decided and by_gates and isinstance(budget, npn.Budget) and budget.bound):
            return False
        with torch.no_grad():  # at k = inf the expected cost is that of the open units
            return float(plastic.expected_cost(budget.cost)) <= CLOSE * budget.bound

    def logits(self, model: nn.Module, x: Tensor) -> Tensor:
        """Compute the logits of a batch.

        Args:
            model: the model, or a plain copy of it.
            x: inputs as stored.
        """
        return self.forward(model, self.prepare(x))


@dataclass(frozen=True)
class Experiment:
    """One experiment of `npn run`.

    Attributes:
        name: as on the command line.
        defaults: gives the settings that a user leaves open, from those that are set.
        build: makes the recipe from complete settings; everything random in it follows from the global seed.
        draw: draws the figures into the folder of the run.
        sample: makes a plain model of the recipe's kind, of any width, and an example batch of two for it, on the CPU
            and without data, from complete settings.
        checkpoint_every: epochs between checkpoints.
        threads: number of torch's threads; None for torch's own choice. A second one does not speed up small networks.
        options: class of the settings.
        animate: writes moving pictures into the folder of the run from the frames of its outcome; None if it has none.
    """

    name: str
    defaults: Callable[[Options], Options]
    build: Callable[[Options], Recipe]
    draw: Callable[[Path, "Outcome"], object]
    sample: Callable[[Options], tuple[nn.Module, Tensor]]
    checkpoint_every: int = 1
    threads: int | None = None
    options: type[Options] = Options
    animate: Callable[[Path, "Outcome"], object] | None = None

    def complete(self, options: Options) -> Options:
        """Fill the settings that are left open: by a user, or by a run of an earlier version, which lacked them.

        Args:
            options: of a run.
        """
        return options.over(self.defaults(options))


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        result: content of `result.json`.
        rows: measurements, one row per epoch.
        snapshots: stage -> tensors that were kept at its end.
        frames: of an animation: `epoch`, keep probabilities as `keep/GROUP`, and the tensors of `Recipe.snapshot`.
    """

    result: Row
    rows: list[Row]
    snapshots: dict[str, dict[str, Tensor]]
    frames: list[dict[str, Tensor]] = field(default_factory=list)
