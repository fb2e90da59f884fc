"""One-shot pruning: score the units of a trained network, close the least important, export what is left."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from npn._attach import attach
from npn._importance import check_criterion, importance
from npn._importance.closing import COARSE, Cost, best_of_each, cheapest_to_close
from npn._importance.costs import cost_function, value_and_slope
from npn._importance.gradients import BatchLoss
from npn._importance.reconstruct import refit_readers
from npn._importance.scores import check_data
from npn._importance.sets import numbers_of_sets, of_sets, of_units, sets_that_stay, units_of_sets
from npn._utils import cpu
from npn._utils.copies import model_copy
from npn._utils.validation import flag, share, target_size, whole_number
from npn.counting import macs_at
from npn.errors import ConfigurationError
from npn.masking.calls import detached_leftovers
from npn.plasticity import Plasticity

COSTS = ("params", "macs")
TRIES = 10  # where a model's multiply-adds are not those of its weights alone


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    target: float,
    cost: str = "macs",
    criterion: str = "taylor",
    batches: Iterable[Any] | None = None,
    loss: BatchLoss | None = None,
    only: str | Iterable[str] | None = None,
    skip: str | Iterable[str] | None = None,
    streams: bool = False,
    round_to: int = 1,
    max_pruning_ratio: float = 1.0,
    reconstruct: bool = False,
) -> nn.Module:
    """Shrink a trained model to a size in one shot; neither gates nor weights are trained.

    Units are closed in the order of importance per marginal cost: what the network would save at that moment if the
    unit alone were closed. Units that come in sets, as in a channel shuffle, close in sets. The most important unit of
    every group is kept. The result is within 2% of the target, at most the target if whole units allow it; if units are
    too coarse for that, it is below the target. Fine-tune it afterwards.

    The model itself is unchanged: a copy is scored, and the result is another one.

    Args:
        model: any module whose forward pass can be traced, in the mode in which it is to be scored.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; one small batch.
        target: a float up to 1 is a fraction of the present cost; an int, or a value above 1, is the cost itself.
        cost: "macs" as `npn.count_macs(model, example_inputs)` counts them, or "params" as `npn.count_params`.
        criterion: "taylor", "fisher", "magnitude", "bn_scale" or "random", see `npn.importance`.
        batches: for "taylor" and "fisher": an iterable of what `loss` takes.
        loss: for "taylor" and "fisher": (model, batch) -> scalar, called with the copy.
        only, skip: patterns of names of groups that may lose units, or may not.
        streams: whether channels under a norm may go, see `npn.attach`.
        round_to: every group keeps a multiple of so many channels, or all where they are fewer; 8 or 16 suit tensor
            cores.
        max_pruning_ratio: the largest share of a group's units that may go.
        reconstruct: whether layers that read what goes are refitted: the inputs or channels that go are replaced by
            their least-squares fit from the others on `batches`. Needs batches and loss with any
            criterion, and memory for the square of each such layer's number of inputs.

    Returns:
        A plain module of the same class, in the same mode, with fewer units.

    Raises:
        ConfigurationError: an argument is unknown or outside its range, or the target is below the cost with as few
            units as may be left in every group.
        TraceError: the model cannot be followed, or nothing in it can be resized.
        NonFiniteLossError: a batch's loss or gradient is NaN or infinite.

    Example:
        >>> import npn, torch
        >>> from torch.nn import functional as F
        >>> model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> batches = [(torch.randn(16, 8), torch.randint(2, (16,))) for _ in range(4)]
        >>> loss = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])
        >>> small = npn.prune(model, batches[0][0], target=0.5, batches=batches, loss=loss)
        >>> 0.48 < npn.count_macs(small, batches[0][0]) / npn.count_macs(model, batches[0][0]) <= 0.5
        True

    References:
        Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017, divide by
        cost as well; Liu et al., "Group Fisher Pruning for Practical Network Compression", ICML 2021.
    """
    return closed_to_target(
        model, example_inputs, target=target, cost=cost, criterion=criterion, batches=batches, loss=loss, only=only,
        skip=skip, streams=streams, round_to=round_to, max_pruning_ratio=max_pruning_ratio,
        reconstruct=reconstruct,
    ).export()  # fmt: skip


def closed_to_target(
    model: nn.Module,
    example_inputs: Any,
    *,
    target: float,
    cost: str,
    criterion: str,
    batches: Iterable[Any] | None,
    loss: BatchLoss | None,
    only: str | Iterable[str] | None,
    skip: str | Iterable[str] | None,
    streams: bool = False,
    round_to: int = 1,
    max_pruning_ratio: float = 1.0,
    reconstruct: bool = False,
) -> Plasticity:
    """Attach to a copy of the model and close units until its `export` meets the target; see `prune` for the arguments.

    Returns:
        The handle of the copy, with the units still in it.
    """
    _check(target, cost, round_to, max_pruning_ratio)
    check_criterion(criterion, batches, loss)
    if flag("reconstruct", reconstruct):
        check_data("reconstruct=True", batches, loss)
    clone = model_copy(model, detached_leftovers(model))
    plastic = attach(clone, example_inputs, only=only, skip=skip, streams=streams)
    sizes = [group.size for group in plastic.groups]
    multiples = units_of_sets(plastic.groups, round_to)
    fewest = sets_that_stay(sizes, multiples, max_pruning_ratio)
    price, counted = _price(plastic, cost)
    full = counted([0] * len(sizes))
    numbers, counts = numbers_of_sets(cpu.zeros(sum(sizes)), sizes, multiples)
    least = value_and_slope(price, of_units(best_of_each(cpu.zeros(sum(counts)), counts, fewest), numbers))[0]
    wanted = target * full if isinstance(target, float) and target <= 1 else target
    if least > wanted:
        limited = round_to > 1 or max_pruning_ratio < 1
        units = "as few units as round_to and max_pruning_ratio allow" if limited else "one unit"
        raise ConfigurationError(
            f"target={target} asks for {wanted:,.0f} {'MACs' if cost == 'macs' else 'parameters'}, but with {units} "
            f"left in every group the model still has {least:,.0f} of {full:,.0f}; give a target of "
            f"at least {math.ceil(least / full * 1e4) / 1e4:g}"
            + (", or let more groups take part with only= and skip=" if only is not None or skip is not None else "")
        )
    found = importance(plastic, criterion, batches, loss)
    scores = torch.cat([found[group.name].cpu().double() for group in plastic.groups])

    def measured(mask: Tensor) -> float:
        return counted([int(piece.sum()) - len(piece) for piece in mask.split(sizes)])

    numbers, counts = numbers_of_sets(scores, sizes, multiples)
    values = of_sets(scores, numbers, sum(counts))

    def price_of_sets(sets: Tensor) -> Tensor:
        return price(of_units(sets, numbers))

    def choose(bound: float) -> Tensor:
        return of_units(cheapest_to_close(values, counts, price_of_sets, bound, fewest), numbers)

    stay = _nearest(wanted, price, choose, measured)
    if reconstruct:
        assert batches is not None and loss is not None
        refit_readers(plastic, stay, batches, loss)
    set_open(plastic, stay)
    return plastic


def _price(plastic: Plasticity, cost: str) -> tuple[Cost, Callable[[Sequence[int]], float]]:
    """Two costs: one of a mask, differentiable, and the exact one after each group changed by so many units.

    They differ where multiply-adds do not follow the labels of units: in ops that only a run of the model counts.
    """
    priced = cost_function(plastic, cost)

    def by_running(change: Sequence[int]) -> float:
        named = {group.name: more for group, more in zip(plastic.groups, change, strict=True)}
        return macs_at(plastic.model, plastic.example_inputs, plastic.structure, named)

    def by_price(change: Sequence[int]) -> float:
        sizes = [group.size for group in plastic.groups]
        kept = [cpu.arange(size) < size + more for size, more in zip(sizes, change, strict=True)]
        return value_and_slope(priced, torch.cat(kept))[0]

    if cost == "params":
        return priced, by_price
    nothing = [0] * len(plastic.groups)
    rest = by_running(nothing) - by_price(nothing)
    return lambda mask: priced(mask) + rest, by_running


def _nearest(
    wanted: float, price: Cost, choose: Callable[[float], Tensor], measured: Callable[[Tensor], float]
) -> Tensor:
    """The choice whose measured cost is nearest to the wanted one: within 2%, and below it if there is one.

    Where the price is not exact, the bound on it that leads to the wanted cost is found by proportion, and by bisection
    where that leaves the bracket.
    """
    low, high, bound = 0.0, math.inf, wanted
    found: list[tuple[bool, bool, float, Tensor]] = []
    for _ in range(TRIES):
        mask = choose(bound)
        came = measured(mask)
        found.append((abs(came - wanted) > COARSE * wanted, came > wanted, abs(came - wanted), mask))
        low, high = (low, bound) if came > wanted else (bound, high)
        as_priced = abs(value_and_slope(price, mask)[0] - came) < 0.5
        if as_priced or (1 - COARSE) * wanted <= came <= wanted or bool(mask.all()):
            break
        following = bound * wanted / came
        following = following if low < following < high else (low + high) / 2
        if not math.isfinite(following) or following == bound:
            break
        bound = following
    return min(found, key=lambda each: each[:3])[3]


def set_open(plastic: Plasticity, open_units: Tensor) -> None:
    """Open these units, bool (gates,), and close all others."""
    for group, mask in zip(plastic.groups, open_units.split([group.size for group in plastic.groups]), strict=True):
        plastic.open(group, mask)
        plastic.close(group, ~mask)


def _check(target: float, cost: str, round_to: int, max_pruning_ratio: float) -> None:
    if cost not in COSTS:
        raise ConfigurationError(f"cost must be one of {', '.join(map(repr, COSTS))}, got {cost!r}")
    target_size(target, cost)
    whole_number("round_to", round_to, 1, "channels")
    share("max_pruning_ratio", max_pruning_ratio)
