"""Building blocks of recipes: attaching, cost, stages and learning rates."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import npn
from npn.errors import ConfigurationError
from npn.experiments.engine.options import Options, stage_lengths
from npn.penalty import CostKind


def attach(model: nn.Module, example: Tensor, options: Options, penalty: npn.CostTerm, **more: Any) -> npn.Plasticity:
    """Call `npn.attach` with the estimator and the gate function of a run.

    Args:
        model: to attach to.
        example: example batch; costs count it.
        options: complete settings.
        penalty: cost of size, see `cost_term`.
        more: further arguments of `npn.attach`.
    """
    assert options.estimator and options.function  # the defaults are filled in
    return npn.attach(model, example, estimator=options.estimator, function=options.function, penalty=penalty, **more)


def channels_last(model: nn.Module) -> None:
    """Lay out the weights of convolutions in channels-last order, in which they take half the time on a CPU.

    Args:
        model: to change in place.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def cost_term(
    penalty: float | None, budget: float | None, cost: CostKind = "params", **settings: Any
) -> npn.Penalty | npn.Budget:
    """Make a budget if there is one, else a penalty.

    Args:
        penalty: price of a parameter or MAC in loss units; None is free.
        budget: cost to end with; at most 1 for a share of the network.
        cost: "params" or "macs".
        settings: further arguments of `npn.Budget`.

    Example:
        >>> cost_term(None, 0.5).target, cost_term(1e-6, None).weight
        (0.5, 1e-06)
    """
    if budget is None:
        return npn.Penalty(cost=cost, weight=penalty or 0.0)
    return npn.Budget(cost=cost, target=budget if budget <= 1 else int(budget), **settings)


def in_full(budget: float | None, full: float) -> float | None:
    """Convert a budget that may be a share of the full network to a size.

    Args:
        budget: at most 1 for a share.
        full: size of the full network, even if training starts with a smaller one.

    Example:
        >>> in_full(0.5, full=8442), in_full(300.0, full=8442)
        (4221.0, 300.0)
    """
    return budget if budget is None or budget > 1 else max(2.0, budget * full)  # up to 1 it would again be a share


def schedule(options: Options, default: tuple[int, ...]) -> npn.Schedule:
    """Make the paper's three stages, or a single one without gates for plain nets.

    Args:
        options: complete settings; `epochs` and `k` count.
        default: epochs of each stage by default, three or one.

    Raises:
        ConfigurationError: the epochs do not fit the stages.

    Example:
        >>> schedule(Options(epochs="1,2,3", k=7.0), (20, 180, 20)).spans()
        [('pretrain', 0, 1), ('plastic', 1, 3), ('finetune', 3, 6)]
    """
    lengths = stage_lengths(options.epochs, default)
    if len(lengths) == 1:
        return npn.Schedule(npn.Stage("train", lengths[0]))
    assert options.k is not None  # the defaults are filled in
    pretrain, plastic, finetune = lengths
    return npn.Schedule(
        npn.Stage("pretrain", pretrain), npn.Stage("plastic", plastic, k=options.k), npn.Stage("finetune", finetune)
    )


def path_steps(stages: npn.Schedule, share: float, batches: int) -> int | None:
    """Compute the training steps of the path of a budget; None for plain nets, which have no plastic stage.

    Args:
        stages: of the training.
        share: part of the plastic stage in which the bound leads to the target, from 0 to 1.
        batches: training steps per epoch.

    Example:
        >>> path_steps(schedule(Options(epochs="1,10,3", k=7.0), (20, 180, 20)), 0.8, 100)
        800
    """
    plastic = [stage.epochs for stage in stages.stages if math.isfinite(stage.k)]
    return max(1, round(share * sum(plastic) * batches)) if plastic else None


def check_overshoot(overshoot: float | None, mode: str) -> None:
    """Check that growth alone ends above its budget, and not below.

    Args:
        overshoot: growth ends at so many times the budget; None by default.
        mode: of the run.

    Raises:
        ConfigurationError: less than 1, or a mode that does not grow.

    Example:
        >>> check_overshoot(2.0, "expand")
    """
    if overshoot is not None and (mode != "expand" or not overshoot >= 1.0):
        raise ConfigurationError(
            f"overshoot is for the mode 'expand' and at least 1, got {overshoot:g} for mode {mode!r}"
        )


def half_cosine(done: float, total: float = 1.0) -> float:
    """Compute the factor that falls from 1 to 0 over half a period of a cosine.

    Args:
        done: part that is behind, in the unit of `total`.
        total: length of the fall.

    Example:
        >>> half_cosine(0.0), round(half_cosine(5, 10), 2), round(half_cosine(1.0), 2)
        (1.0, 0.5, 0.0)
    """
    return 0.5 * (1.0 + math.cos(math.pi * done / total))


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group.

    Args:
        optimizer: to change.
        rate: learning rate.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate


def redrawn(model: nn.Module) -> nn.Module:
    """Draw every weight of a model anew, from the global generator, as its layers do when they are made.

    Args:
        model: its modules have `reset_parameters`, or are linear layers behind a selection of their inputs, as
            `npn.Plasticity.export` leaves them.

    Returns:
        The model.
    """
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
        elif isinstance(weight := module._parameters.get("weight"), Tensor) and weight.dim() == 2:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            if isinstance(bias := module._parameters.get("bias"), Tensor):
                nn.init.uniform_(bias, -1 / math.sqrt(weight.shape[1]), 1 / math.sqrt(weight.shape[1]))
    return model
