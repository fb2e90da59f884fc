"""Hugging Face: a callback and a one-line mixin add plasticity to `transformers.Trainer`."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from npn.checkpoint import load, save
from npn.errors import CheckpointError, ConfigurationError
from npn.integrations.pretrained import update_config as update_config
from npn.integrations.session import Session, check_processes

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as error:
    raise ConfigurationError("transformers is not installed; pip install 'npn[transformers]'") from error

FILE = "npn.pt"


class _Rewrapped:
    """The accelerator's wrapper of the model, made again after each resize."""

    def __init__(self, given: DistributedDataParallel, handler: Any) -> None:
        self.given, self.handler = given, handler
        self.model = given

    def renew(self) -> None:
        """Wrap the model again, with the accelerator's options."""
        options = {} if self.handler is None else self.handler.to_kwargs()
        self.model = DistributedDataParallel(
            self.given.module, self.given.device_ids, self.given.output_device, init_sync=False, **options
        )
        if self.handler is not None:
            self.handler.register_comm_hook(self.model)


@dataclass(eq=False, repr=False)
class PlasticityCallback(Session, TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Gates, schedule, growth and resizes for a Trainer with `PlasticTrainerMixin`.

    Units are removed at the end of each epoch, before the Trainer evaluates and saves; growth follows an evaluation.
    Training stops at the schedule's end at the latest. Each `checkpoint-N` folder contains a file `npn.pt` beside the
    Trainer's own files, from which `train(resume_from_checkpoint=...)` continues with a freshly built model. The
    model's config keeps the sizes of the full model: `update_config(plasticity.export())` sets those of the small one
    before `save_pretrained`, where a config can say them; else save it with `npn.save`.

    Under `torchrun` each process draws its own masks; the model is wrapped again after each resize.

    Args:
        schedule, penalty, ...: see `Session`. `example_inputs` default to the first training batch; `monitor` is a
            metric of `evaluate`, with its prefix.

    Attributes:
        scaler: the accelerator's `GradScaler`, if it trains in float16.
        running: whether `train` is under way.
        masked: whether a step of this training has run under masks, which only the mixin's do.
        wrapped: the wrapper on several processes; None on one.
        plastic: the handle, once `train` has begun.

    Example:
        >>> import npn
        >>> from transformers import Trainer
        >>> class MyTrainer(PlasticTrainerMixin, Trainer): pass
        >>> schedule = npn.Schedule(npn.Stage("pretrain", 1), npn.Stage("plastic", 2, k=7.0))
        >>> plasticity = PlasticityCallback(schedule, penalty=npn.Budget(cost="params", target=0.5))
        >>> # MyTrainer(model, args, train_dataset=data, callbacks=[plasticity]).train(); small = plasticity.export()
    """

    monitor: str = "eval_loss"
    scaler: Any = None  # the accelerator's GradScaler, if it trains in float16
    running: bool = False
    masked: bool = False
    wrapped: _Rewrapped | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Attach the model, and track the optimizer; warn if the training is shorter than the schedule.

        Args:
            args, state, control, parts: see `transformers.TrainerCallback`, as for the hooks below.
        """
        self.prepare(args, parts["model"], parts["train_dataloader"])
        optimizer = parts["optimizer"]
        self.follow([getattr(optimizer, "optimizer", optimizer)])
        self.running, self.masked = True, False
        self.announce(state.num_train_epochs, "num_train_epochs" if args.max_steps <= 0 else "max_steps, in epochs,")

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Set the sharpness of the epoch."""
        self.enter(int((state.epoch or 0.0) + 1e-6))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Step the gates before the weights.

        Raises:
            ConfigurationError: the Trainer's class lacks the mixin.
        """
        if not self.masked:
            raise ConfigurationError(
                "the Trainer's steps do not run under masks, so that no gate would learn: its class lacks "
                "PlasticTrainerMixin. Write class MyTrainer(PlasticTrainerMixin, Trainer): pass, the mixin first, and "
                "train with that class"
            )
        self.step_gates(self.scaler)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """Compact, and stop when the schedule has ended."""
        self.compact()
        control.should_training_stop |= self.schedule.done

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **parts: Any,
    ) -> None:
        """Observe the metric and grow, before a checkpoint is written."""
        if self.running:
            self.validated(metrics or {})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """Save gates, schedule, growth and weights; the Trainer saves the optimizer's state."""
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        with self.alone():
            save(folder / FILE, self.plastic, extra=None, **self.stateful())

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """Ignore the metrics of later evaluations; warn if growth never got one."""
        self.running = False
        self.finish()

    def prepare(self, args: TrainingArguments, model: nn.Module, loader: Any) -> None:
        """Attach the model, with the first batch of a loader as example inputs.

        Args:
            args: the Trainer's arguments.
            model: the model to train.
            loader: the training loader.

        Raises:
            ConfigurationError: the Trainer would use DataParallel.
        """
        check_processes(args.n_gpu, "DataParallel", replicated=False)  # n_gpu counts the GPUs of this process
        # not from accelerate's own loader, which counts its batches
        self.begin(model, lambda: next(iter(getattr(loader, "base_dataloader", loader))))

    def restore(self, folder: str | os.PathLike[str]) -> None:
        """Resize model and gates to those of a checkpoint.

        Args:
            folder: a `checkpoint-N` folder.

        Raises:
            CheckpointError: the folder holds no state of npn, or the state of another model.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            raise CheckpointError(
                f"{folder} holds no {FILE}: it was written without PlasticityCallback. Load its weights into the model "
                "first and train without resume_from_checkpoint"
            )
        with self.alone():
            load(file, self.plastic, **self.stateful())

    def rewrap(self, model: nn.Module, args: TrainingArguments, handler: Any) -> nn.Module:
        """Find the wrapped model at the present sizes.

        Args:
            model: the model that the Trainer passes to `training_step`.
            args: the Trainer's arguments.
            handler: the accelerator's options of DistributedDataParallel, or None.

        Returns:
            The present wrapper; on one process the model itself.

        Raises:
            ConfigurationError: several processes do not use DistributedDataParallel.
        """
        if not isinstance(model, DistributedDataParallel):
            check_processes(args.world_size, type(model).__name__, replicated=False)
            return model
        if self.wrapped is None or self.wrapped.given is not model:
            self.wrapped = _Rewrapped(model, handler)
            self.plastic.followers[id(self)] = self.wrapped
        return self.wrapped.model

    @contextlib.contextmanager
    def plain(self, model: nn.Module) -> Iterator[None]:
        """Remove Accelerate's mixed precision wrapper of the model's forward inside the context.

        Args:
            model: the model.
        """
        own = vars(model)
        wrapped = {name: own.pop(name) for name in ("forward", "_original_forward") if name in own}
        try:
            yield
        finally:
            for name, value in wrapped.items():
                own[name] = value


class PlasticTrainerMixin:
    """Add plasticity to a Trainer class: `class MyTrainer(PlasticTrainerMixin, Trainer): pass`.

    The Trainer needs a `PlasticityCallback` among its callbacks.

    Attributes:
        args, accelerator, callback_handler, model, state: attributes of `transformers.Trainer` that the mixin uses.

    Example:
        >>> from transformers import Trainer
        >>> class MyTrainer(PlasticTrainerMixin, Trainer): pass
    """

    # attributes of transformers.Trainer that the mixin uses
    args: Any
    accelerator: Any
    callback_handler: Any
    model: nn.Module
    state: Any
    get_train_dataloader: Callable[[], Any]

    @property
    def plasticity(self) -> PlasticityCallback:
        """The callback.

        Raises:
            ConfigurationError: there is no `PlasticityCallback`, or more than one.
        """
        found = [callback for callback in self.callback_handler.callbacks if isinstance(callback, PlasticityCallback)]
        if len(found) != 1:
            raise ConfigurationError(f"expected one PlasticityCallback among the Trainer's callbacks, got {len(found)}")
        return found[0]

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run the Trainer's own step under masks.

        Args:
            model: the model, possibly wrapped.
            inputs: one batch.
            num_items_in_batch: see `transformers.Trainer.training_step`.

        Returns:
            The detached loss, (), divided by the number of accumulation steps.
        """
        session, accelerator = self.plasticity, self.accelerator
        session.masked = True
        model = session.rewrap(model, self.args, getattr(accelerator, "ddp_handler", None))
        step, backward = super().training_step, accelerator.backward  # type: ignore[misc]
        steps = getattr(self, "current_gradient_accumulation_steps", self.args.gradient_accumulation_steps)

        def evaluate(factor: float | Tensor, gradient: bool) -> Tensor:
            def instead(loss: Tensor, **options: Any) -> None:
                session.check(loss, gradient)
                if gradient:
                    backward(loss if isinstance(factor, float) and factor == 1.0 else loss * factor, **options)

            accelerator.backward = instead
            try:
                with torch.set_grad_enabled(gradient):
                    loss: Tensor = step(model, inputs, num_items_in_batch)
            finally:
                del accelerator.backward
            return loss.mul(steps)

        scale: float | Tensor = 1.0 / steps
        session.scaler = accelerator.scaler
        if session.scaler is not None:
            scale = session.scaler.scale(torch.ones((), device=session.plastic.gates.device)) * scale
        return session.backward(evaluate, scale).div(steps)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log sharpness and sizes together with the Trainer's values, during training.

        Args:
            logs: name -> value.
            args, kwargs: further arguments of `transformers.Trainer.log`.
        """
        session = self.plasticity
        super().log({**logs, **session.scalars()} if session.running else logs, *args, **kwargs)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Resize to the checkpoint before the Trainer loads it."""
        self._resize_to(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        """Resize to the best checkpoint before the Trainer loads it."""
        self._resize_to(self.state.best_model_checkpoint)
        super()._load_best_model()  # type: ignore[misc]

    def _resize_to(self, folder: str) -> None:
        """Attach the model, and resize it to a checkpoint."""
        self.plasticity.prepare(self.args, self.model, self.get_train_dataloader())
        self.plasticity.restore(folder)
