"""Rehearse resizes on fake tensors: first whether the code runs at all at other sizes, then a whole re-trace."""

import functools
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from time import process_time
from typing import Any

from torch import nn

from npn.errors import TraceError
from npn.structure import (
    Structure,
    difference,
    match_groups,
    moved,
    other_outputs,
    resized_shapes,
    unmatched,
    without_units,
)
from npn.tracing.capture.known_values import needs_values
from npn.tracing.capture.lines import raising_line
from npn.tracing.rehearsal.retrace import outputs_at, retrace
from npn.tracing.rehearsal.unused import needed, taken_away

_UNFUSE = "; npn.unfuse(model) before attach frees its heads"


@dataclass(frozen=True)
class Problem:
    """A failed rehearsal.

    Attributes:
        reason: in words for the user.
        groups: names of the groups that cause it; empty where that is not known.
    """

    reason: str
    groups: tuple[str, ...] = ()


class Rehearsal:
    """Tries other sizes of a model's groups; the model is as before after each try.

    Args:
        model: to try.
        example_inputs: of its forward pass.
        structure: at the present sizes.
        seconds: of CPU time, after which `expired` holds.

    Attributes:
        repairs: names of the attributes that had to follow, for each kind of group that was repaired.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, structure: Structure, seconds: float) -> None:
        self.model, self.inputs = model, example_inputs
        self.seconds = seconds
        self.repairs: set[frozenset[str]] = set()
        self._end = process_time() + seconds
        self._present = structure
        self._used: dict[str, bool] = {}  # names of integers that have been looked at
        self._traced: dict[tuple[Any, ...], Problem | None] = {}  # what came of a trace, by what it depends on

    @functools.cached_property
    def _runs_on_fakes(self) -> bool:
        """Whether the code runs at the present sizes; else fake tensors do not reach through this model."""
        return self._run(self._present, {}) is None

    @functools.cached_property
    def _runs_on_meta(self) -> bool:
        """Whether the code runs at the present sizes on the meta device."""
        return self._run(self._present, {}, meta=True) is None

    @property
    def expired(self) -> bool:
        """Whether the time is used up."""
        return process_time() > self._end

    def used(self, names: Collection[str]) -> set[str]:
        """Those of some integers of modules that the code computes with at the present sizes; all, if it does not run.

        Args:
            names: see `npn.modules.integers`.
        """
        new = [name for name in dict.fromkeys(names) if name not in self._used]
        if new:
            found = needed(new, self._works_without) if self._runs_on_fakes else set(new)
            self._used |= {name: name in found for name in new}
        return {name for name in names if self._used[name]}

    def _works_without(self, names: list[str]) -> bool:
        if self.expired:
            return False
        with taken_away(self.model, names):
            return self._run(self._present, {}) is None

    def run(self, structure: Structure, names: Sequence[str], quick: bool = False) -> Problem | None:
        """Run the code with fewer, then with more units; the units themselves are not looked at.

        Args:
            structure: at the present sizes.
            names: of the groups that change.
            quick: in a fraction of the time, for one try of many; the reason may be in other words.
        """
        meta = quick and self._runs_on_meta
        if not meta and not self._runs_on_fakes:
            return self.trace(structure, names)
        for change in (_fewer(structure, names), _more(structure, names)):
            problem = self._run(structure, change, meta)
            if problem is not None:
                return problem
        return None

    def run_and_trace(self, structure: Structure, names: Sequence[str], quick: bool = False) -> Problem | None:
        """`run`, and `trace` if that passes.

        Args:
            structure: at the present sizes.
            names: of the groups that change.
            quick: see `run`; most tries of many fail where the code only runs.
        """
        problem = self.run(structure, names, quick)
        ran = (quick and self._runs_on_meta) or self._runs_on_fakes  # else `run` has traced
        return self.trace(structure, names) if problem is None and ran else problem

    def trace(self, structure: Structure, names: Sequence[str]) -> Problem | None:
        """Shrink, then grow the named groups by different amounts, and compare the units with the present ones.

        No two groups grow alike, so nothing passes because two sizes went along. Groups that do not have an axis to
        themselves grow once more, in the opposite order and by much: `x[:, ::2]`, `x[:, : c // 3]` hold for some sizes.

        Args:
            structure: at the present sizes.
            names: of the groups that change.
        """
        groups = {group.name: group for group in structure.groups}
        key = tuple(groups), *((name, groups[name].attributes, groups[name].multiple) for name in names)
        if key not in self._traced:
            self._traced[key] = self._resized(structure, names)
        return self._traced[key]

    def _resized(self, structure: Structure, names: Sequence[str]) -> Problem | None:
        """`trace`, whether or not it was done before."""
        more = _more(structure, names)
        crowded = _crowded(structure, names)
        order = list(crowded)
        turned = {name: more[other] + crowded[name] for name, other in zip(order, reversed(order), strict=True)}
        turned = _in_multiples(structure, turned)
        fewer = _fewer(structure, names)
        try:
            return (
                self._shrinks(structure, fewer)
                or self._grows(structure, more)
                or (self._grows(structure, turned) if crowded else None)
            )
        except TraceError as error:
            return _failure(error)

    def _run(self, structure: Structure, change: Mapping[str, int], meta: bool = False) -> Problem | None:
        try:
            found = outputs_at(self.model, self.inputs, structure, change, meta)
        except Exception as error:
            return _failure(error)
        reason = other_outputs(structure.outputs, found)
        return None if reason is None else Problem(reason)

    def _at(self, structure: Structure, change: Mapping[str, int]) -> Structure | Problem:
        """The re-traced structure with the groups of this one."""
        found = retrace(self.model, self.inputs, structure, change)
        matched = match_groups(structure, found)
        if matched is None:
            return Problem("the units are other ones when the size changes", unmatched(structure, found))
        sizes = {g.name: g.size for g in structure.groups}
        wrong = tuple(g.name for g in matched.groups if g.size != sizes[g.name] + change.get(g.name, 0))
        if wrong:
            return Problem("the number of units does not follow the size", wrong)
        return matched

    def _shrinks(self, structure: Structure, change: Mapping[str, int]) -> Problem | None:
        smaller = self._at(structure, change)
        if isinstance(smaller, Problem):
            return smaller
        if _in_sets(structure, change):  # positions come from a re-trace at each resize
            return _differs(replace(structure, shapes=smaller.shapes), smaller, placement=False)
        sizes = {g.name: g.size for g in structure.groups}
        for choice in (_first, _middle, _last):  # the units are alike: it makes no difference which are removed
            removed = {name: choice(sizes[name], -count) for name, count in change.items()}
            problem = _differs(without_units(structure, removed), smaller)
            if problem:
                return problem
        return None

    def _grows(self, structure: Structure, more: Mapping[str, int]) -> Problem | None:
        larger = self._at(structure, more)
        if isinstance(larger, Problem):
            return larger
        if dict(larger.shapes) != resized_shapes(structure, more):
            return Problem("the units are other ones when the size changes")
        if _in_sets(structure, more):
            return _differs(replace(structure, shapes=larger.shapes), larger, placement=False)
        sizes = {g.name: g.size for g in structure.groups}
        back = without_units(larger, {name: range(sizes[name], sizes[name] + count) for name, count in more.items()})
        return _differs(structure, back)


def _differs(expected: Structure, found: Structure, placement: bool = True) -> Problem | None:
    reason = difference(expected, found, placement=placement)
    return None if reason is None else Problem(reason, moved(expected, found) if placement else ())


def _in_sets(structure: Structure, change: Mapping[str, int]) -> bool:
    """Whether a group changes whose units come and go in sets."""
    return any(group.multiple > 1 and group.name in change for group in structure.groups)


def _failure(error: Exception) -> Problem:
    cause = error.__cause__ if isinstance(error, TraceError) else error
    if cause is None:
        return Problem(f"the code fixes this size: {error}")
    if isinstance(cause, Exception) and needs_values(cause) and cause.__cause__ is not None:  # with half of the rows
        cause = cause.__cause__
    line = raising_line(cause)
    reason = f"the code fixes this size at {line}: {str(cause).strip() or type(cause).__name__}"
    return Problem(reason + _UNFUSE if "multi_head_attention_forward" in line else reason)


def _fewer(structure: Structure, names: Sequence[str]) -> dict[str, int]:
    """Change of each group that can lose units and still has more than one."""
    sizes = {g.name: g.size for g in structure.groups}
    multiples = {g.name: g.multiple for g in structure.groups}
    fewer = {}
    for i, name in enumerate(names):
        each, sets = multiples[name], sizes[name] // multiples[name]
        if sets > 2 or (sets == 2 and each > 1):  # odd for even: what looks at parity is found
            fewer[name] = -each * (1 if sets <= 3 or i % 2 == 0 else 2)
    return fewer


def _more(structure: Structure, names: Sequence[str]) -> dict[str, int]:
    """Change of each group; groups that `_fewer` leaves as they are get an odd number of units or sets."""
    fewer, odd = _fewer(structure, names), itertools.count((len(names) + 2) | 1, 2)  # beyond the others' 2, 3, 4, ...
    return _in_multiples(structure, {name: 2 + i if name in fewer else next(odd) for i, name in enumerate(names)})


def _in_multiples(structure: Structure, more: Mapping[str, int]) -> dict[str, int]:
    multiples = {g.name: g.multiple for g in structure.groups}
    return {name: count * multiples[name] for name, count in more.items()}


def _crowded(structure: Structure, names: Sequence[str]) -> dict[str, int]:
    """Groups on an axis that they share with others, and how many of their units would fill it."""
    found: dict[str, int] = {}
    for group in structure.groups:
        for slot in group.slots:
            length = structure.shapes[slot.tensor][slot.axis]
            if group.name in names and slot.index.numel() < length:
                found[group.name] = max(found.get(group.name, 0), length // slot.index.shape[1])
    return found


def _first(size: int, count: int) -> list[int]:
    return list(range(count))


def _middle(size: int, count: int) -> list[int]:
    return [size // 2 + i for i in range(count)]


def _last(size: int, count: int) -> list[int]:
    return list(range(size - count, size))
