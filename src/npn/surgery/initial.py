"""New units that learn at once: pairs that cancel, and copies that share the fan-out of the unit that they copy.

Both are a pair of units with the same fan-in, so that their activations are equal: `of` and `to`. They differ in what
their fan-outs are. A pair is possible where the two units lie alike in every tensor that makes them.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from npn._utils import cpu
from npn.errors import ConfigurationError
from npn.structure import NEW, Group, Slot, Structure
from npn.surgery.plan import Plan

Pairs = Mapping[str, tuple[Tensor, Tensor]]  # group -> numbers of the units `of` and `to`, in the resized structure
Values = dict[str, Tensor]  # name -> tensor in the resized shape, changed in place
Finish = Callable[[Values], None]
INITS = ("zero", "pair", "select", "split")
NOISE = 0.5  # of the deviation of the present fan-out: what two units that share a fan-out differ by


def checked_init(init: str) -> str:
    """Return the name of an initialisation of new units.

    Args:
        init: the name.

    Raises:
        ConfigurationError: there is none of this name.
    """
    if init not in INITS:
        raise ConfigurationError(f"init must be one of {', '.join(map(repr, INITS))}, got {init!r}")
    return init


@dataclass(frozen=True)
class Start:
    """What is done to the values of tensors in which new units have random fan-in and zero fan-out.

    Attributes:
        model: for the model; None to leave them so.
        copies: for its copies, whose new entries are those of the model.
        split: group name -> new unit -> the present unit whose fan-out it shares; the same for columns.
    """

    model: Finish | None = None
    copies: Finish | None = None
    split: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    @property
    def held(self) -> dict[str, list[int]]:
        """Group name -> present units that have to stay open with the new ones, for the function to be kept."""
        return {name: sorted({*origins.values()}) for name, origins in self.split.items()}


ZERO = Start()


def start(
    init: str, tensors: Mapping[str, Tensor], plan: Plan, open_units: Tensor, closed: Mapping[str, Sequence[int]]
) -> Start:
    """Choose how the new units of a plan start.

    Args:
        init: one of `INITS`; "zero" and "select" leave the fan-out zero.
        tensors: name -> present tensor of the model.
        plan: of the growth.
        open_units: bool (units of all groups,), which of the present units may be copied.
        closed: name -> numbers of what is closed; of it, only that of columns counts.

    Returns:
        What finishes the new values.
    """
    added = {name: int((source == NEW).sum()) for name, source in plan.units.items()}
    if init == "pair":
        return Start(partial(pair, after=plan.after, pairs=new_pairs(tensors, plan.after, added)))
    if init == "split":
        rounds = copied_units(tensors, plan.before, plan.after, added, open_units)
        shut = _closed_columns(plan, closed)
        finish = partial(_split_all, after=plan.after, rounds=rounds, shut=shut)
        return Start(finish, finish, _origins(plan.after, rounds, shut))
    return ZERO


def _split_all(values: Values, after: Structure, rounds: Sequence[Pairs], shut: Mapping[str, Tensor]) -> None:
    for pairs in rounds:
        split(values, after, pairs, shut)


def _closed_columns(plan: Plan, closed: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Name of columns -> which of them are closed after the resize, bool (columns,); new ones are open."""
    behind = {each.name: plan.units.get(each.name, cpu.arange(each.size)) for each in plan.after.columns}
    return {name: torch.isin(old, cpu.tensor(closed[name], dtype=torch.long)) for name, old in behind.items()}


def _origins(after: Structure, rounds: Sequence[Pairs], shut: Mapping[str, Tensor]) -> dict[str, dict[int, int]]:
    """Name of a group or of columns -> each copy -> what it is a copy of."""
    columns = {each.key: each.name for each in after.columns}
    found: dict[str, dict[int, int]] = {}
    for pairs in rounds:
        copies = [(name, of, to) for name, (of, to) in pairs.items()]
        for group, slot, rank in _reading(after, _paired(pairs), shut):
            if slot.key in columns:
                copies.append((columns[slot.key], *_shared(slot, rank, pairs[group.name])))
        for name, of, to in copies:
            found.setdefault(name, {}).update(zip(to.tolist(), of.tolist(), strict=True))
    return found


