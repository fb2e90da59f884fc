"""Axes that the code cuts into equal chunks, so that their units can only come and go at the same place of each."""

from collections.abc import Mapping

import torch

from npn._utils import cpu
from npn.structure import Structure

Chunks = Mapping[tuple[str, int], int]  # (tensor name, axis) -> number of chunks


def equal_chunks(traced: Structure, rehearsed: Structure) -> dict[tuple[str, int], int]:
    """Find axes of which each chunk was a group that could not change by itself.

    `x.chunk(2, 1)` and `x.split(self.width, 1)` cut at places that depend on the size of the axis or on one width for
    all. A unit that goes from one chunk alone moves those places, and one that goes from every chunk does not.

    Args:
        traced: a structure before the dry run.
        rehearsed: the same after it.

    Returns:
        Axis -> number of chunks, in which units at the same place may be one unit.
    """
    left = {group.name for group in rehearsed.groups}
    starts: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for group in (group for group in traced.groups if group.name not in left):
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
