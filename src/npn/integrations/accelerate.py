"""Hugging Face Accelerate: `prepare` the model and run `backward` in a custom training loop."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npn._utils.validation import HANDLE, instance
from npn.checkpoint import load, save
from npn.distributed import Wrapped, wrap
from npn.errors import CheckpointError, ConfigurationError
from npn.methods import Method
from npn.plasticity import Plasticity

try:
    from accelerate import Accelerator
except ImportError as error:
    raise ConfigurationError("accelerate is not installed; pip install 'npn[accelerate]'") from error

# the attached models of each accelerator, whose numbers are in the names of their files
_PREPARED: "weakref.WeakKeyDictionary[Accelerator, list[Plasticity]]" = weakref.WeakKeyDictionary()


def prepare(accelerator: Accelerator, plastic: Plasticity) -> Wrapped:
    """Move the model to the accelerator's device and wrap it, in place of `accelerator.prepare(model)`.

    On several processes the model is wrapped in DistributedDataParallel with the accelerator's options, again after
    each resize; `accelerator.accumulate` accepts the wrapper. Pass optimizers, loaders and learning rate schedules to
    `accelerator.prepare` as usual. With one optimizer, give the gates their own param group; with two optimizers,
    prepare both.

    `accelerator.save_state` writes a file `npn.pt` (`npn_1.pt` for a second model) beside its own, with weights, gates,
    sizes, tracked optimizers and the method of `npn.methods`, if one decides; `accelerator.load_state` resizes the
    model to it before it loads the rest.

    Args:
        accelerator: an accelerator on one device, or with one device per process.
        plastic: the result of `npn.attach`.

    Returns:
        The model to call in the training loop.

    Raises:
        ConfigurationError: `plastic` is no handle, or the accelerator shards the model; gates need the whole model in
            each process.

    Example:
        >>> import npn
        >>> from torch.nn import functional as F
        >>> x, y = torch.randn(8, 4), torch.randint(2, (8,))
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
        >>> plastic = npn.attach(model, x[:2])
        >>> gates = {"params": plastic.logits(), "lr": 1e-2, "weight_decay": 0.0}
        >>> optimizer = torch.optim.AdamW([{"params": plastic.weights()}, gates], lr=1e-3)
        >>> accelerator = Accelerator(cpu=True)
        >>> optimizer = accelerator.prepare(optimizer)
        >>> plastic.track(optimizer)
        >>> model = prepare(accelerator, plastic)
        >>> with accelerator.accumulate(model):
        ...     loss = backward(accelerator, plastic, lambda: F.cross_entropy(model(x), y))
        ...     optimizer.step()
        ...     optimizer.zero_grad()
    """
    instance("plastic", plastic, Plasticity, HANDLE)
    kind = accelerator.distributed_type.value
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ConfigurationError(
            f"the accelerator trains with {kind}, but gates need the whole model in a process for each device: "
            "use DistributedDataParallel, or a single device"
        )
    plastic.model.to(accelerator.device)
    _save_with(accelerator, plastic)
    handler: Any = accelerator.ddp_handler
    return wrap(plastic, **({} if handler is None else handler.to_kwargs()))


def _save_with(accelerator: Accelerator, plastic: Plasticity) -> None:
    """Make the accelerator save and load an attached model, which is not among the models that it has prepared."""
    known = _PREPARED.setdefault(accelerator, [])
    if any(each is plastic for each in known):
        return
    name = f"npn_{len(known)}.pt" if known else "npn.pt"
    known.append(plastic)

    def write(models: Any, weights: Any, folder: str) -> None:
        each_node = accelerator.project_configuration.save_on_each_node
        if accelerator.is_local_main_process if each_node else accelerator.is_main_process:
            save(Path(folder) / name, plastic, **_method(plastic))

    def read(models: Any, folder: str) -> None:  # called before the optimizers load their states
        file = Path(folder) / name
        if not file.is_file():
            raise CheckpointError(
                f"{folder} holds no {name}: it was saved before npn.integrations.accelerate.prepare, which makes "
                "save_state write it. Load a state that was saved after it"
            )
        load(file, plastic, **_method(plastic))

    accelerator.register_save_state_pre_hook(write)
    accelerator.register_load_state_pre_hook(read)


def _method(plastic: Plasticity) -> dict[str, Any]:
    """The method that decides which units stay, by the name of its state in the file."""
    return {} if plastic.gates.decision is None else {"method": plastic.gates.decision}


def backward(accelerator: Accelerator, plastic: Plasticity | Method, closure: Callable[[], Tensor]) -> Tensor:
    """Run `plastic.backward` in place of `accelerator.backward`, with its precision, loss scale and accumulation.

    Args:
        accelerator: the accelerator; when accumulating, call this inside its `accumulate`.
        plastic: the result of `npn.attach`, or the method of `npn.methods` that trains it.
        closure: returns the scalar loss, computed with the result of `prepare`; runs under the accelerator's autocast.

    Returns:
        The detached loss, (), without scale and penalty.

    Raises:
        NonFiniteLossError, ConfigurationError: see `Plasticity.backward`.

    Example:
        See `prepare`.
    """
    instance("plastic", plastic, (Plasticity, Method), HANDLE)

    def cast() -> Tensor:
        with accelerator.autocast():
            return closure()

    scale: float | Tensor = 1.0 / accelerator.gradient_accumulation_steps
    if accelerator.scaler is not None:
        scale = scale * accelerator.scaler.scale(torch.ones((), device=accelerator.device))
    return plastic.backward(cast, scale=scale)
