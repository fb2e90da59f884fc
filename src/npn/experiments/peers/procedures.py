"""How each kind of method shrinks a network within the common schedule: pre-train, shrink to the budget, fine-tune."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

import npn
from npn._importance.closing import best_of_each
from npn._utils.models import evaluating
from npn.checkpoint import Stateful
from npn.experiments.data.splits import Split
from npn.experiments.engine.procedure import Procedure
from npn.experiments.engine.training_cost import BACKWARD, FORWARD
from npn.experiments.peers.cutting import close_by_importance, keep_weights, remove, threshold

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
        method: that decides now; None before the first stage that it has a part in.
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


@dataclass(kw_only=True)
class Cuts(Procedure):
    """Surgery along a path of the size in the first part of the shrinking stage, or once at its end.

    The cuts are spread evenly over the path, and one more at the end of the stage makes sure of the budget.

    Attributes:
        weights: of the budget.
        steps: of the shrinking stage.
        cuts: on the path; 0 for one cut at the end of the stage.
        full: weights before the first cut; the same in a resumed run, as it begins at full size.
    """

    weights: float
    steps: int
    cuts: int = 0
    full: int = 0

    @abstractmethod
    def cut(self, plastic: npn.Plasticity, done: float, step: int) -> int:
        """Shrink to the size at which this share of the path is done; return the multiply-adds that it cost."""

    def begin(self, plastic: npn.Plasticity, stage: npn.Stage) -> Optimizer | None:
        """Remember the size at which the path begins."""
        self.full = self.full or npn.count_params(plastic.model, biases=False)
        return None

    def after_step(self, plastic: npn.Plasticity, stage: npn.Stage, step: int) -> int:
        """Cut, where the path has a step, or the stage ends."""
        if stage.name != SHRINK:
            return 0
        number, rest = divmod(step, max(1, round(PATH * self.steps / self.cuts)) if self.cuts else self.steps)
        if step == self.steps:
            return self.cut(plastic, 1.0, step)
        return 0 if rest or number > self.cuts else self.cut(plastic, min(1.0, number / self.cuts), step)

    def after_epoch(self, plastic: npn.Plasticity, stage: npn.Stage, position: int, below: float) -> int:
        """Nothing more is closed."""
        return 0


@final
class SmallestWeights(Cuts):
    """The smallest weights of the whole network go along a cubic path of their number (Zhu & Gupta 2017, eq. 1)."""

    def cut(self, plastic: npn.Plasticity, done: float, step: int) -> int:
        """Close the smallest weights; this costs no multiply-adds."""
        size = {name: plastic.model.get_parameter(name).abs() for name in plastic.unstructured}
        keep_weights(plastic, size, self.weights + (self.full - self.weights) * (1 - done) ** 3)
        return 0


@final
@dataclass(kw_only=True)
class Importance(Cuts):
    """Units go by `npn.importance` per weight, along a geometric path of the size.

    Attributes:
        criterion: see `npn.importance`.
        data: training examples to compute the importance on.
        loss: (model, (stored inputs, classes)) -> scalar.
        prepare: converts stored inputs to those of the model.
        batch_size: examples per batch.
    """

    criterion: str
    data: Split
    loss: Callable[[nn.Module, Any], Tensor]
    prepare: Callable[[Tensor], Tensor]
    batch_size: int

    def cut(self, plastic: npn.Plasticity, done: float, step: int) -> int:
        """Score, and remove down to a size; return the multiply-adds of the scores."""
        generator = torch.Generator().manual_seed(step)
        many = min(SCORED * self.batch_size, len(self.data))
        order = torch.randperm(len(self.data), generator=generator)[:many].to(self.data.x.device)
        batches = [(self.data.x[chosen], self.data.y[chosen]) for chosen in order.split(self.batch_size)]
        with evaluating(plastic.model):
            scores = npn.importance(plastic, self.criterion, batches, self.loss)
        needs_data = self.criterion in ("taylor", "fisher")
        each = npn.count_macs(plastic.model, self.prepare(self.data.x[:1])) if needs_data else 0
        close_by_importance(plastic, scores, self.full * (self.weights / self.full) ** done)
        return (FORWARD + BACKWARD) * many * each
