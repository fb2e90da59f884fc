"""What every training framework's callback does, without the framework."""

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
from npn._utils.rng import RandomState, devices_of
from npn.checkpoint import Stateful
from npn.counting import count_params
from npn.errors import ConfigurationError
from npn.functional import GateFunction
from npn.growth import Growth
from npn.masking.examples import check_finite
from npn.penalty import CostTerm
from npn.plasticity import Plasticity
from npn.schedule import Schedule
from npn.step import Evaluate
from npn.tracing.single import evaluating


@dataclass(eq=False, repr=False)
class Session:
    """A training under way: the gates, their optimizer, and what happens to them when.

    Args:
        schedule: stages of sharpness, one entry per epoch; the training ends with it.
        penalty: what size costs, see `npn.attach`, as are the next four.
        estimator: of the gates' gradient.
        function: gate function.
        only, skip: patterns of group names that get gates, or do not.
        example_inputs: for tracing; from the first training batch if not given.
        gate_lr: learning rate of the gates' Adam.
        gate_optimizer: makes another optimizer from the list of gate parameters.
        growth: adds units when `monitor`, measured on validation data, improves.
        monitor: name of the metric for `growth` and for stages that end on a plateau.
        compact_below: units whose keep probability has fallen below are removed after each epoch.
        settle: epochs at the end of a stage in which nothing grows, so that what is new can prove itself.
    """

    schedule: Schedule
    _: KW_ONLY
    penalty: CostTerm | None = None
    estimator: str = "reinmax"
    function: str | GateFunction = "sigmoid"
    only: str | Iterable[str] | None = None
    skip: str | Iterable[str] | None = None
    example_inputs: Any = None
    gate_lr: float = 1e-3
    gate_optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None
    growth: Growth | None = None
    monitor: str = "val_loss"
    compact_below: float = 1e-3
    settle: int = 1
    handle: Plasticity | None = field(default=None, init=False)
    gates: Optimizer | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.monitor.startswith("test"):
            raise ConfigurationError(
                f"monitor={self.monitor!r} looks like a test metric; growth and stopping are steered by validation "
                'data, such as monitor="val_loss"'
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

    # -- begin

    def begin(self, model: nn.Module, example_inputs: Callable[[], Any]) -> None:
        """Give the model its gates, unless it has them."""
        if self.handle is not None and self.handle.model is model:
            return
        before = RandomState.now(devices_of(model))
        inputs = self.example_inputs if self.example_inputs is not None else example_inputs()
        before.restore()  # the first epoch sees the order that it would have seen
        with self._tracing(model):
            self.handle = attach(
                model,
                moved(inputs, next(model.parameters()).device),
                estimator=self.estimator,
                function=self.function,
                penalty=self.penalty,
                only=self.only,
                skip=self.skip,
            )
        logits = self.handle.logits()
        self.gates = (
            torch.optim.Adam(logits, lr=self.gate_lr) if not self.gate_optimizer else self.gate_optimizer(logits)
        )
        self.handle.track(self.gates)

    def follow(self, optimizers: Iterable[Optimizer]) -> None:
        """The framework's optimizers of this run; those of an earlier one are forgotten."""
        assert self.gates is not None
        self.plastic.optimizers = []
        self.plastic.track(self.gates, *optimizers)

    # -- one step

    def backward(self, evaluate: Evaluate, scale: float | Tensor) -> Tensor:
        """Every gradient, around the framework's own forward and backward pass; see `npn.Plasticity.step_with`."""

        def checked(factor: float | Tensor, gradient: bool) -> Tensor:
            return evaluate(1.0 if factor is scale else factor / scale, gradient)

        return self.plastic.step_with(checked, scale)

    def check(self, loss: Tensor) -> None:
        """Raise before a loss that is not finite reaches any gradient."""
        check_finite(loss, self.plastic.last_checkpoint)

    def step_gates(self, scaler: Any = None) -> None:
        """The gates' step, when the weights take theirs; their gradients are gone afterwards."""
        assert self.gates is not None
        if any(logits.grad is not None for logits in self.plastic.logits()):
            if scaler is None:
                self.gates.step()
            else:
                scaler.step(self.gates)
            self.gates.zero_grad()

    # -- now and then

    def enter(self, epoch: int) -> None:
        """An epoch begins; every process must have come to the same."""
        self.schedule.enter(epoch, self.plastic)
        distributed.check(self.plastic)

    def compact(self) -> None:
        """Remove what has closed."""
        with torch.inference_mode(False), torch.enable_grad():
            self.plastic.compact(below=self.compact_below)

    def validated(self, metrics: Mapping[str, Any]) -> None:
        """Validation metrics have arrived: the stage may end, units may be added.

        Raises:
            ConfigurationError: the metric that is needed is not among them.
        """
        if self.growth is None and all(stage.until is None for stage in self.schedule.stages):
            return
        if self.monitor not in metrics:
            raise ConfigurationError(
                f"expected the validation metric {self.monitor!r}, got {', '.join(sorted(metrics)) or 'none'}; "
                "log it while validating, or name another with monitor="
            )
        value = float(metrics[self.monitor])
        if distributed.size() > 1:  # each process may have validated on a part of its own
            device = self.plastic.gates.device
            value = float(distributed.mean(torch.tensor(value, dtype=torch.float64, device=device)))
        self.schedule.observe(value)
        stage = self.schedule.stage
        if self.growth is None or stage is None or not math.isfinite(self.plastic.k):
            return
        start = next(first for name, first, _ in self.schedule.spans() if name == stage.name)
        if self.schedule.state_dict()["epoch"] - start < stage.epochs - self.settle:
            with torch.inference_mode(False), torch.enable_grad(), self._tracing(self.plastic.model):
                self.growth.step(value, self.plastic)

    def scalars(self) -> dict[str, float]:
        """Sharpness, parameters that exist, and open units of each group."""
        sizes = {f"npn/units/{name}": float(size) for name, size in self.plastic.sizes().items()}
        return {"npn/k": self.plastic.k, "npn/params": float(count_params(self.plastic.model)), **sizes}

    # -- leaving and coming back

    def export(self) -> nn.Module:
        """A plain copy of the model without its closed units and without a trace of npn."""
        with self.plain(self.plastic.model):
            return self.plastic.export()

    def stateful(self) -> dict[str, Stateful]:
        """What a checkpoint keeps beside the gates."""
        return {"schedule": self.schedule, **({"growth": self.growth} if self.growth is not None else {})}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """No optimizer but the gates' is tracked inside: the framework keeps the state of its own."""
        assert self.gates is not None
        tracked, self.plastic.optimizers = self.plastic.optimizers, [self.gates]
        try:
            yield
        finally:
            self.plastic.optimizers = tracked

    @contextlib.contextmanager
    def plain(self, model: nn.Module) -> Iterator[None]:
        """The model as its author wrote it, for frameworks that wrap its forward."""
        yield

    @contextlib.contextmanager
    def _tracing(self, model: nn.Module) -> Iterator[None]:
        """Every trace of a training sees the same computation, whenever it is made."""
        with self.plain(model), evaluating(model):
            yield


def check_processes(processes: int, way: str, replicated: bool) -> None:
    """Several processes need the whole model each.

    Args:
        processes: or devices.
        way: how the model comes to be on all of them.
        replicated: by DistributedDataParallel.

    Raises:
        ConfigurationError: there are several, and it is another way.
    """
    if processes > 1 and not replicated:
        raise ConfigurationError(
            f"the training runs on {processes} devices through {way}, but gates need the whole model in a process for "
            "each device: use DistributedDataParallel, or a single device"
        )


def moved(inputs: Any, device: torch.device) -> Any:
    """The same inputs on a device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {key: moved(value, device) for key, value in inputs.items()}
    if type(inputs) in (tuple, list):
        return type(inputs)(moved(value, device) for value in inputs)
    return inputs
