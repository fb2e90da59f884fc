"""Rehearse every resize on fake tensors: dimensions that the code hard-codes are frozen, with the line that does."""

import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from torch import nn

from npn.structure import Attribute, Group, Key, Structure, freeze
from npn.tracing.capture.environment import quiet
from npn.tracing.rehearsal.attributes import Trial, Trials, divisors, known, pattern, transfer, trials
from npn.tracing.rehearsal.rehearsal import Problem, Rehearsal

SECONDS = 60.0  # of rehearsals; what is left then is frozen

Check = Callable[[Structure, Sequence[str], bool], Problem | None]  # `Rehearsal.run` or `Rehearsal.run_and_trace`


def freeze_fixed_sizes(
    model: nn.Module, example_inputs: Any, structure: Structure, seconds: float = SECONDS
) -> Structure:
    """Rehearse the resize of every group, and freeze those that fail.

    All groups are shrunk and grown at once. Only where that fails are kinds of repeated layers tried by themselves,
    first by running the code on fake tensors, then by re-tracing. Where a failure goes away when an integer attribute
    of a module follows the size (`num_heads`, `groups`, `hidden_size`), that attribute is part of the group. Where it
    goes away when units come and go in sets of m, the group has `multiple = m`. Else the group is frozen.

    Args:
        model: untouched.
        example_inputs: as for `trace`.
        structure: groups as traced at the present sizes.
        seconds: after which groups that have not passed are frozen.
    """
    with quiet():
        rehearsal = Rehearsal(model, example_inputs, structure, seconds)
        return _separate(rehearsal, _passing(rehearsal, structure))


def _passing(rehearsal: Rehearsal, structure: Structure) -> Structure:
    problem = rehearsal.trace(structure, _names(structure))
    if problem is None:
        return structure
    guesses = {g.name: known(rehearsal.model, structure, g) for g in structure.groups}
    if any(guesses.values()):
        structure = _with(structure, guesses)
        problem = rehearsal.trace(structure, _names(structure))
        if problem is None:
            return structure
    structure, ran = _running(rehearsal, structure)
    while structure.groups:
        problem = rehearsal.trace(structure, _names(structure))
        if problem is None:
            break
        helped = None if rehearsal.expired else _as_others(rehearsal, structure, problem)
        structure = helped or _narrow(rehearsal, structure, problem, ran)
    return structure


def _running(rehearsal: Rehearsal, structure: Structure) -> tuple[Structure, set[str]]:
    """Repair or freeze, kind by kind, what the code does not run with at other sizes.

    Most kinds pass, and are found by halves: several at once, until one that fails is alone.

    Returns:
        The structure; and the names of the groups with which the code runs, until the time was over.
    """
    ran, left = set[str](), [_kinds(structure)]
    while left and not rehearsal.expired:
        kinds = left.pop()
        names = [group.name for kind in kinds for group in kind]
        if names and rehearsal.run(structure, names, quick=True) is not None:
            if len(kinds) > 1:
                half = len(kinds) // 2
                left += [kinds[half:], kinds[:half]]
                continue
            structure = _repair(rehearsal, structure, kinds[0], rehearsal.run)
        ran.update(names)
    return structure, ran


def _narrow(rehearsal: Rehearsal, structure: Structure, problem: Problem, ran: Set[str]) -> Structure:
    """Repair or freeze at least one group of a structure that runs at other sizes, but computes something else there.

    Once the time is over, groups that have not run at other sizes are frozen; if that is not enough, all are.
    """
    if rehearsal.expired:
        limit = f"its rehearsal was not over after {rehearsal.seconds:g} s, and failed until then: {problem.reason}"
        late = [name for name in _names(structure) if name not in ran or name in problem.groups]
        return freeze(structure, late or _names(structure), limit)
    kinds = _kinds(structure)
    suspects = [kind for kind in kinds if any(g.name in problem.groups for g in kind)]
    changed = _each_alone(rehearsal, structure, suspects)
    if changed is None and len(suspects) != 1:
        suspects = [_failing_kind(rehearsal, structure, suspects or kinds)]
        changed = _each_alone(rehearsal, structure, suspects)
    if changed is not None or rehearsal.expired:
        return changed or structure
    return freeze(
        structure, [g.name for g in suspects[0]], f"it can only change together with others: {problem.reason}"
    )


def _each_alone(rehearsal: Rehearsal, structure: Structure, kinds: Sequence[list[Group]]) -> Structure | None:
    """The structure in which kinds that fail alone are frozen, up to the first that is repaired: it may help others.

    Returns:
        None where each of them passes alone.
    """
    before = structure
    for kind in kinds:
        names = [g.name for g in kind]
        alone = None if rehearsal.expired else rehearsal.trace(structure, names)
        if alone is None:
            continue
        repaired = _repair(rehearsal, structure, kind, rehearsal.run_and_trace)
        if repaired == structure:
            structure = freeze(structure, names, alone.reason)
        else:
            structure = repaired
            if set(names) <= set(_names(repaired)):
                break
    return None if structure is before else structure


