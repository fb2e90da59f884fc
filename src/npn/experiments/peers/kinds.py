"""What a method of the comparison is, and how the procedure of each is made from a plan."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

import npn
from npn import methods
from npn.experiments.data.splits import Split
from npn.experiments.engine.procedure import Procedure
from npn.experiments.peers import cutting
from npn.experiments.peers.procedures import PATH, PRETRAIN, Decides, Gates, Importance, SmallestWeights

Range = tuple[float, float, float]  # of a setting: default, least, most


@dataclass(frozen=True)
class Plan:
    """What a procedure is made from.

    Attributes:
        weights: of the budget, without biases.
        share: of the full network's weights.
        steps: training steps of pre-training, shrinking and fine-tuning.
        settings: what the trial chose.
        train: training examples.
        loss: (model, (stored inputs, classes)) -> scalar.
        prepare: converts stored inputs to those of the model.
        batch_size: examples per step.
    """

    weights: float
    share: float
    steps: tuple[int, int, int]
    settings: Mapping[str, float]
    train: Split
    loss: Callable[[nn.Module, Any], Tensor]
    prepare: Callable[[Tensor], Tensor]
    batch_size: int


Penalty = Callable[[Plan], Any]


def budget(plan: Plan) -> npn.Budget:
    """NPN's budget in weights, along a path in the first part of the shrinking stage."""
    path = max(1, round(PATH * plan.steps[1]))
    return npn.Budget("weights", max(2, int(plan.weights)), steps=path, rate=4e-3, gain=3.0, scale=1e-3)


def free(plan: Plan) -> npn.Penalty:
    """No price."""
    return npn.Penalty("weights", 0.0)


@dataclass(frozen=True)
class Kind:
    """One method of the comparison.

    Attributes:
        label: for people.
        space: its own settings, beside learning rate and weight decay.
        procedure: makes the procedure of a run.
        penalty: makes the price of size.
        estimator: of the gates' gradient, for NPN; None where k stays infinite.
        single: whether single weights go instead of units.
        role: "method"; "plain" for nets of the budget's size; "first" or "second" for the two runs of a method that
            changes the model in its own way between them.
        needs: "batchnorm", or a package.
    """

    label: str
    procedure: Callable[[Plan], Procedure]
    space: Mapping[str, Range] = field(default_factory=dict)
    penalty: Penalty = free
    estimator: str | None = None
    single: bool = False
    role: str = "method"
    needs: str | None = None


def gates(plan: Plan) -> Procedure:
    """NPN on units."""
    return Gates(plan.weights)


def decides(make: Callable[[npn.Plasticity, Plan], methods.Method], **how: Any) -> Callable[[Plan], Procedure]:
    """Make the procedure of a method of `npn.methods`; what `how` has as functions of the plan is called."""

    def procedure(plan: Plan) -> Procedure:
        rate = plan.settings.get("gate_rate", 1e-2)
        weights = None if how.get("since") == PRETRAIN or how.get("exact") else plan.weights
        rest = {name: value for name, value in how.items() if name not in ("exact", "then")}
        then = (lambda plastic: how["then"](plastic, plan)) if "then" in how else None
        return Decides(lambda plastic: make(plastic, plan), weights, rate, then=then, **rest)

    return procedure


def importance(criterion: str, gradual: bool) -> Callable[[Plan], Procedure]:
    """Make the procedure of surgery by importance."""

    def procedure(plan: Plan) -> Procedure:
        cuts = round(plan.settings.get("cuts", 0)) if gradual else 0
        return Importance(
            weights=plan.weights,
            steps=plan.steps[1],
            cuts=cuts,
            criterion=criterion,
            data=plan.train,
            loss=plan.loss,
            prepare=plan.prepare,
            batch_size=plan.batch_size,
        )

    return procedure


def smallest_weights(plan: Plan) -> Procedure:
    """Gradual magnitude pruning of single weights."""
    return SmallestWeights(weights=plan.weights, steps=plan.steps[1], cuts=round(plan.settings["cuts"]))


def hard_concrete(plastic: npn.Plasticity, plan: Plan) -> methods.Method:
    """L0 gates."""
    return methods.HardConcrete(plastic, drop=plan.settings["drop"])


def targeted_dropout(plastic: npn.Plasticity, plan: Plan) -> methods.Method:
    """Units; the share of every group that the budget leaves no room for."""
    ramp = max(1, round(PATH * plan.steps[1]))
    share = cutting.even_share(plastic, plan.weights)
    return methods.TargetedDropout(plastic, targeted=share, rate=plan.settings["drop"], ramp=ramp)


def targeted_weights(plastic: npn.Plasticity, plan: Plan) -> methods.Method:
    """Single weights; the share that the budget leaves no room for."""
    ramp = max(1, round(PATH * plan.steps[1]))
    targeted = {name: 1 - plan.share for name in plastic.unstructured} | {"*": 0.0}
    return methods.TargetedDropout(plastic, targeted=targeted, rate=plan.settings["drop"], ramp=ramp)


def beta_bernoulli(plastic: npn.Plasticity, plan: Plan) -> methods.Method:
    """Beta-Bernoulli gates."""
    return methods.BetaBernoulli(plastic, examples=len(plan.train), kl_scale=plan.settings["kl_scale"])


def dependent(plastic: npn.Plasticity, plan: Plan) -> methods.Method:
    """Takes over from Beta-Bernoulli gates."""
    return methods.DependentBetaBernoulli(plastic, examples=len(plan.train))


def bottleneck(plastic: npn.Plasticity, plan: Plan) -> methods.Method:
    """Gaussian gates with a price of information."""
    return methods.InformationBottleneck(plastic, weight=plan.settings["price"])


def lp_sphere(plastic: npn.Plasticity, plan: Plan) -> methods.Method:
    """Gates on a sphere."""
    share = cutting.even_share(plastic, plan.weights)
    return methods.LpSphere(
        plastic, steps=plan.steps[1], target=share, p=plan.settings["p"], rate=plan.settings["step"]
    )


def slimming(plastic: npn.Plasticity, plan: Plan) -> methods.Method:
    """A price on BatchNorm's scales."""
    return methods.Slimming(plastic, weight=plan.settings["price"])


def rigl(plastic: npn.Plasticity, plan: Plan) -> methods.Method:
    """Sparse from the start, grown by gradient."""
    until = max(1, round(0.75 * sum(plan.steps)))
    return methods.RigL(plastic, density=plan.share, until=until, drop=plan.settings["drop"])


def set_(plastic: npn.Plasticity, plan: Plan) -> methods.Method:
    """Sparse from the start, grown at random."""
    until = max(1, round(0.75 * sum(plan.steps)))
    return methods.SET(plastic, density=plan.share, until=until, drop=plan.settings["drop"])


def restarts(plan: Plan) -> methods.DualRestarts:
    """Dual ascent with restarts."""
    return methods.DualRestarts("weights", plan.share, rate=plan.settings["dual_rate"])
