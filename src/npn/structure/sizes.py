"""Structures at other sizes: their shapes, the structure without some units, and comparisons of structures."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from npn._utils import cpu
from npn.structure.structure import Structure, gate_of_entries
from npn.structure.units import Group, Key, Slot, remaining


def resized_shapes(structure: Structure, change: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Compute the shapes of all tensors after groups change their size.

    Args:
        structure: the present structure.
        change: group name -> units added (negative: removed).

    Returns:
        Tensor name -> shape.
    """
    shapes = {name: list(shape) for name, shape in structure.shapes.items()}
    for group in structure.groups:
        for slot in group.slots:
            shapes[slot.tensor][slot.axis] += change.get(group.name, 0) * slot.index.shape[1]
    return {name: tuple(shape) for name, shape in shapes.items()}


def without_units(structure: Structure, removed: Mapping[str, Sequence[int]]) -> Structure:
    """Remove units from a structure; the remaining units move up along every axis.

    Args:
        structure: the present structure.
        removed: group name -> numbers of the units to remove.

    Returns:
        The structure with the remaining units.
    """
    gone: dict[Key, list[Tensor]] = {}
    numbers = {group.name: cpu.tensor([*removed.get(group.name, ())], dtype=torch.int64) for group in structure.groups}
    for group in structure.groups:
        for slot in group.slots:
            gone.setdefault(slot.key, []).append(slot.index[numbers[group.name]].reshape(-1))
    new_position = {}
    shapes = {name: list(shape) for name, shape in structure.shapes.items()}
    for key, pieces in gone.items():
        keep = remaining(structure.shapes[key[0]][key[1]], torch.cat(pieces))
        new_position[key] = keep.cumsum(0) - 1
        shapes[key[0]][key[1]] = int(keep.sum())
    groups = []
    for group in structure.groups:
        stay = remaining(group.size, numbers[group.name]).nonzero().reshape(-1)
        slots = tuple(replace(slot, index=new_position[slot.key][slot.index[stay]]) for slot in group.slots)
        groups.append(replace(group, size=len(stay), slots=slots))
    return replace(structure, groups=tuple(groups), shapes={n: tuple(s) for n, s in shapes.items()})


def difference(expected: Structure, found: Structure, *, placement: bool = True) -> str | None:
    """Explain why two structures are not the same computation on the same units.

    Args:
        expected: the structure to compare with.
        found: the other structure.
        placement: compare where the units are, too.

    Returns:
        The reason; None if they are the same.
    """
    if reason := other_outputs(expected.outputs, found.outputs):
        return reason
    if reason := other_ops(expected.fingerprint, found.fingerprint):
        return reason
    if dict(expected.shapes) != dict(found.shapes):
        return "the shapes differ"
    if expected.norms != found.norms:
        return "its norms are computed over other axes when the size changes"
    if not placement:
        return None
    ours, theirs = _placement(expected), _placement(found)
    if len(np.unique(np.stack([ours, theirs]), axis=1).T) != len(np.unique(ours)) or not np.array_equal(
        ours < 0, theirs < 0
    ):
        return "units move to other places when the size changes"
    if len(np.unique(ours)) != len(np.unique(theirs)):
        return "units join when the size changes"
    return None


def other_ops(expected: Sequence[str], found: Sequence[str]) -> str | None:
    """Say which op is another one at another size; None if all are the same.

    Args:
        expected, found: ops in order, see `Structure.fingerprint`.
    """
    for a, b in zip(expected, found, strict=False):
        if a != b:
            (before, _, where), (after, _, there) = a.rpartition(" at "), b.rpartition(" at ")
            place = where if where == there else f"{where} and {there}"
            return f"the computation depends on the size: {before} becomes {after} at {place}"
    same = len(expected) == len(found)
    return None if same else "the computation depends on the size: the number of operations changes"


def other_outputs(expected: tuple[tuple[int, ...], ...], found: tuple[tuple[int, ...], ...]) -> str | None:
    """Say that the shapes of a model's outputs are other ones; None if they are the same.

    Args:
        expected, found: shapes of all outputs.
    """
    return None if expected == found else f"the output's shape changes from {list(expected)} to {list(found)}"


def moved(expected: Structure, found: Structure) -> tuple[str, ...]:
    """Names of the groups whose units are in other places in the second structure; none where shapes differ.

    Args:
        expected, found: structures with the same groups.
    """
    if dict(expected.shapes) != dict(found.shapes):
        return ()
    theirs = {group.name: group for group in found.groups}
    names = []
    for group in expected.groups:
        other = {slot.key: slot.index for slot in theirs[group.name].slots} if group.name in theirs else {}
        orders = {
            tuple(_rank(slot.index).tolist()) + tuple(_rank(other[slot.key]).tolist())
            for slot in group.slots
            if slot.key in other and other[slot.key].shape == slot.index.shape
        }
        same = all(
            slot.key in other and torch.equal(slot.index.sort(0).values, other[slot.key].sort(0).values)
            for slot in group.slots
        )
        if not same or len(orders) > 1:
            names.append(group.name)
    return tuple(names)


def _rank(index: Tensor) -> Tensor:
    return index[:, 0].argsort() if index.numel() else index.reshape(-1)


def _placement(structure: Structure) -> np.ndarray:
    """Number of the unit at every position of every axis of every tensor, -1 where there is none."""
    found = gate_of_entries(structure, lambda slot: True, none=-1)
    pieces = [
        found[name, axis].numpy() if (name, axis) in found else np.full(size, -1, dtype=np.int64)
        for name, shape in sorted(structure.shapes.items())
        for axis, size in enumerate(shape)
    ]
    return np.concatenate([*pieces, np.zeros(0, dtype=np.int64)])


def match_groups(structure: Structure, found: Structure) -> Structure | None:
    """Give the groups of one structure the names, order and attributes of another's, matched by the slots they occupy.

    Args:
        structure: source of names, attributes, frozen dimensions, columns and branches.
        found: source of sizes, positions and shapes.

    Returns:
        The combined structure; None if a group of `structure` has no counterpart in `found`.
    """
    by_slots: dict[frozenset[tuple[str, int, int]], list[Group]] = {}
    for group in found.groups:
        by_slots.setdefault(frozenset(_signature(group)), []).append(group)
    groups: list[Group] = []
    for group in structure.groups:
        alike = by_slots.get(frozenset(_signature(group)))
        if not alike:
            return None
        other = alike.pop(0)  # in order of appearance
        slots = {slot.key: slot for slot in other.slots}
        ordered: tuple[Slot, ...] = tuple(slots[slot.key] for slot in group.slots)
        groups.append(replace(group, size=other.size, slots=ordered))
    found = replace(found, columns=structure.columns, branches=structure.branches, unstructured=structure.unstructured)
    return replace(found, groups=tuple(groups), frozen=structure.frozen)


def _signature(group: Group) -> list[tuple[str, int, int]]:
    """Tensor, axis and entries per unit of every slot of a group."""
    return [(slot.tensor, slot.axis, slot.index.shape[1]) for slot in group.slots]


def unmatched(structure: Structure, found: Structure) -> tuple[str, ...]:
    """Names of the groups that occupy other slots in the second structure, or have no counterpart there.

    Args:
        structure: with the names.
        found: another trace of the same model.
    """
    left = [frozenset(_signature(group)) for group in found.groups]
    names = []
    for group in structure.groups:
        signature = frozenset(_signature(group))
        if signature in left:
            left.remove(signature)
        else:
            names.append(group.name)
    return tuple(names)
