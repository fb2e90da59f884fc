"""Which units and weights go and come, by their gates, or by the method that decides in their place."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch.optim import Optimizer

from npn import surgery
from npn._utils.validation import instance, whole_number
from npn.errors import ConfigurationError, ResizeError
from npn.gates import Gates
from npn.masking import MaskedWeights
from npn.structure import Structure, with_dead_units


def decide(gates: Gates, least: float = -math.inf) -> None:
    """Let a method decide, and raise if a logit, or a method's score, is NaN: its unit would go for good.

    Args:
        gates: of the model.
        least: units of a lower score go, too.

    Raises:
        ResizeError: naming the first group of such a logit or score.
        ConfigurationError: no method gives scores.
    """
    decision = gates.decision
    if decision is None and least > -math.inf:
        raise ConfigurationError("score= is for methods, which give units a score; gates have a probability, below=")
    gates.decide(least)
    values = gates.logits() if decision is None else decision.chosen()[1]
    for name, piece in zip(gates.all_names, gates.pieces(values), strict=True):
        if count := int(piece.isnan().sum()):
            what, of = ("logits", "the gates'") if decision is None else ("scores", f"{type(decision).__name__}'s")
            raise ResizeError(
                f"{count} of {len(piece)} {what} of {name!r} are NaN, so which of its units stay is not known. Look at "
                f"{of} gradients and learning rate, and go back to a checkpoint"
            )


def units_to_remove(gates: Gates, structure: Structure, below: float, least: float = -math.inf) -> dict[str, list[int]]:
    """Group name -> closed units that are less likely than `below` or closed by hand, in whole sets.

    Units whose every reader is a single weight that is to be removed go too, but for the likeliest unit of a group.

    Args:
        gates: of the model.
        structure: of the model.
        below: keep probability.
        least: score of a method; units with less go, too.
    """
    decide(gates, least)
    gone = {group.name: group.gate.gone(below).nonzero().reshape(-1).tolist() for group in gates.groups}
    if gates.weights:
        held = {group.name: group.gate.grace.nonzero().reshape(-1).tolist() for group in gates.groups}
        gone = with_dead_units(structure, gone, {gate.name: gate.gone(below) for gate in gates.weights}, held)
    removed = {}
    for group in gates.groups:
        units = gone.get(group.name, [])
        if len(units) == group.size:
            units = [unit for unit in units if unit != int(group.gate.logits.argmax())]
        removed[group.name] = group.in_sets(units)
    return {name: units for name, units in removed.items() if units}


def remove_weights(
    gates: Gates, weights: MaskedWeights, below: float, optimizers: Sequence[Optimizer]
) -> dict[str, int]:
    """Set closed weights to zero for good: without momentum or gradient, no optimizer moves them from there.

    The resize before it has succeeded: units that have reopened no longer count as closed by hand.

    Args:
        gates: of the model.
        weights: of the model.
        below: weights less likely than this go, and those closed by hand.
        optimizers: that may hold the weights or their logits.

    Returns:
        Name of the parameter -> number of weights removed now.
    """
    for gate in gates.each:
        gate.clear_reopened()
    if not gates.weights:
        return {}
    gates.to(weights.device)
    tensors = weights.table.named
    removed = {}
    with torch.no_grad():
        for gate in gates.weights:
            new = gate.gone(below) & ~gate.removed
            removed[gate.name] = int(new.sum())
            gate.removed |= new
            tensors[gate.name].masked_fill_(gate.removed, 0)
            surgery.forget_momentum(optimizers, tensors[gate.name], gate.removed)
            surgery.forget_momentum(optimizers, gate.logits, gate.removed)
    return {name: number for name, number in removed.items() if number}


def units_to_add(gates: Gates, more: Mapping[str, int]) -> dict[str, int]:
    """Group name -> units to add, in whole sets; groups that gain none are left out.

    Args:
        gates: of the model.
        more: group name -> units asked for.

    Raises:
        ConfigurationError: a group is unknown or cannot grow, or a number is not a whole number >= 0.
    """
    instance("more", more, Mapping, "a dict from group name to number of units")
    wanted = {}
    for name, number in more.items():
        group = gates.group(name)
        whole_number(f"the growth of {group.name!r}", number, 0, "units")
        if not group.grows:
            raise ConfigurationError(f"{group.name!r} {group.fixed}")
        if number:
            wanted[group.name] = -(-number // group.multiple) * group.multiple
    return wanted
