"""How each kind of method shrinks a network within the common schedule: pre-train, shrink to the budget, fine-tune."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

import npn
from npn._importance.closing import best_of_each
from npn.checkpoint import Stateful
from npn.experiments.data.splits import Split
from npn.experiments.engine.effort import BACKWARD, FORWARD
from npn.experiments.engine.procedure import Procedure
from npn.experiments.peers.cutting import close_by_importance, keep_weights, remove, threshold
from npn.tracing.single import evaluating

PRETRAIN, SHRINK, FINETUNE = "pretrain", "shrink", "finetune"
PATH = 0.8  # share of the shrinking stage in which a falling bound leads to the budget
SCORED = 20  # batches of training examples that an importance is computed on

Make = Callable[[npn.Plasticity], npn.methods.Method]


@final
@dataclass
class Gates(Procedure):
    """NPN: the budget drives the gates; what is above it at the end of the stage goes by keep probability.

    Attributes:
        weights: of the budget.
    """

    weights: float

    def after_epoch(self, plastic: npn.Plasticity, stage: npn.Stage, position: int, below: float) -> int:
        """Remove what is closed, and at the end of the stage what is above the budget."""
        last = stage.name == SHRINK and position == stage.epochs - 1
        plastic.compact(below=0.5 if last else below)  # at the end all that the deterministic mask closes
        if last and plastic.unstructured:
            chances = {name: gate.keep_probability() for name, gate in plastic.unstructured.items()}
            keep_weights(plastic, chances, self.weights)
        elif last:
            pi = torch.cat([group.gate.keep_probability().detach() for group in plastic.groups]).cpu().double()
            least, sizes = threshold(plastic, pi, self.weights), [group.size for group in plastic.groups]
            remove(plastic, (pi >= least) | best_of_each(pi, sizes), sizes)
        return 0


@final
@dataclass
class Decides(Procedure):
    """A method of `npn.methods`; what is above the budget at the end of the stage goes by the method's own score.

    Attributes:
        make: makes the method.
        weights: of the budget; None where the method has as many as that from the start.
        rate: learning rate of the method's own parameters.
        since: stage with which it begins.
        to_the_end: whether it acts while fine-tuning, too; else its mask is fixed then.
        reopens: whether what is closed may open again, so that nothing is removed before the end of the stage.
        then: makes the method that takes over for fine-tuning.
    """

    make: Make
    weights: float | None
    rate: float = 1e-2
    since: str = SHRINK
    to_the_end: bool = False
    reopens: bool = False
    then: Make | None = None
    method: npn.methods.Method | None = None

    def begin(self, plastic: npn.Plasticity, stage: npn.Stage) -> Optimizer | None:
        """Make the method when its time has come."""
        if stage.name == self.since:
            self.method = self.make(plastic)
        elif stage.name == FINETUNE and self.then is not None:
            self.method = self.then(plastic)
        else:
            return None
        own = self.method.parameters()
        return Adam(own, lr=self.rate) if own else None

    def backward(
        self, plastic: npn.Plasticity, stage: npn.Stage, closure: Callable[[], Tensor], scale: float | Any
    ) -> Tensor:
        """By the method while it acts."""
        acts = self.method if self._acts(stage) else None
        return (plastic if acts is None else acts).backward(closure, scale=scale)

    def after_step(self, plastic: npn.Plasticity, stage: npn.Stage, step: int) -> int:
        """Clamp, project or change the topology."""
        if self.method is not None and self._acts(stage):
            self.method.after_step()
        return 0

    def after_epoch(self, plastic: npn.Plasticity, stage: npn.Stage, position: int, below: float) -> int:
        """Remove what does not stay, and at the end of the stage what is above the budget."""
        last = stage.name == SHRINK and position == stage.epochs - 1
        if self.method is not None and (last or not self.reopens):
            self.method.compact()
        if last and self.method is not None and self.weights is not None:
            self.method.remove_below(threshold(plastic, self.method.chosen()[1], self.weights))
        return 0

    def state(self) -> dict[str, Stateful]:
        """The method, once it is made."""
        return {} if self.method is None else {"method": self.method}

    def _acts(self, stage: npn.Stage) -> bool:
        return stage.name != FINETUNE or self.to_the_end or self.then is not None


def _share_of_path(stage: npn.Stage, step: int, steps: int, cuts: int) -> float | None:
    """The share of the path that a cut after this step ends; None where there is no cut.

    The cuts are spread evenly over the path, and one more at the end of the stage makes sure of the budget.
    """
    if stage.name != SHRINK:
        return None
    number, rest = divmod(step, max(1, round(PATH * steps / cuts)) if cuts else steps)
    if step == steps:
        return 1.0
    return None if rest or number > cuts else min(1.0, number / cuts)


@final
@dataclass
class SmallestWeights(Procedure):
    """The smallest weights of the whole network go along a cubic path of their number (Zhu & Gupta 2017, eq. 1).

    Attributes:
        weights: of the budget.
        steps: of the shrinking stage.
        cuts: on the path.
    """

    weights: float
    steps: int
    cuts: int
    full: int = 0  # weights before the first cut; the same in a resumed run, as it begins at full size

    def begin(self, plastic: npn.Plasticity, stage: npn.Stage) -> Optimizer | None:
        """Remember the size at which the path begins."""
        self.full = self.full or sum(gate.logits.numel() for gate in plastic.unstructured.values())
        return None

    def after_step(self, plastic: npn.Plasticity, stage: npn.Stage, step: int) -> int:
        """Cut, where the path has a step, or the stage ends."""
        done = _share_of_path(stage, step, self.steps, self.cuts)
        if done is not None:
            size = {name: plastic.model.get_parameter(name).abs() for name in plastic.unstructured}
            keep_weights(plastic, size, self.weights + (self.full - self.weights) * (1 - done) ** 3)
        return 0

    def after_epoch(self, plastic: npn.Plasticity, stage: npn.Stage, position: int, below: float) -> int:
        """Nothing more is closed."""
        return 0


@final
@dataclass
class Importance(Procedure):
    """Surgery by `npn.importance` per weight: along a geometric path of the size, or at once.

    Attributes:
        criterion: see `npn.importance`.
        weights: of the budget.
        data: training examples to compute the importance on.
        loss: (model, (stored inputs, classes)) -> scalar.
        prepare: converts stored inputs to those of the model.
        batch_size: examples per batch.
        steps: of the shrinking stage.
        cuts: on the path; 0 for one cut at the end of the stage.
    """

    criterion: str
    weights: float
    data: Split
    loss: Callable[[nn.Module, Any], Tensor]
    prepare: Callable[[Tensor], Tensor]
    batch_size: int
    steps: int
    cuts: int = 0
    full: int = 0  # weights before the first cut; the same in a resumed run, as it begins at full size

    def begin(self, plastic: npn.Plasticity, stage: npn.Stage) -> Optimizer | None:
        """Remember the size at which the path begins."""
        self.full = self.full or npn.count_params(plastic.model, biases=False)
        return None

    def after_step(self, plastic: npn.Plasticity, stage: npn.Stage, step: int) -> int:
        """Cut, where the path has a step, or the stage ends."""
        done = _share_of_path(stage, step, self.steps, self.cuts)
        return 0 if done is None else self._cut(plastic, self.full * (self.weights / self.full) ** done, step)

    def after_epoch(self, plastic: npn.Plasticity, stage: npn.Stage, position: int, below: float) -> int:
        """Nothing more is closed."""
        return 0

    def _cut(self, plastic: npn.Plasticity, weights: float, step: int) -> int:
        """Score, and remove down to a size; return the multiply-adds of the scores."""
        generator = torch.Generator().manual_seed(step)
        many = min(SCORED * self.batch_size, len(self.data))
        order = torch.randperm(len(self.data), generator=generator)[:many].to(self.data.x.device)
        batches = [(self.data.x[chosen], self.data.y[chosen]) for chosen in order.split(self.batch_size)]
        with evaluating(plastic.model):
            scores = npn.importance(plastic, self.criterion, batches, self.loss)
        needs_data = self.criterion in ("taylor", "fisher")
        each = npn.count_macs(plastic.model, self.prepare(self.data.x[:1])) if needs_data else 0
        close_by_importance(plastic, scores, weights)
        return (FORWARD + BACKWARD) * many * each
