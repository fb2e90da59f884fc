"""Freeze what train and eval mode do not agree on, where a model computes something else in each."""

from bisect import bisect_right
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from npn._utils import cpu
from npn.structure import NOT_PRODUCED, NOT_READ, Group, Key, Structure, freeze, gate_of_entries
from npn.tracing.rehearsal.repair import freeze_fixed_sizes

OTHERS = "its units are other ones"


def agreeing(model: nn.Module, example_inputs: Any, structure: Structure, other: Structure, where: str) -> Structure:
    """Keep the groups that the other mode can resize as well; they are rehearsed there, too.

    Args:
        model: untouched.
        example_inputs: as for `npn.tracing.trace`.
        structure: of one mode, after its rehearsal.
        other: of the other mode, before its rehearsal, with this mode as `training`.
        where: the other mode, in words.
    """
    entries, there = _Entries(other), list[Group]()
    for group in structure.groups:
        partner = entries.partner(group)
        if isinstance(partner, str):
            structure = freeze(structure, [group.name], f"in {where} {partner}")
        elif partner is not None and (group.normed or partner.normed) and structure.norms != other.norms:
            structure = freeze(structure, [group.name], f"in {where} other norms are computed over it")
        elif partner is not None:
            there.append(replace(partner, name=group.name, attributes=group.attributes, multiple=group.multiple))
    rehearsed = freeze_fixed_sizes(model, example_inputs, replace(other, groups=tuple(there)))
    found = {group.name: group for group in rehearsed.groups}
    for group in there:
        if group.name not in found:
            reason = next(entry.reason for entry in reversed(rehearsed.frozen) if group.slots[0].key in entry.slots)
            structure = freeze(structure, [group.name], f"in {where} {reason}")
        elif found[group.name].attributes != group.attributes:
            names = ", ".join(sorted({name for _, name, _ in found[group.name].attributes}))
            structure = freeze(structure, [group.name], f"in {where} it changes only together with {names}")
    multiples = {name: group.multiple for name, group in found.items()}
    groups = (replace(group, multiple=multiples.get(group.name, group.multiple)) for group in structure.groups)
    return replace(structure, groups=tuple(groups))


class _Entries:
    """Which unit of the other mode each entry of the model's tensors belongs to.

    Args:
        other: structure of the other mode.
    """

    def __init__(self, other: Structure) -> None:
        self.other = other
        self._units = gate_of_entries(other, lambda slot: True, none=-1)
        self._first = list(accumulate((group.size for group in other.groups), initial=0))

    def partner(self, group: Group) -> Group | str | None:
        """The same units in the other mode; why they are no group there; None if nothing is computed with them there.

        Args:
            group: of this mode.
        """
        there: Tensor | None = None
        for slot in group.slots:
            numbers = self._units[slot.key][slot.index] if slot.key in self._units else torch.full_like(slot.index, -1)
            if bool((numbers < 0).all()):
                reason = self._reason(slot.key)
                if reason is not None:
                    return reason
            elif not bool((numbers == numbers[:, :1]).all()):
                return OTHERS
            elif there is None:
                there = numbers[:, 0]
            elif not torch.equal(there, numbers[:, 0]):
                return OTHERS
        if there is None:
            return None
        number = bisect_right(self._first, int(there[0])) - 1
        found, first = self.other.groups[number], self._first[number]
        every = cpu.arange(first, first + found.size)
        return found if torch.equal(there.sort().values, every) and _within(found, group) else OTHERS

    def _reason(self, key: Key) -> str | None:
        """Why no units lie along an axis, or along a part of it; None if it takes no part in the other mode."""
        reasons = [entry.reason for entry in self.other.frozen if key in entry.slots]
        told = [reason for reason in reasons if reason not in (NOT_PRODUCED, NOT_READ)]
        return told[0] if told else OTHERS if key in self._units else None


def _within(other: Group, group: Group) -> bool:
    """Whether the units of the other group lie nowhere else, and are read where those of the first are."""
    slots = {slot.key: slot for slot in group.slots}
    return all(
        slot.key in slots and slot.index.shape == slots[slot.key].index.shape and slot.reads == slots[slot.key].reads
        for slot in other.slots
    )
