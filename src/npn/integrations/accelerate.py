"""Hugging Face Accelerate: `prepare` the model and run `backward` in a custom training loop."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from npn._utils.validation import HANDLE, instance
from npn.distributed import Wrapped, wrap
from npn.errors import ConfigurationError
from npn.plasticity import Plasticity

try:
    from accelerate import Accelerator
except ImportError as error:
    raise ConfigurationError("accelerate is not installed; pip install 'npn[accelerate]'") from error


def prepare(accelerator: Accelerator, plastic: Plasticity) -> Wrapped:
    """Move the model to the accelerator's device and wrap it, in place of `accelerator.prepare(model)`.

    On several processes the model is wrapped in DistributedDataParallel with the accelerator's options, again after
    each resize; `accelerator.accumulate` accepts the wrapper. Pass optimizers, loaders and learning rate schedules to
    `accelerator.prepare` as usual. With one optimizer, give the gates their own param group; with two optimizers,
    prepare both.

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
    handler: Any = accelerator.ddp_handler
    return wrap(plastic, **({} if handler is None else handler.to_kwargs()))


def backward(accelerator: Accelerator, plastic: Plasticity, closure: Callable[[], Tensor]) -> Tensor:
    """Run `plastic.backward` in place of `accelerator.backward`, with its precision, loss scale and accumulation.

    Args:
        accelerator: the accelerator; when accumulating, call this inside its `accumulate`.
        plastic: the result of `npn.attach`.
        closure: returns the scalar loss, computed with the result of `prepare`; runs under the accelerator's autocast.

    Returns:
        The detached loss, (), without scale and penalty.

    Raises:
        NonFiniteLossError, ConfigurationError: see `Plasticity.backward`.

    Example:
        See `prepare`.
    """
    instance("plastic", plastic, Plasticity, HANDLE)

    def cast() -> Tensor:
        with accelerator.autocast():
            return closure()

    scale: float | Tensor = 1.0 / accelerator.gradient_accumulation_steps
    if accelerator.scaler is not None:
        scale = scale * accelerator.scaler.scale(torch.ones((), device=accelerator.device))
    return plastic.backward(cast, scale=scale)
