"""Report the units and parameters that a resize changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from npn._utils.display import html_table
from npn.surgery.plan import Plan


@dataclass(frozen=True)
class ResizeReport:
    """The units and parameters that a resize removed and added; false if nothing changed.

    Attributes:
        changes: group name -> (units before, units after), for the groups that changed.
        params: number of parameters (before, after).
        removed: group name -> old numbers of the removed units.
        added: group name -> numbers of the new units.
        weights: name of a parameter -> number of its single weights that were removed, and are zero from now on.

    Example:
        >>> import npn, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plastic = npn.attach(model, torch.zeros(1, 4))
        >>> plastic.close("0", [2, 5])
        >>> report = plastic.compact()
        >>> report.changes, report.params, report.removed
        ({'0': (8, 6)}, (58, 44), {'0': (2, 5)})
    """

    changes: Mapping[str, tuple[int, int]]
    params: tuple[int, int]
    removed: Mapping[str, tuple[int, ...]]
    added: Mapping[str, tuple[int, ...]]
    weights: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.changes or self.weights)

    def _repr_html_(self) -> str:
        before, after = self.params
        rows = [
            [name, f"{old:,}", f"{new:,}", f"{len(self.removed.get(name, ())):,}", f"{len(self.added.get(name, ())):,}"]
            for name, (old, new) in self.changes.items()
        ]
        rows += [[name, "", "", f"{count:,} single weights", ""] for name, count in self.weights.items()]
        title = f"ResizeReport: {before:,} -> {after:,} parameters" if self else "ResizeReport: nothing changed"
        return html_table((title, ["group", "before>", "after>", "removed>", "added>"], rows))


def report(plan: Plan, before: int, after: int) -> ResizeReport:
    """Report the changes of a plan.

    Args:
        plan: a plan that was applied.
        before: number of parameters before.
        after: number of parameters after.

    Returns:
        The report.
    """
    sizes = {group.name: group.size for group in plan.before.parts}
    removed: dict[str, tuple[int, ...]] = {}
    added: dict[str, tuple[int, ...]] = {}
    for name, source in plan.units.items():
        gone = sorted(set(range(sizes[name])) - set(source.tolist()))
        new = (source < 0).nonzero().reshape(-1).tolist()
        removed |= {name: tuple(gone)} if gone else {}
        added |= {name: tuple(new)} if new else {}
    changes = {name: (sizes[name], len(source)) for name, source in plan.units.items()}
    return ResizeReport(changes, (before, after), removed, added)


def combined(first: ResizeReport, second: ResizeReport) -> ResizeReport:
    """Report units that were added, of which some were removed again, as one resize.

    Args:
        first: of the growth.
        second: of the removal of some of its units.

    Returns:
        The report of both.
    """
    changes, added = {}, {}
    for name, (before, after) in first.changes.items():
        gone = second.removed.get(name, ())
        changes[name] = before, after - len(gone)
        added[name] = tuple(unit - sum(g < unit for g in gone) for unit in first.added[name] if unit not in set(gone))
    return ResizeReport(changes, (first.params[0], (second or first).params[1]), {}, added)
