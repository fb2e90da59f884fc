"""Which attributes are tried to follow a group, and how many tries that takes."""

from types import SimpleNamespace

from npn.tracing.rehearsal.attributes import Trials
from npn.tracing.rehearsal.rehearsal import Problem
from npn.tracing.rehearsal.repair import fitting_attributes

ENTRIES = tuple(("block", name, 1) for name in ("heads", "width", "inner", "states", "levels"))


TRIALS = Trials(base=(), options=ENTRIES, made=frozenset())


def search(needed, reason):
    """The attributes found, and the tries that it took; `needed` have to follow, and no others."""
    tried = []

    def problem(trial):
        tried.append(trial)
        names = {name for _, name, _ in trial}
        return None if names == needed else Problem(reason(names))

    rehearsal = SimpleNamespace(repairs=set(), expired=False, used=set)  # the code reads every name
    return fitting_attributes(rehearsal, TRIALS, problem), tried


def test_names_that_change_nothing_are_not_combined():
    found, tried = search({"elsewhere"}, lambda names: "split_with_sizes expects 12, got 8")
    assert found is None
    assert len(tried) == 1 + 1 + len(ENTRIES), "none, all, and each"


def test_a_name_is_combined_with_those_that_matter_only_later():
    found, tried = search({"heads", "width"}, lambda names: "view" if "heads" in names else "split")
    assert found == ENTRIES[:2]
    assert all(ENTRIES[0] in trial for trial in tried[2 + len(ENTRIES) :])


def test_what_helped_before_is_tried_first():
    rehearsal = SimpleNamespace(repairs={frozenset({"inner", "states"})}, expired=False, used=set)
    tried = []

    def problem(trial):
        tried.append(trial)
        return None if trial == ENTRIES[2:4] else Problem("view")

    assert fitting_attributes(rehearsal, TRIALS, problem) == ENTRIES[2:4]
    assert tried[:2] == [(), ENTRIES[2:4]]