def _as_others(rehearsal: Rehearsal, structure: Structure, problem: Problem) -> Structure | None:
    """The structure in which attributes that have helped other groups follow those that fail; None if that helps none.

    A model has the same layers in many places, and one trace sees which of them pass so.
    """
    guesses = dict[str, Trial]()
    for group in structure.groups:
        if group.name in problem.groups:
            may_follow = trials(rehearsal.model, structure, group)
            likely = _likely(rehearsal, may_follow)
            if likely and likely[0] != group.attributes:
                guesses[group.name] = likely[0]
    if not guesses:
        return None
    left = rehearsal.trace(_with(structure, guesses), _names(structure))
    if left is not None and not left.groups:
        return None
    helping = {name: trial for name, trial in guesses.items() if left is None or name not in left.groups}
    return _with(structure, helping) if helping else None


def _failing_kind(rehearsal: Rehearsal, structure: Structure, kinds: Sequence[list[Group]]) -> list[Group]:
    """The first kind of group that fails, by bisection; the last one where each half passes."""
    while len(kinds) > 1 and not rehearsal.expired:
        half = kinds[: len(kinds) // 2]
        failed = rehearsal.trace(structure, [g.name for kind in half for g in kind]) is not None
        kinds = half if failed else kinds[len(kinds) // 2 :]
    return kinds[-1]


def _repair(rehearsal: Rehearsal, structure: Structure, kind: Sequence[Group], check: Check) -> Structure:
    """Give all groups of a failing kind the attributes or the multiple that they need, and freeze those that fail.

    Args:
        rehearsal: of the model.
        structure: with the kind.
        kind: groups of repeated layers.
        check: `rehearsal.run` or `rehearsal.run_and_trace`.
    """
    repaired = find_repair(rehearsal, structure, kind, check)
    if repaired is not None and check(repaired, [g.name for g in kind], False) is None:
        return repaired
    repaired = structure if repaired is None else repaired
    failing: dict[str, str] = {}
    for group in kind:
        problem = check(repaired, [group.name], False)
        if problem is not None:
            failing[group.name] = problem.reason
        if rehearsal.expired or (len(failing) == 3 and len({re.sub("[0-9]+", "#", r) for r in failing.values()}) == 1):
            reason = next(iter(failing.values()), "its rehearsal took too long")  # three stand for a stack of layers
            failing = {g.name: failing.get(g.name, reason) for g in kind}
            break
    for name, reason in failing.items():
        repaired = freeze(repaired, [name], reason)
    return repaired


def find_repair(rehearsal: Rehearsal, structure: Structure, kind: Sequence[Group], check: Check) -> Structure | None:
    """The structure with the first attributes, or the first multiple, with which the first of the kind passes.

    A multiple is tried with the attributes that follow by type of layer, then with all that may follow. Integers in
    objects and dicts come last: a config has many of them.

    Args:
        rehearsal, structure, kind, check: see `_repair`.
    """
    first = kind[0]
    may_follow = trials(rehearsal.model, structure, first)

    def problem(trial: Trial, multiple: int = 1) -> Problem | None:
        return check(_with(structure, {first.name: trial}, multiple), [first.name], True)

    tried = dict[Trial, str | None]()
    following, multiple = fitting_attributes(rehearsal, may_follow, problem, tried), 1
    if following is None:
        for multiple in divisors(rehearsal.model, structure, kind):

            def passes(trial: Trial, multiple: int = multiple) -> bool:
                return problem(trial, multiple) is None

            following = _first(rehearsal, may_follow.by_name()[:2], passes)
            if following is not None:
                following = _fewest_names(following, may_follow.base, passes)
                break
    if following is None:
        more, multiple = _used(rehearsal, trials(rehearsal.model, structure, first, held=True)), 1
        following = fitting_attributes(rehearsal, more, problem, tried) if more != may_follow else None
    if following is None:
        return None
    return _with(structure, {group.name: transfer(structure, first, group, following) for group in kind}, multiple)


def fitting_attributes(
    rehearsal: Rehearsal,
    may_follow: Trials,
    problem: Callable[[Trial], Problem | None],
    reasons: dict[Trial, str | None] | None = None,
) -> Trial | None:
    """The first attributes with which a group passes, less those without which it passes, too.

    Those that have helped other groups come first. Names that leave the failure as it is, to the letter, are not
    combined with each other.

    Args:
        rehearsal: of the model.
        may_follow: the attributes.
        problem: what fails with some of them.
        reasons: of failures that are known, or None where there was none; added to.
    """
    reasons = {} if reasons is None else reasons

    def passes(trial: Trial) -> bool:
        if trial not in reasons:
            found = problem(trial)
            reasons[trial] = None if found is None else found.reason
        return reasons[trial] is None

    base = may_follow.base
    passes(base)  # what fails without any
    found = _first(rehearsal, [*filter(None, [base]), *_likely(rehearsal, may_follow)], passes)
    if found is None:
        may_follow = _used(rehearsal, may_follow)
        by_name = may_follow.by_name()[1:]
        found = _first(rehearsal, by_name, passes)
    if found is None:
        each = [trial for trial in by_name if len(_attribute_names(trial) - _attribute_names(base)) == 1]
        moved = {entry for t in each if reasons.get(t) != reasons[base] for entry in t if entry not in base}
        found = _first(rehearsal, may_follow.combined(moved), passes)
    if found is None:
        return None
    found = _fewest_names(found, base, passes)
    nearest = may_follow.nearest(found)
    found = nearest if passes(nearest) else found
    rehearsal.repairs.add(_attribute_names(found))
    return found


def _likely(rehearsal: Rehearsal, may_follow: Trials) -> list[Trial]:
    """Those with the names that have helped other groups."""
    every = [*may_follow.by_name()[1:], *may_follow.combined(set(may_follow.options))]
    return [trial for trial in every if _attribute_names(trial) in rehearsal.repairs]


def _used(rehearsal: Rehearsal, may_follow: Trials) -> Trials:
    """Those that the code computes with."""
    names = {name for _, name, _ in may_follow.options}
    return may_follow.without(names - rehearsal.used(names))


def _fewest_names(found: Trial, base: Trial, passes: Callable[[Trial], bool]) -> Trial:
    """The trial without the names that it does not need, but for those that follow by type of layer."""
    for name in dict.fromkeys(entry[1] for entry in found if entry not in base):
        smaller = tuple(entry for entry in found if entry[1] != name or entry in base)
        if smaller and passes(smaller):
            found = smaller
    return found


def _first(rehearsal: Rehearsal, trials: Sequence[Trial], passes: Callable[[Trial], bool]) -> Trial | None:
    """The first that passes, while there is time."""
    return next((trial for trial in trials if not rehearsal.expired and passes(trial)), None)


def _attribute_names(trial: Trial) -> frozenset[str]:
    return frozenset(name for _, name, _ in trial)


def _names(structure: Structure) -> list[str]:
    return [group.name for group in structure.groups]


def _kinds(structure: Structure) -> list[list[Group]]:
    """Groups by the pattern of their slots: repeated layers are of one kind, parts of one axis are not."""
    kinds: dict[tuple[tuple[str, ...], int], list[Group]] = {}
    parts: dict[Key, int] = {}
    for group in structure.groups:
        made = [slot.key for slot in group.slots if not slot.reads]
        number = max((parts.get(key, 0) for key in made), default=0)
        parts.update((key, number + 1) for key in made)
        kinds.setdefault((pattern(group), number), []).append(group)
    return list(kinds.values())


def _with(structure: Structure, attributes: Mapping[str, Sequence[Attribute]], multiple: int = 1) -> Structure:
    """The structure in which these attributes follow the groups of these names, which change in multiples."""
    groups = [  # a kernel may have a multiple of its own
        replace(g, attributes=tuple(attributes[g.name]), multiple=math.lcm(g.multiple, multiple))
        if g.name in attributes
        else g
        for g in structure.groups
    ]
    return replace(structure, groups=tuple(groups))


def _separate(rehearsal: Rehearsal, structure: Structure) -> Structure:
    """Let no group follow an attribute that several share; freeze them where that fails: they only change together."""
    shared = {key: groups for key, groups in _owners(structure).items() if len(groups) > 1}
    if not shared:
        return structure
    own = {group.name: [e for e in group.attributes if e[:2] not in shared] for group in structure.groups}
    apart = _with(structure, own)
    if rehearsal.trace(apart, _names(apart)) is None:
        return apart
    for (path, name), groups in shared.items():
        present = [group for group in groups if group in _names(structure)]
        reason = f"it shares the attribute {name} of {path or 'the model'} with {len(groups) - 1} other group(s)"
        structure = freeze(structure, present, reason)
    return structure


def _owners(structure: Structure) -> dict[tuple[str, str], list[str]]:
    """Attributes by (module path, name), and the groups that they follow."""
    owners: dict[tuple[str, str], list[str]] = {}
    for group in structure.groups:
        for path, name, _ in group.attributes:
            owners.setdefault((path, name), []).append(group.name)
    return owners
