"""Whether an op treats all units alike: an element has a unit, which labels say, and a place inside of the unit.

Most ops move units along their own axis, so that the other axes are the places. Where units and places share an axis,
as in a flattened map, a slice with a step can pick another place of each unit, as a diagonal does. Labels alone do not
show that, since the diagonal of a smaller map looks the same.
"""

from collections.abc import Callable, Sequence, Set

import numpy as np
import torch
from torch import Tensor

from npn._utils import cpu
from npn.tracing.labels.parts import canonical, squeeze_constant, varying

Owners = Callable[[np.ndarray], np.ndarray]


def moved_alike(labels: Tensor, move: Callable[[Tensor], list[Tensor]], owners: Owners, whole: bool = False) -> bool:
    """Whether an op moves the same places of all units that belong to one axis of a parameter.

    Places are counted in memory order. Units of which the op takes nothing are left out.

    Args:
        labels: of the operand.
        move: the op, applied to a tensor like the operand; 0 stands for what it does not take from the operand.
        owners: owner of each label, see `Ledger.owners`.
        whole: axes along which the labels are constant matter, too.
    """
    small = squeeze_constant(labels)
    if not whole and regular(small):
        return True
    base = labels if whole else small
    index = cpu.arange(1, base.numel() + 1).view(base.shape).expand(labels.shape)
    flat = base.reshape(-1).numpy()
    rank, times = _ranks(flat), np.bincount(flat)[flat]
    for out in move(index):
        source = squeeze_constant(canonical(out)).reshape(-1).numpy()
        source = source[source > 0] - 1
        if not _alike(flat[source], rank[source], times[source], owners):
            return False
    return True


def repeats(shape: Sequence[int], loose: Set[int], move: Callable[[Tensor], list[Tensor]]) -> list[frozenset[int]]:
    """Axes of the results of an op along which it, or an op before it, repeats one entry of its operand.

    Args:
        shape: of the operand.
        loose: such axes of the operand.
        move: the op, applied to a tensor like the operand.
    """
    found = [canonical(out) for out in move(numbered(shape, loose))]
    return [frozenset(a for a, n in enumerate(out.shape) if n > 1 and a not in varying(out)) for out in found]


def repetitions(entries: Tensor, axis: int) -> int:
    """How often each entry stands along an axis.

    Args:
        entries: their numbers, such as labels.
        axis: the axis.
    """
    lines = squeeze_constant(entries, {axis}).movedim(axis, 0).reshape(entries.shape[axis], -1)
    return len(lines) // max(len(torch.unique(lines, dim=0)), 1)


def numbered(shape: Sequence[int], loose: Set[int]) -> Tensor:
    """The number of each entry of a tensor, the same one where it is repeated.

    Args:
        shape: of the tensor.
        loose: axes along which it repeats one entry.
    """
    once = [1 if axis in loose else size for axis, size in enumerate(shape)]
    return cpu.arange(1, int(np.prod(once)) + 1).view(once).expand(tuple(shape))


def _ranks(flat: np.ndarray) -> np.ndarray:
    """How many times the label at each position came before."""
    order = _sorting(flat)
    first, counts = _runs(flat[order])
    rank = np.empty_like(order)
    rank[order] = np.arange(len(flat)) - np.repeat(first, counts)
    return rank


def _sorting(labels: np.ndarray) -> np.ndarray:
    """The order that sorts labels; equal ones stay as they are. Sorting short integers is several times as fast."""
    there = labels[labels > 0]
    low = there.min() if len(there) else 0
    if len(there) and there.max() - low < 2**16 - 1:
        labels = np.where(labels > 0, labels - low + 1, 0).astype(np.uint16)
    return np.argsort(labels, kind="stable")


