"""Units that can only come and go together: those at the same place of equal chunks, or of layers that share a size."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from npn._utils import cpu
from npn.structure import NOT_PRODUCED, Couplings, Group, Key, Slot, Structure
from npn.tracing.capture.environment import quiet
from npn.tracing.rehearsal.attributes import pattern
from npn.tracing.rehearsal.rehearsal import Rehearsal
from npn.tracing.rehearsal.repair import find_repair

SECONDS = 3.0  # of CPU time, in which layers that share a size are looked for


def find_couplings(model: nn.Module, example_inputs: Any, traced: Structure, rehearsed: Structure) -> Couplings:
    """Find what may be coupled among the groups that the rehearsal has frozen.

    Args:
        model, example_inputs: see `npn.tracing.trace`.
        traced: a structure before the rehearsal.
        rehearsed: the same after it.
    """
    chunks = {place: (place, number) for place, number in equal_chunks(traced, rehearsed).items()}
    return {**shared_sizes(model, example_inputs, traced, rehearsed), **chunks, **recurrent(model, traced)}


def recurrent(model: nn.Module, traced: Structure) -> Couplings:
    """Find recurrent layers of which a single step was seen: their weights read zeros in place of the hidden units.

    Args:
        model, traced: see `find_couplings`.
    """
    unseen = {entry.slots[0] for entry in traced.frozen if entry.reason == NOT_PRODUCED}
    found: dict[Key, tuple[Key, int]] = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.RNNCellBase, nn.RNNBase)) and not getattr(module, "proj_size", 0):
            names = [f"{path}.{n}".lstrip(".") for n, _ in module.named_parameters() if n.startswith("weight_hh")]
            if any((name, 1) in unseen for name in names):
                first = (names[0], 0)
                for name in names:
                    rows, units = traced.shapes[name]
                    found |= {(name, 0): (first, rows // units), (name, 1): (first, 1)}
    return found


def shared_sizes(model: nn.Module, example_inputs: Any, traced: Structure, rehearsed: Structure) -> Couplings:
    """Find groups of one size with which the code runs at other sizes only if all of them change alike.

    One attribute, `self.width`, may hold the size of several layers; or one layer makes zeros of the shape of another's
    scores. All groups of a size are tried together, then those of repeated layers.

    Args:
        model, example_inputs, traced, rehearsed: see `find_couplings`.
    """
    found = dict[Key, tuple[Key, int]]()
    with quiet():
        rehearsal = Rehearsal(model, example_inputs, rehearsed, SECONDS)
        for groups in _of_one_size(_lost(traced, rehearsed)):
            places = _whole_axes(groups, traced)
            if len(groups) < 2 or not places or found.keys() & set(places) or rehearsal.expired:
                continue
            whole = Group(groups[0].name, groups[0].size, tuple(slot for group in groups for slot in group.slots))
            structure = replace(rehearsed, groups=(*rehearsed.groups, whole))
            if find_repair(rehearsal, structure, [whole], rehearsal.run) is not None:
                found |= {place: (places[0], 1) for place in places}
    return found


def _lost(traced: Structure, rehearsed: Structure) -> list[Group]:
    """Groups that the rehearsal has frozen."""
    kept = {group.name for group in rehearsed.groups}
    return [group for group in traced.groups if group.name not in kept]


def _of_one_size(groups: Sequence[Group]) -> list[list[Group]]:
    """All groups of each size, then those of each kind."""
    sizes: dict[Hashable, list[Group]] = {}
    kinds: dict[Hashable, list[Group]] = {}
    for group in groups:
        sizes.setdefault(group.size, []).append(group)
        kinds.setdefault((group.size, pattern(group)), []).append(group)
    return [*sizes.values(), *kinds.values()]


def _whole_axes(groups: Sequence[Group], structure: Structure) -> list[Key]:
    """One axis of each group on which nothing but its units lie, in the same order in all groups; empty without."""
    places = []
    for first in groups[0].slots:
        places = [_like(first, group, structure) for group in groups]
        if None not in places:
            return [place for place in places if place is not None]
    return []


def _like(first: Slot, group: Group, structure: Structure) -> Key | None:
    for slot in group.slots:
        whole = slot.index.numel() == structure.shapes[slot.tensor][slot.axis]
        if whole and not slot.reads and torch.equal(slot.index, first.index):
            return slot.key
    return None


def equal_chunks(traced: Structure, rehearsed: Structure) -> dict[Key, int]:
    """Find axes of which each chunk was a group that could not change by itself.

    `x.chunk(2, 1)` and `x.split(self.width, 1)` cut at places that depend on the size of the axis or on one width for
    all. A unit that goes from one chunk alone moves those places, and one that goes from every chunk does not.

    Args:
        traced: a structure before the rehearsal.
        rehearsed: the same after it.

    Returns:
        Axis -> number of chunks, in which units at the same place may be one unit.
    """
    starts: dict[Key, list[tuple[int, int]]] = {}
    for group in _lost(traced, rehearsed):
        for slot in (slot for slot in group.slots if not slot.reads):
            places = cpu.arange(group.size)[:, None]
            if torch.equal(slot.index, slot.index[:1] + places):  # each entry of the units lies in a chunk of its own
                starts.setdefault(slot.key, []).extend((first, group.size) for first in slot.index[0].tolist())
    return {
        key: len(parts)
        for key, parts in starts.items()
        if len(parts) > 1 and _tile(parts, traced.shapes[key[0]][key[1]])
    }


def _tile(parts: list[tuple[int, int]], length: int) -> bool:
    """Whether the parts are of one size and fill the axis."""
    size = parts[0][1]
    return sorted(parts) == [(start, size) for start in range(0, length, size)]
