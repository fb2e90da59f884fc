"""`importance`: a score for every unit, by one of five criteria."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from npn._importance.costs import marginal_cost
from npn._importance.gradients import BatchLoss, mean_of_gradients, present_mask
from npn._importance.weights import batchnorm_scales, group_norms
from npn._utils import cpu
from npn._utils.collectives import broadcast
from npn._utils.rng import preserved_rng
from npn._utils.validation import HANDLE, instance
from npn.errors import ConfigurationError
from npn.plasticity import Plasticity

ON_DATA: dict[str, Callable[[Tensor], Tensor]] = {"taylor": torch.abs, "fisher": torch.square}
CRITERIA = ("magnitude", "taylor", "fisher", "bn_scale", "random")
PER = ("unit", "params", "macs")


def importance(
    plastic: Plasticity,
    criterion: str,
    batches: Iterable[Any] | None = None,
    loss: BatchLoss | None = None,
    *,
    per: str = "unit",
) -> dict[str, Tensor]:
    """Score every unit by how much it matters to the network as it is; nothing is trained.

    With z the multiplier of the weights that read a unit, 1 for an open one, and L_b the loss of batch b:

        magnitude  sqrt(sum w^2)        over the rows that produce the unit and the columns that read it
        taylor     mean_b |dL_b/dz|     first-order change of the loss when the unit closes
        fisher     mean_b (dL_b/dz)^2   of the batch's gradient, not of each example's: give small batches
        bn_scale   mean |gamma|         of the BatchNorms on the unit
        random     u ~ U(0, 1)          from the state of torch's generator, which stays as it was

    dL/dz is exact for any coupling, for input columns and branches too. It is taken at the present deterministic mask,
    and in the mode that the model is in (`model.eval()` for running statistics and no dropout). Weights, gradients,
    buffers, modes and random states are as before afterwards. "taylor" and "fisher" do not change when a unit's
    producer is scaled up and its reader down by as much, through ReLU; "magnitude" does.

    Args:
        plastic: the handle of the model.
        criterion: "magnitude", "taylor", "fisher", "bn_scale" or "random".
        batches: for "taylor" and "fisher": an iterable of what `loss` takes.
        loss: for "taylor" and "fisher": (model, batch) -> scalar.
        per: "unit"; or "params" or "macs": the score is divided by the marginal cost of the unit in the present
            structure, what the network would save if this unit alone closed. Infinite where it would save nothing.

    Returns:
        Group name -> scores, float32 (size,), on the device of the weights.

    Raises:
        ConfigurationError: an unknown criterion, no batches or loss where they are needed, or a group without a
            BatchNorm for "bn_scale".
        NonFiniteLossError: a batch's loss or gradient is NaN or infinite.

    Example:
        >>> import npn, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = model[2].weight.copy_(torch.tensor([[2.0, 0.0, 1.0]]))  # nothing reads the second unit
        >>> plastic = npn.attach(model, torch.zeros(1, 2))
        >>> scores = npn.importance(plastic, "taylor", [torch.ones(4, 2)], lambda m, x: m(x).square().mean())
        >>> scores["0"].shape, float(scores["0"][1])
        (torch.Size([3]), 0.0)

    References:
        Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017 (taylor);
        Liu et al., "Group Fisher Pruning for Practical Network Compression", ICML 2021 (fisher of coupled units).
    """
    instance("plastic", plastic, Plasticity, HANDLE)
    check_criterion(criterion, batches, loss)
    if per not in PER:
        raise ConfigurationError(f"per must be one of {', '.join(map(repr, PER))}, got {per!r}")
    plastic.masked_weights.need_whole("npn.importance")
    mask, units = present_mask(plastic), plastic.structure.units
    if criterion in ON_DATA:
        assert batches is not None and loss is not None
        scores = mean_of_gradients(plastic, batches, loss, ON_DATA[criterion])
    elif criterion == "random":
        with preserved_rng():
            scores = cpu.rand(units, dtype=torch.float32)
        broadcast([scores])
    else:
        by_weights = group_norms if criterion == "magnitude" else batchnorm_scales
        scores = by_weights(plastic.model, plastic.structure)
    if per != "unit":
        scores = per_cost(scores[:units], marginal_cost(plastic, per, mask)[:units])
    pieces = scores[:units].to(mask.device, torch.float32).split([group.size for group in plastic.groups])
    return {group.name: piece for group, piece in zip(plastic.groups, pieces, strict=True)}


def per_cost(scores: Tensor, cost: Tensor) -> Tensor:
    """Scores divided by what closing each unit saves; infinite where that is nothing."""
    return torch.where(cost > 0, scores.cpu().double() / cost.clamp(min=1e-300), torch.inf)


def check_criterion(criterion: str, batches: object, loss: object) -> None:
    """Raise unless the criterion is known and has what it needs.

    Raises:
        ConfigurationError: saying what is missing.
    """
    if criterion not in CRITERIA:
        raise ConfigurationError(f"criterion must be one of {', '.join(map(repr, CRITERIA))}, got {criterion!r}")
    if criterion in ON_DATA:
        check_data(f"criterion {criterion!r}", batches, loss, '. "magnitude", "bn_scale" and "random" need none')


def check_data(what: str, batches: object, loss: object, instead: str = "") -> None:
    """Raise unless there are batches and a loss.

    Args:
        what: needs them.
        batches, loss: see `importance`.
        instead: what else could be done, to end the message with.

    Raises:
        ConfigurationError: saying what is missing.
    """
    missing = [name for name, value in (("batches", batches), ("loss", loss)) if value is None]
    if missing:
        raise ConfigurationError(
            f"{what} needs data: give batches= and loss=(model, batch) -> scalar; "
            f"{' and '.join(missing)} missing{instead}"
        )
    if not isinstance(batches, Iterable):
        raise ConfigurationError(f"batches must be an iterable of what loss takes, got {type(batches).__name__}")
    if not callable(loss):
        raise ConfigurationError(f"loss must be callable as loss(model, batch), got {type(loss).__name__}")