def new_pairs(
    tensors: Mapping[str, Tensor], after: Structure, added: Mapping[str, int]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Pair the new units of each group: first and second, third and fourth, and so on; an odd last one has no partner.

    Args:
        tensors: name -> present tensor of the model.
        after: the structure with the new units, which are the last ones of their group.
        added: group name -> number of new units.

    Returns:
        The pairs, without those whose activations could not be made equal, or would stay so for ever.
    """
    pairs = {}
    for group in after.groups:
        new = cpu.arange(group.size - added.get(group.name, 0), group.size)
        of, to = new[: len(new) // 2 * 2].view(-1, 2).unbind(1)
        alike = _alike(tensors, group, of, to, [slot for slot in group.slots if not slot.reads])
        pairs[group.name] = of[alike], to[alike]
    return pairs


def copied_units(
    tensors: Mapping[str, Tensor], before: Structure, after: Structure, added: Mapping[str, int], open_units: Tensor
) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """Choose the unit that each new unit copies: the open units with the largest fan-out, one copy each, then again.

    Args:
        tensors: name -> present tensor of the model.
        before, after: the structure before and after the resize.
        added: group name -> number of new units.
        open_units: bool (units of all groups before,), which of them may be copied.

    Returns:
        Pairs of old and new units, to be split one list entry after the other; in each, a unit occurs once.
    """
    rounds: list[dict[str, tuple[Tensor, Tensor]]] = []
    parts = open_units.cpu().split([group.size for group in before.groups])
    for old, group, may in zip(before.groups, after.groups, parts, strict=True):
        if not added.get(group.name):
            continue
        norm = fan_out(tensors, before, old).norm(dim=1).cpu()
        order = torch.argsort(norm, descending=True, stable=True)
        order = order[may[order]]
        for number, to in enumerate(cpu.arange(old.size, group.size).split(max(len(order), 1))):
            of = order[: len(to)]
            to = to[: len(of)]
            alike = _alike(tensors, group, of, to, group.slots)
            if any(slot.tensor in before.unstructured for slot in group.slots):
                alike[:] = False  # closed single weights of the one are open in the other
            rounds += [{}] if len(rounds) <= number else []
            rounds[number][group.name] = of[alike], to[alike]
    return rounds


def pair(values: Values, after: Structure, pairs: Pairs) -> None:
    """Give two new units the same fan-in V and opposite fan-outs Z and -Z: they cancel, and both ends learn at once.

    With a_1 = a_2 = a(V) the sum Z a_1 - Z a_2 is 0 whatever lies between. The gradients of the fan-ins are opposite,
    so the units part with the first step. Z is drawn from N(0, s^2), s the deviation of the present fan-out. Where the
    entries of the two units in a reading weight have different distances, all entries of a unit have the same Z.

    Args:
        values: name -> tensor at the new size.
        after: the structure at the new sizes.
        pairs: see `new_pairs`.

    References:
        Yuan et al., "Accelerated Training via Incrementally Growing Neural Networks", NeurIPS 2023.
    """
    for group, slot, rank in _reading(after, _paired(pairs)):
        of, to = pairs[group.name]
        value, first = values[slot.tensor], slot.index[of]
        old = slot.index[: int(of.min())].reshape(-1)
        entries = first.shape[1] if bool(_distant_alike(slot, of, to).all()) else 1
        shape = [*value.shape[: slot.axis], len(of), entries, *value.shape[slot.axis + 1 :]]
        noise = torch.randn(shape, dtype=value.dtype, device=value.device) * _deviation(value, slot.axis, rank(old))
        noise = noise.expand([*value.shape[: slot.axis], *first.shape, *value.shape[slot.axis + 1 :]])
        value.index_copy_(slot.axis, rank(first.reshape(-1)).to(value.device), noise.flatten(slot.axis, slot.axis + 1))
    for group, slot, rank in _reading(after, _paired(pairs)):
        of, to = (rank(slot.index[units].reshape(-1)).to(values[slot.tensor].device) for units in pairs[group.name])
        values[slot.tensor].index_copy_(slot.axis, to, -values[slot.tensor].index_select(slot.axis, of))
    _copy_fan_in(values, after, pairs)


def split(values: Values, after: Structure, pairs: Pairs, shut: Mapping[str, Tensor]) -> None:
    """Give a new unit the fan-in of an old one, and share the old one's fan-out W: W / 2 + E and W / 2 - E.

    The sum is W, so the function is kept. The noise E ~ N(0, (`NOISE` s)^2), s the deviation of the fan-out, lets their
    gradients differ in direction; noise on the fan-in would change the function. Shares in proportion to W would
    not do: gradients that differ by a factor only are the same to Adam, and the units never part.

    Args:
        values: name -> tensor at the new size.
        after: the structure at the new sizes.
        pairs: an entry of the result of `copied_units`.
        shut: name of columns -> which of them are closed: they have nothing to share.

    References:
        Chen, Goodfellow and Shlens, "Net2Net", ICLR 2016.
    """
    for group, slot, rank in _reading(after, _paired(pairs), shut):
        value = values[slot.tensor]
        of, to = (index.to(value.device) for index in _shared(slot, rank, pairs[group.name]))
        whole = value.index_select(slot.axis, of)
        old = slot.index[: int(pairs[group.name][1].min())].reshape(-1)
        share = whole / 2 + NOISE * _deviation(value, slot.axis, rank(old)) * torch.randn_like(whole)
        value.index_copy_(slot.axis, of, share)
        value.index_copy_(slot.axis, to, whole - share)
    _copy_fan_in(values, after, pairs)


def fan_out(tensors: Mapping[str, Tensor], structure: Structure, group: Group) -> Tensor:
    """The entries of all weights that read a unit, or of their gradients, as one vector per unit.

    Args:
        tensors: name -> weight, or its gradient.
        structure: with the group.
        group: of the units.

    Returns:
        (units, entries); 0 where a column was removed by its own gate.
    """
    rows = []
    for _, slot, rank in _reading(structure, [group.name]):
        value, where = tensors[slot.tensor], rank(slot.index.reshape(-1))
        taken = value.index_select(slot.axis, where.clamp(min=0).to(value.device)).movedim(slot.axis, 0)
        taken = taken * (where >= 0).to(taken).view(-1, *[1] * (taken.dim() - 1))
        rows.append(taken.reshape(group.size, -1))
    return torch.cat(rows, dim=1)


def _alike(tensors: Mapping[str, Tensor], group: Group, of: Tensor, to: Tensor, slots: Sequence[Slot]) -> Tensor:
    """Which pairs lie alike in these slots, bool (pairs,).

    None do if units come in sets, if weights are not plain, or if nothing that makes the units learns: two units of the
    same frozen fan-in would never part.
    """
    learns = any(tensors[slot.tensor].requires_grad for slot in group.slots if not slot.reads)
    if group.multiple > 1 or not learns or not all(slot.plain for slot in group.slots if slot.reads):
        return cpu.zeros(len(of), dtype=torch.bool)
    return torch.stack([_distant_alike(slot, of, to) for slot in slots]).all(dim=0)


def _distant_alike(slot: Slot, of: Tensor, to: Tensor) -> Tensor:
    """Whether all entries of a pair have the same distance, so that they correspond in order, bool (pairs,)."""
    distance = slot.index[to] - slot.index[of]
    return (distance == distance[:, :1]).all(dim=1)


def _copy_fan_in(values: Values, after: Structure, pairs: Pairs) -> None:
    """Copy what makes the units `of` to the units `to`: rows, biases, normalisation, statistics."""
    for group in after.groups:
        for slot in group.slots if group.name in _paired(pairs) else ():
            if not slot.reads:
                value = values[slot.tensor]
                source, target = (slot.index[units].reshape(-1).to(value.device) for units in pairs[group.name])
                value.index_copy_(slot.axis, target, value.index_select(slot.axis, source))


def _shared(slot: Slot, rank: Callable[[Tensor], Tensor], pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Positions that read the units `of` and `to`; a column that its own gate has closed or removed is left out."""
    of, to = (rank(slot.index[units].reshape(-1)) for units in pair)
    return of[of >= 0], to[of >= 0]


def _reading(
    after: Structure, names: Collection[str], shut: Mapping[str, Tensor] | None = None
) -> list[tuple[Group, Slot, Callable[[Tensor], Tensor]]]:
    """The reading slots of some groups, each with the map from the full axis to what is there, not shut (else -1)."""
    ranks = {}
    for columns in after.columns:
        rank, numbers = cpu.full((after.shapes[columns.tensor][columns.axis],), -1), cpu.arange(columns.size)
        rank[columns.kept] = numbers if shut is None else numbers.masked_fill(shut[columns.name], -1)
        ranks[columns.key] = rank.__getitem__
    return [
        (group, slot, ranks.get(slot.key, _same))
        for group in after.groups
        if group.name in names
        for slot in group.slots
        if slot.reads
    ]


def _paired(pairs: Pairs) -> list[str]:
    """The groups that have pairs."""
    return [name for name, (of, _) in pairs.items() if len(of)]


def _same(index: Tensor) -> Tensor:
    return index


def _deviation(value: Tensor, axis: int, index: Tensor) -> Tensor:
    """Standard deviation of the entries at an index; that of PyTorch's initialisation where they do not vary."""
    present = value.index_select(axis, index[index >= 0].to(value.device))
    deviation = present.std() if present.numel() > 1 else present.new_zeros(())
    fan_in = value.numel() // max(value.shape[0], 1)
    return torch.where(deviation > 0, deviation, 1 / math.sqrt(3 * max(fan_in, 1)))
