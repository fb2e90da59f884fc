"""The parts of a training session that all framework callbacks share."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from npn import distributed
from npn._attach import attach
from npn._utils.inputs import moved
from npn._utils.losses import check_differentiable, check_finite
from npn._utils.models import evaluating
from npn._utils.rng import RandomState, devices_of
from npn._utils.warning import warn
from npn.checkpoint import Stateful
from npn.counting import count_params
from npn.errors import ConfigurationError
from npn.functional import GateFunction
from npn.growth import Growth
from npn.penalty import CostTerm
from npn.plasticity import Plasticity
from npn.schedule import Schedule
from npn.step import Evaluate
from npn.surgery import held_by


@dataclass(eq=False, repr=False)
class Session:
    """A training session: the gates, their optimizer, the schedule and growth.

    Args:
        schedule: stages of sharpness; training ends with its last epoch.
        penalty, estimator, function, only, skip, columns, branches, unstructured, streams: see `npn.attach`.
        example_inputs: inputs for tracing; those of the first training batch if not given.
        gate_lr: learning rate of the gates' Adam.
        gate_optimizer: makes another optimizer from the list of gate parameters.
        growth: adds units when `monitor`, measured on validation data, improves.
        monitor: name of the metric for `growth` and for stages that end on a plateau.
        compact_below: keep probability under which units are removed after each epoch.
        settle: epochs at the end of a stage in which nothing grows, so that new units are trained before the next
            stage.

    Attributes:
        handle: the result of `npn.attach`; None before training.
        gates: the optimizer of the gates; None before training.
        schedule, penalty, ...: the arguments.
    """

    schedule: Schedule
    _: KW_ONLY
    penalty: CostTerm | None = None
    estimator: str = "reinmax"
    function: str | GateFunction = "sigmoid"
    only: str | Iterable[str] | None = None
    skip: str | Iterable[str] | None = None
    columns: str | Iterable[str] | None = None
    branches: str | Iterable[str] | None = None
    unstructured: str | Iterable[str] | None = None
    streams: bool = False
    example_inputs: Any = None
    gate_lr: float = 1e-3
    gate_optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None
    growth: Growth | None = None
    monitor: str = "val_loss"
    compact_below: float = 1e-3
    settle: int = 1
    handle: Plasticity | None = field(default=None, init=False)
    gates: Optimizer | None = field(default=None, init=False)
    _validations: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.monitor.startswith("test"):
            raise ConfigurationError(
                f"monitor={self.monitor!r} looks like a test metric; growth and stopping are steered by validation "
                'data, such as monitor="val_loss"'
            )
        if self.growth is not None and self.growth.init == "select":
            raise ConfigurationError(
                'growth with init="select" needs the loss of a batch, which a Trainer does not hand over; choose '
                '"pair", "split" or "zero", or grow in a loop of your own'
            )

    @property
    def plastic(self) -> Plasticity:
        """The handle that `npn.attach` returned.

        Raises:
            ConfigurationError: the training has not begun.
        """
        if self.handle is None:
            raise ConfigurationError("there are no gates before the training has begun; call fit or train first")
        return self.handle

    # -- begin training

    def begin(self, model: nn.Module, example_inputs: Callable[[], Any]) -> None:
        """Attach the model, unless this session has attached it already.

        Args:
            model: the model to train.
            example_inputs: returns the inputs for tracing, if the session was given none.
        """
        if self.handle is not None and self.handle.model is model:
            return
        before = RandomState.now(devices_of(model))
        inputs = self.example_inputs if self.example_inputs is not None else example_inputs()
        before.restore()  # reading a batch must not change the order of the first epoch
        with self._tracing(model):
            self.handle = attach(
                model,
                moved(inputs, next(model.parameters()).device),
                estimator=self.estimator,
                function=self.function,
                penalty=self.penalty,
                only=self.only,
                skip=self.skip,
                columns=self.columns,
                branches=self.branches,
                unstructured=self.unstructured,
                streams=self.streams,
            )
        logits = self.handle.logits()
        self.gates = (
            torch.optim.Adam(logits, lr=self.gate_lr) if not self.gate_optimizer else self.gate_optimizer(logits)
        )
        self.handle.track(self.gates)

    def follow(self, optimizers: Iterable[Optimizer]) -> None:
        """Track the framework's optimizers of this run, and forget those of an earlier run.

        Args:
            optimizers: the framework's optimizers; those of other models, as of a discriminator, are left alone.

        Raises:
            ConfigurationError: `growth` has grown another model.
        """
        assert self.gates is not None
        if self.growth is not None:
            self.growth.check_model(self.plastic)
        self._validations = 0
        self.plastic.untrack(*self.plastic.optimizers)
        ours = {id(p) for p in self.plastic.weights()}
        self.plastic.track(self.gates, *(each for each in optimizers if held_by(each) & ours))

    def announce(self, epochs: float, option: str) -> None:
        """Warn at the start of a training that ends before the schedule does.

        Args:
            epochs: of the training.
            option: of the framework that sets them.
        """
        if epochs >= self.schedule.epochs:
            return
        spans = self.schedule.spans()
        missed = [name for name, start, _ in spans if start >= epochs]
        cut = [f"{name!r} is cut short" for name, start, end in spans if start < epochs < end]
        left = [*cut, *([f"{', '.join(map(repr, missed))} never begins"] if missed else [])]
        warn(
            f"the training has {epochs:g} epochs and the schedule {self.schedule.epochs}, so {' and '.join(left)}: set "
            f"{option} to {self.schedule.epochs} or more (training stops at the schedule's end), or shorten the stages"
        )

    def finish(self) -> None:
        """Warn at the end of a training in which growth, or a stage that ends on a plateau, never got a metric."""
        spans, epoch = self.schedule.spans(), self.schedule.state_dict()["epoch"]
        begun = [stage for stage, span in zip(self.schedule.stages, spans, strict=True) if span[1] <= epoch]
        waiting = self.growth is not None and self.growth.state_dict()["steps"] == 0
        idle = waiting and any(math.isfinite(stage.k) for stage in begun)
        if self._validations == 0 and (idle or any(stage.until is not None for stage in begun)):
            warn(
                f"the training never validated, so nothing grew and no stage ended on a plateau, for want of "
                f"{self.monitor!r}: give the trainer validation data, and let it validate after each epoch"
            )
        elif idle:
            warn(
                f"nothing grew: none of the {self._validations} validations came in an epoch of finite k before the "
                f"last {self.settle} of its stage. Validate more often, make the stage longer, or lower settle="
            )

    # -- one step

    def backward(self, evaluate: Evaluate, scale: float | Tensor) -> Tensor:
        """Set every gradient, with the framework's own forward and backward pass; see `npn.Plasticity.step_with`.

        Args:
            evaluate: see `npn.step.Step.step_with`; its factor does not include `scale`.
            scale: factor on loss and penalty.

        Returns:
            The detached loss, (), without scale and penalty.
        """

        def checked(factor: float | Tensor, gradient: bool) -> Tensor:
            return evaluate(1.0 if factor is scale else factor / scale, gradient)

        return self.plastic.step_with(checked, scale)

    def check(self, loss: Tensor, gradient: bool) -> None:
        """Raise before a loss that is not finite, or has no gradient, reaches a backward pass.

        Args:
            loss: any shape.
            gradient: whether a backward pass follows.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
            ConfigurationError: the loss has no gradient.
        """
        check_finite(loss, self.plastic.last_checkpoint)
        if gradient:
            check_differentiable(loss)

    def step_gates(self, scaler: Any = None) -> None:
        """Step the gates together with the weights, then zero their gradients.

        Args:
            scaler: the `GradScaler` of the weights, if there is one.
        """
        assert self.gates is not None
        if any(logits.grad is not None for logits in self.plastic.logits()):
            if scaler is None:
                self.gates.step()
            else:
                scaler.step(self.gates)
            self.gates.zero_grad()

    # -- once per epoch

    def enter(self, epoch: int) -> None:
        """Begin an epoch: set the sharpness, and compare the processes.

        Args:
            epoch: number of the epoch, from 0.

        Raises:
            DistributedError: the processes differ.
        """
        self.schedule.enter(epoch, self.plastic)
        distributed.check(self.plastic)

    def compact(self) -> None:
        """Remove the units that have stayed closed."""
        with torch.inference_mode(False), torch.enable_grad():
            self.plastic.compact(below=self.compact_below)

    def validated(self, metrics: Mapping[str, Any]) -> None:
        """Use validation metrics: report them to the schedule, and grow.

        Args:
            metrics: name -> value.

        Raises:
            ConfigurationError: the metrics lack `monitor`.
        """
        if self.growth is None and all(stage.until is None for stage in self.schedule.stages):
            return
        if self.monitor not in metrics:
            raise ConfigurationError(
                f"expected the validation metric {self.monitor!r}, got {', '.join(sorted(metrics)) or 'none'}; "
                "log it while validating, or name another with monitor="
            )
        value = float(metrics[self.monitor])
        if distributed.size() > 1:  # each process may have validated on different data
            device = self.plastic.gates.device
            value = float(distributed.mean(torch.tensor(value, dtype=torch.float64, device=device)))
        self._validations += 1
        self.schedule.observe(value)
        stage = self.schedule.stage
        if self.growth is None or stage is None or not math.isfinite(self.plastic.k):
            return
        start = next(first for name, first, _ in self.schedule.spans() if name == stage.name)
        if self.schedule.state_dict()["epoch"] - start < stage.epochs - self.settle:
            with torch.inference_mode(False), torch.enable_grad(), self._tracing(self.plastic.model):
                self.growth.step(value, self.plastic)

    def scalars(self) -> dict[str, float]:
        """Sharpness, number of parameters, and open units of each group, by name for logging."""
        sizes = {f"npn/units/{name}": float(size) for name, size in self.plastic.sizes().items()}
        return {"npn/k": self.plastic.k, "npn/params": float(count_params(self.plastic.model)), **sizes}

    # -- export and checkpoints

    def export(self) -> nn.Module:
        """Make a plain copy of the model, without its closed units and without any dependence on npn."""
        with self.plain(self.plastic.model):
            return self.plastic.export()

    def stateful(self) -> dict[str, Stateful]:
        """Schedule and growth, whose state a checkpoint keeps, by name."""
        return {"schedule": self.schedule, **({"growth": self.growth} if self.growth is not None else {})}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Track only the gates' optimizer inside the context; the framework saves the state of its own optimizers."""
        assert self.gates is not None
        tracked, self.plastic.optimizers = self.plastic.optimizers, [self.gates]
        try:
            yield
        finally:
            self.plastic.optimizers = tracked

    @contextlib.contextmanager
    def plain(self, model: nn.Module) -> Iterator[None]:
        """Remove a framework's wrapping of the model's forward inside the context; by default there is none.

        Args:
            model: the model.
        """
        yield

    @contextlib.contextmanager
    def _tracing(self, model: nn.Module) -> Iterator[None]:
        """Make every trace of a training see the same computation: plain forward, eval mode."""
        with self.plain(model), evaluating(model):
            yield


def check_processes(processes: int, way: str, replicated: bool) -> None:
    """Raise unless each of several processes holds the whole model.

    Args:
        processes: number of processes or devices.
        way: the strategy that distributes the model, for the error message.
        replicated: whether the strategy is DistributedDataParallel.

    Raises:
        ConfigurationError: there are several processes with another strategy.
    """
    if processes > 1 and not replicated:
        raise ConfigurationError(
            f"the training runs on {processes} devices through {way}, but gates need the whole model in a process for "
            "each device: use DistributedDataParallel, or a single device"
        )
