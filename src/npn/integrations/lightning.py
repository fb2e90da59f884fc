"""Lightning: `PlasticityCallback` brings the method to a LightningModule and a Trainer that know nothing of it."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from npn import distributed
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
    """`training_step` returned None."""


class _Rewrapping:
    """Has the strategy wrap the module anew after a resize."""

    def __init__(self, trainer: Trainer) -> None:
        self.strategy: Any = trainer.strategy

    def renew(self) -> None:
        """Of the strategy's own making, with the options that it was given."""
        if isinstance(self.strategy.model, DistributedDataParallel):
            self.strategy.model = self.strategy.lightning_module
            self.strategy.configure_ddp()


@dataclass(eq=False, repr=False)
class PlasticityCallback(Session, Callback):
    """Gates, schedule, growth and resizes for an unmodified LightningModule with automatic optimization.

    The module's optimizer, learning rate schedulers, precision plugin, gradient accumulation, clipping (of the weights)
    and checkpoints stay what they are. Validation runs on the net with what has closed removed, and checkpoints written
    after it or at the end of an epoch hold gates, sizes, schedule, growth and random states: `fit(ckpt_path=...)` on
    a freshly built module goes on as if nothing had happened. Training stops at the schedule's end at the latest.
    `k`, `params` and units per group are logged as `npn/...`.

    Estimators with two forward passes call `training_step` twice; what the second call logs is dropped.

    Of strategies for several processes `ddp` and its variants work: each process draws its own masks, and the wrapper
    is made anew after each resize. The mean of `monitor` over the processes counts.

    Args:
        target: name of the submodule that gets gates; the whole module, through its `forward`, if not given.
        schedule, penalty, ...: see `Session`. `example_inputs` come from the first training batch: its first element if
            it is a tuple or list.

    Example:
        >>> import npn
        >>> schedule = npn.Schedule(npn.Stage("pretrain", 1), npn.Stage("plastic", 3, k=7.0))
        >>> plasticity = PlasticityCallback(schedule, penalty=npn.Penalty(cost="macs", weight=1e-6), target="net")
        >>> trainer = Trainer(callbacks=[plasticity], logger=False, barebones=True)
        >>> # trainer.fit(module, loader); small = plasticity.export()
    """

    target: str | None = None
    rewrapping: _Rewrapping | None = None

    # -- Lightning's hooks, in the order in which they come

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check what cannot work, and wait for a checkpoint."""
        strategy = trainer.strategy
        check_processes(trainer.world_size, type(strategy).__name__, isinstance(strategy, DDPStrategy))
        if stage == "fit" and not pl_module.automatic_optimization:
            raise ConfigurationError(
                "the module optimizes by hand (automatic_optimization=False); there, npn.attach the model and call "
                "plastic.backward(closure) in training_step, or let Lightning optimize"
            )
        _restore_method(trainer.strategy, "load_model_state_dict")
        load = trainer.strategy.load_model_state_dict
        vars(trainer.strategy)["load_model_state_dict"] = partial(self._load, trainer, load)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the model its gates and step in between Lightning's closure and its backward pass."""
        self._begin(trainer)
        self.follow(trainer.optimizers)
        self.rewrapping = _Rewrapping(trainer)
        self.plastic.followers[id(self)] = self.rewrapping
        loop = trainer.fit_loop.epoch_loop.automatic_optimization
        if not hasattr(loop, "_make_closure"):
            raise ConfigurationError("this version of lightning is built in another way; use one from 2.4 to 2.6")
        _restore_method(loop, "_make_closure")
        vars(loop)["_make_closure"] = partial(self._make_closure, trainer, loop._make_closure)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the sharpness."""
        self.enter(trainer.current_epoch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """The gates step with the weights."""
        self.step_gates(getattr(trainer.precision_plugin, "scaler", None))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate what the epoch leaves."""
        if _training(trainer):
            self.compact()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Growth, before a checkpoint is written."""
        if _training(trainer):
            self.validated(trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shrink, log, and stop when the schedule is over."""
        self.compact()
        scalars, several = self.scalars(), trainer.world_size > 1  # the same on all, but Lightning wants to be sure
        bar = {name: scalars.pop(name) for name in ("npn/k", "npn/params")}
        pl_module.log_dict(bar, prog_bar=True, sync_dist=several)
        pl_module.log_dict(scalars, sync_dist=several)
        if self.schedule.done:
            trainer.should_stop = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the Trainer as it was."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the Trainer as it was."""
        _restore_method(trainer.strategy, "load_model_state_dict")
        _restore_method(trainer.fit_loop.epoch_loop.automatic_optimization, "_make_closure")

    def state_dict(self) -> dict[str, Any]:
        """All but the weights and their optimizers' state, which Lightning keeps."""
        if self.handle is None:
            return {}
        with self.alone():
            content = pack(self.handle, stateful=self.stateful())
        del content["model"]
        return content

    # -- what they need

    def _begin(self, trainer: Trainer) -> None:
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
            self._begin(trainer)
            start = f"{self.target}." if self.target else ""
            weights = {n.removeprefix(start): v for n, v in checkpoint["state_dict"].items() if n.startswith(start)}
            with self.alone():
                unpack({**content, "model": weights}, "the Trainer's checkpoint", self.plastic, self.stateful())
            if distributed.rank() > 0:  # the random state is the first one's, and dropout would be the same on all
                torch.manual_seed(distributed.own_seed(torch.get_rng_state().numpy().tobytes()))
        load(checkpoint, strict=strict)

    def _make_closure(self, trainer: Trainer, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        closure = make(*args, **kwargs)
        if closure._backward_fn is not None:
            closure.closure = partial(self._run, trainer, closure)
        return closure

    def _run(self, trainer: Trainer, closure: Any) -> Any:
        """`Closure.closure` under masks: training step, zero_grad, backward; returns the training step's output."""
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
                self.check(loss)
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
    """Inputs of the model from the first training batch.

    Raises:
        ConfigurationError: there is none, or it is neither a tensor nor a sequence or mapping of tensors.
    """
    source = trainer.fit_loop._data_source  # not trainer.train_dataloader: it would draw the first epoch's order now
    batch = next(iter(source.dataloader()), None) if source.is_defined() else None
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(inputs, (Tensor, tuple, dict)):
        raise ConfigurationError(
            f"expected example inputs in the first element of the first training batch, got {type(inputs).__name__}; "
            "give the callback example_inputs="
        )
    return inputs


def _submodule(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        names = ", ".join(name for name, _ in module.named_children())
        raise ConfigurationError(f"target {name!r} is no submodule; the module has: {names}") from None


def _training(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking


@contextlib.contextmanager
def _quiet(module: LightningModule, quiet: bool) -> Iterator[None]:
    """What the module logs inside is dropped."""
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
    """Undo what was set over a method of an object."""
    vars(owner).pop(name, None)