def _runs(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First place and length of each run of equal numbers."""
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
    return first, np.diff(np.append(first, len(ordered)))


def _alike(labels: np.ndarray, ranks: np.ndarray, times: np.ndarray, owners: Owners) -> bool:
    """Whether the sequence of ranks is the same for all labels of an owner that stood there as many times.

    Labels stand there more often than others where several entries are one unit already, as features of a head may be.
    """
    order = _sorting(labels)
    order = order[labels[order] > 0]
    labels, ranks, times = labels[order], ranks[order], times[order]
    first, counts = _runs(labels)
    kinds = np.stack([owners(labels[first]), times[first]], 1)
    for kind in np.unique(kinds, axis=0):
        mine = (kinds == kind).all(1)
        if len(np.unique(counts[mine])) > 1:
            return False
        lines = ranks[np.repeat(mine, counts)].reshape(int(mine.sum()), -1)
        if bool((lines != lines[0]).any()):
            return False
    return True


def regular(labels: Tensor) -> bool:
    """Whether each label stands once along the axes that tell labels apart, so that all other axes are its places.

    Args:
        labels: squeezed; they may be 0 at some places, if those are the same ones of all units.
    """
    line, holes = labels, False
    if bool((labels == 0).any()):
        for axis in sorted(varying(labels)):
            most = line.amax(axis, keepdim=True)
            if bool(((line == most) | (line == 0)).all()):
                line, holes = most, True
    flat = line.reshape(-1)
    flat = flat[flat > 0]
    if len(torch.unique(flat)) < len(flat):
        return False
    if not holes:
        return True
    axes = [a for a in range(line.dim()) if line.shape[a] > 1]
    there = (labels > 0).amax(axes, keepdim=True) if axes else labels > 0
    return bool(((labels > 0) == (there & (line > 0))).all())


def aligned(labels: Tensor, places: set[int], owners: Owners) -> bool:
    """Whether the places of all units stand in the same order along some axes, where an op tells them apart.

    Args:
        labels: in canonical form.
        places: the axes.
        owners: owner of each label.
    """
    axes = varying(labels)
    along = sorted(axes & places)
    if not along or axes <= places:
        return True
    small = squeeze_constant(labels)
    if bool((small > 0).all()) and regular(small):
        return True
    across = [a for a in range(small.dim()) if a not in along]
    table = small.permute(*along, *across).reshape(-1, int(np.prod([small.shape[a] for a in across]))).numpy()
    owner = np.where(table > 0, owners(table.reshape(-1)).reshape(table.shape) + 1, 0)
    rank = _ranks(small.reshape(-1).numpy()).reshape(small.shape)
    rank = torch.from_numpy(rank).permute(*along, *across).reshape(table.shape).numpy()
    width = table.shape[1]
    _, inverse, counts = np.unique(table * width + np.arange(width), return_inverse=True, return_counts=True)
    times = counts[inverse.reshape(-1)].reshape(table.shape)  # how often a label stands in its column
    first = (table > 0).argmax(0)
    place, inside = rank // times, np.where(table > 0, rank % times, 0)
    step = np.where(table > 0, place - np.take_along_axis(place, first[None], 0), 0)
    kind = np.take_along_axis(owner, first[None], 0)[0]
    for one in np.unique(kind[kind > 0]):
        mine = kind == one
        if any(bool((values[:, mine] != values[:, mine][:, :1]).any()) for values in (owner, step, inside)):
            return False
    return True


def restrided(
    tensor: Tensor, like: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None = None
) -> Tensor | None:
    """`as_strided` of a tensor laid out in memory like another; None where it leaves the elements of the tensor."""
    start = 0 if offset is None else offset - like.storage_offset()
    for axis, step in enumerate(like.stride()):
        tensor = tensor.narrow(axis, 0, 1) if step == 0 and tensor.shape[axis] > 1 else tensor
    extent = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, like.stride(), strict=True))
    last = start + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if tensor.numel() == 0 or start < 0 or last >= extent:
        return None
    memory, known = cpu.zeros(extent, dtype=tensor.dtype), cpu.zeros(extent, dtype=torch.bool)
    memory.as_strided(tensor.shape, like.stride()).copy_(tensor)
    known.as_strided(tensor.shape, like.stride()).fill_(True)
    found = memory.as_strided(tuple(size), tuple(stride), start)
    return found if bool(known.as_strided(tuple(size), tuple(stride), start).all()) else None
