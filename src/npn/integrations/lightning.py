"""Lightning: `PlasticityCallback` adds plasticity to an unmodified LightningModule and Trainer."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from npn import distributed
from npn._masked import masked
from npn.checkpoint import pack, unpack
from npn.errors import ConfigurationError
from npn.integrations.session import Session, check_processes

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.strategies import DDPStrategy
except ImportError as error:
    raise ConfigurationError("lightning is not installed; pip install 'npn[lightning]'") from error


class _Skipped(Exception):
    """Raised when `training_step` returned None, to skip the step."""


class _Rewrapping:
    """Make the strategy wrap the module again after a resize."""

    def __init__(self, trainer: Trainer) -> None:
        self.strategy: Any = trainer.strategy

    def renew(self) -> None:
        """Wrap the module again with the strategy's own method and options."""
        if isinstance(self.strategy.model, DistributedDataParallel):
            self.strategy.model = self.strategy.lightning_module
            self.strategy.configure_ddp()


@dataclass(eq=False, repr=False)
class PlasticityCallback(Session, Callback):
    """Gates, schedule, growth and resizes for an unmodified LightningModule with automatic optimization.

    The module's optimizer, learning rate schedulers, precision plugin, gradient accumulation, clipping (of the weights)
    and checkpoints work as usual. Validation runs on the compacted network. Checkpoints written after validation or at
    the end of an epoch hold gates, sizes, schedule, growth and random states: `fit(ckpt_path=...)` on a freshly built
    module continues the same training. Training stops at the schedule's end at the latest. `k`, `params` and units per
    group are logged as `npn/...`.

    Estimators with two forward passes call `training_step` twice; values logged by the second call are dropped.

    With several processes the strategies `ddp` and its variants work: each process draws its own masks, and the model
    is wrapped again after each resize. `monitor` is averaged over the processes.

    Args:
        target: name of the submodule that gets gates; if not given, the whole module, called through its `forward`.
        schedule, penalty, ...: see `Session`. `example_inputs` default to the first training batch, or its first
            element if it is a tuple or list.

    Attributes:
        target: the argument.
        rewrapping: wraps the module again after resizes; None before `fit`.
        plastic: the handle, once `fit` has begun.

    Example:
        >>> import npn
        >>> schedule = npn.Schedule(npn.Stage("pretrain", 1), npn.Stage("plastic", 3, k=7.0))
        >>> plasticity = PlasticityCallback(schedule, penalty=npn.Penalty(cost="macs", weight=1e-6), target="net")
        >>> trainer = Trainer(callbacks=[plasticity], logger=False, barebones=True)
        >>> # trainer.fit(module, loader); small = plasticity.export()
    """

    target: str | None = None
    rewrapping: _Rewrapping | None = None
    _evaluating: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, init=False)

    # -- Lightning's hooks, in the order of the calls

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check for unsupported options, and prepare to resize the model before a checkpoint is loaded.

        Args:
            trainer, pl_module, stage: see `lightning.pytorch.callbacks.Callback`, as for the hooks below.

        Raises:
            ConfigurationError: the strategy, manual optimization or a callback that averages weights is not supported;
                or the module has no forward, and there is no `target`.
        """
        strategy = trainer.strategy
        check_processes(trainer.world_size, type(strategy).__name__, isinstance(strategy, DDPStrategy))
        if stage == "fit" and not pl_module.automatic_optimization:
            raise ConfigurationError(
                "the module optimizes by hand (automatic_optimization=False); there, npn.attach the model and call "
                "plastic.backward(closure) in training_step, or let Lightning optimize"
            )
        if stage == "fit":
            _check_callbacks(trainer)
            _check_forward(pl_module, self.target)
        _restore_method(trainer.strategy, "load_model_state_dict")
        load = trainer.strategy.load_model_state_dict
        vars(trainer.strategy)["load_model_state_dict"] = partial(self._load, trainer, load)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the model, and replace Lightning's closure by one that runs under masks."""
        self._begin(trainer)
        self.follow(trainer.optimizers)
        self.rewrapping = _Rewrapping(trainer)
        self.plastic.followers[id(self)] = self.rewrapping
        loop = trainer.fit_loop.epoch_loop.automatic_optimization
        if not hasattr(loop, "_make_closure"):
            raise ConfigurationError("this version of lightning is built in another way; use one from 2.4 to 2.6")
        _restore_method(loop, "_make_closure")
        vars(loop)["_make_closure"] = partial(self._make_closure, trainer, loop._make_closure)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if the training is shorter than the schedule."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.announce(*_epochs(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if growth never got a metric."""
        self.finish()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the sharpness of the epoch."""
        self.enter(trainer.current_epoch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Step the gates before the weights."""
        self.step_gates(getattr(trainer.precision_plugin, "scaler", None))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compact, so that validation runs on the network that the epoch leaves, without the units closed in it."""
        if _training(trainer):
            self.compact()
        self._evaluate()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Observe the metric and grow, before a checkpoint is written."""
        self._evaluating.close()
        if _training(trainer):
            self.validated(trainer.callback_metrics)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test without the closed units."""
        self._evaluate()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the weights back."""
        self._evaluating.close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Predict without the closed units."""
        self._evaluate()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the weights back."""
        self._evaluating.close()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compact, log, and stop when the schedule has ended."""
        self.compact()
        scalars, several = self.scalars(), trainer.world_size > 1  # equal on all processes; sync_dist avoids a warning
        bar = {name: scalars.pop(name) for name in ("npn/k", "npn/params")}
        pl_module.log_dict(bar, prog_bar=True, sync_dist=several)
        pl_module.log_dict(scalars, sync_dist=several)
        if self.schedule.done:
            trainer.should_stop = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the Trainer's own methods."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the Trainer's own methods."""
        self._evaluating.close()
        _restore_method(trainer.strategy, "load_model_state_dict")
        _restore_method(trainer.fit_loop.epoch_loop.automatic_optimization, "_make_closure")

    def state_dict(self) -> dict[str, Any]:
        """The state of gates, schedule and growth; Lightning saves the weights and their optimizers' state."""
        if self.handle is None:
            return {}
        with self.alone():
            content = pack(self.handle, stateful=self.stateful())
        del content["model"]
        return content

    # -- helpers

    def _evaluate(self) -> None:
        """Mask the weights until the end of the loop: `validation_step` calls parts of the module, not the module."""
        if self.handle is not None:
            self._evaluating.enter_context(masked(self.handle))

    def _begin(self, trainer: Trainer) -> None:
        """Attach the module or its target."""
        module = trainer.lightning_module
        model = module if self.target is None else _submodule(module, self.target)
        self.begin(model, lambda: first_inputs(trainer))

    def _load(
        self, trainer: Trainer, load: Callable[..., None], checkpoint: Mapping[str, Any], strict: bool = True
    ) -> None:
        """Resize the model to a checkpoint's shapes before Lightning loads weights and optimizer state."""
        content = checkpoint.get("callbacks", {}).get(self.state_key)
        if content:
            trainer.strategy.model_to_device()
            trainer.precision_plugin.convert_module(trainer.lightning_module)  # as Lightning does after loading
            self._begin(trainer)
            start = f"{self.target}." if self.target else ""
            weights = {n.removeprefix(start): v for n, v in checkpoint["state_dict"].items() if n.startswith(start)}
            with self.alone():
                unpack({**content, "model": weights}, "the Trainer's checkpoint", self.plastic, self.stateful())
            if distributed.rank() > 0:  # the state is that of process 0, with which dropout would be the same on all
                torch.manual_seed(distributed.own_seed(torch.get_rng_state().numpy().tobytes()))
        load(checkpoint, strict=strict)

    def _make_closure(self, trainer: Trainer, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make Lightning's closure, and replace its call by `_run` where it runs a backward pass."""
        closure = make(*args, **kwargs)
        if closure._backward_fn is not None:
            closure.closure = partial(self._run, trainer, closure)
        return closure

    def _run(self, trainer: Trainer, closure: Any) -> Any:
        """Run `Closure.closure` (training step, zero_grad, backward) under masks; return the training step's output."""
        outputs: list[Any] = []
        accumulate = trainer.accumulate_grad_batches

        def evaluate(factor: float | Tensor, gradient: bool) -> Tensor:
            with torch.set_grad_enabled(gradient), _quiet(trainer.lightning_module, bool(outputs)):
                output = closure._step_fn()
                if not outputs and closure._zero_grad_fn is not None:
                    closure._zero_grad_fn()
                outputs.append(output)
                loss: Tensor | None = output.closure_loss
                if loss is None:
                    raise _Skipped
                self.check(loss, gradient)
                if gradient:
                    closure._backward_fn(loss if isinstance(factor, float) and factor == 1.0 else loss * factor)
                return loss.detach() * accumulate

        scale: float | Tensor = 1.0 / accumulate
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            scale = scaler.scale(torch.ones((), device=self.plastic.gates.device)) * scale
        with contextlib.suppress(_Skipped):
            self.backward(evaluate, scale)
        return outputs[0]


def first_inputs(trainer: Trainer) -> Any:
    """Take the model's inputs from the first training batch.

    Args:
        trainer: the Trainer, during `fit`.

    Returns:
        The batch, or its first element if it is a tuple or list.

    Raises:
        ConfigurationError: there is no batch, or the inputs are not a tensor, tuple or dict.
    """
    source = trainer.fit_loop._data_source  # trainer.train_dataloader would draw the first epoch's order already
    batch = next(iter(source.dataloader()), None) if source.is_defined() else None
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(inputs, (Tensor, tuple, dict)):
        raise ConfigurationError(
            f"expected example inputs in the first element of the first training batch, got {type(inputs).__name__}; "
            "give the callback example_inputs="
        )
    return inputs


def _submodule(module: nn.Module, name: str) -> nn.Module:
    """The submodule of that name."""
    try:
        return module.get_submodule(name)
    except AttributeError:
        names = ", ".join(name for name, _ in module.named_children())
        raise ConfigurationError(f"target {name!r} is no submodule; the module has: {names}") from None


def _check_callbacks(trainer: Trainer) -> None:
    """Raise if a callback of Lightning's keeps a copy of the weights, which no resize reaches."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if any(base.__name__ in ("WeightAveraging", "StochasticWeightAveraging") for base in type(callback).__mro__):
            raise ConfigurationError(
                f"{type(callback).__name__} keeps averages of the weights at the sizes of its start, which a resize "
                "does not reach: leave it out. To average, give plastic.follow a copy of the module in on_fit_start of "
                "a callback of your own, after PlasticityCallback"
            )


def _check_forward(module: LightningModule, target: str | None) -> None:
    """Raise if the whole module is to get gates and has no forward, with which it is traced."""
    if target is None and type(module).forward is LightningModule.forward and "forward" not in vars(module):
        names = ", ".join(name for name, _ in module.named_children())
        raise ConfigurationError(
            f"{type(module).__name__} has no forward, with which it would be traced: name the part that gets gates, "
            f"PlasticityCallback(..., target=...), one of {names}; or write a forward that training_step calls"
        )


def _epochs(trainer: Trainer) -> tuple[float, str]:
    """The most epochs that the Trainer runs, and the option that says so."""
    epochs = math.inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs or 0)
    batches = trainer.num_training_batches
    if trainer.max_steps >= 0 and math.isfinite(batches):  # the length of an iterable is not known
        by_steps = trainer.max_steps / max(math.ceil(batches / trainer.accumulate_grad_batches), 1)
        return (by_steps, "max_steps, in epochs,") if by_steps < epochs else (epochs, "max_epochs")
    return epochs, "max_epochs"


def _training(trainer: Trainer) -> bool:
    """Whether the Trainer fits, and is past its sanity check."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


@contextlib.contextmanager
def _quiet(module: LightningModule, quiet: bool) -> Iterator[None]:
    """Drop the values that the module logs inside the context."""
    if not quiet:
        yield
        return
    names = ("log", "log_dict")
    for name in names:
        vars(module)[name] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        for name in names:
            del vars(module)[name]


def _restore_method(owner: Any, name: str) -> None:
    """Remove the instance attribute that replaces a method of an object."""
    vars(owner).pop(name, None)
