"""A structure without some of its branches."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from npn.structure.units import Frozen, Group, Structure


def inside(name: str, paths: Iterable[str]) -> bool:
    """Whether a tensor or module of that name lives in one of the submodules."""
    return any(f"{name}.".startswith(f"{path}.") for path in paths)


def without_branches(structure: Structure, removed: Mapping[str, Sequence[int]]) -> Structure:
    """The structure without some branches, and without what they alone had.

    A group that lived wholly inside them vanishes. So does one that nothing reads any more; it counts as frozen.

    Args:
        removed: name -> numbers, those of branches among them.
    """
    branches = structure.branches
    numbers = set(removed.get(branches.name, ())) if branches is not None else set()
    if branches is None or not numbers:
        return structure
    paths = [path for i, path in enumerate(branches.paths) if i in numbers]
    stay = [i for i in range(branches.size) if i not in numbers]
    frozen = [
        replace(entry, slots=tuple(key for key in entry.slots if not inside(key[0], paths)))
        for entry in structure.frozen
        if not entry.slots or not all(inside(tensor, paths) for tensor, _ in entry.slots)
    ]
    groups: list[Group] = []
    for group in structure.groups:
        slots = tuple(slot for slot in group.slots if not inside(slot.tensor, paths))
        attributes = tuple(entry for entry in group.attributes if not inside(entry[0], paths))
        if any(slot.reads for slot in slots):
            groups.append(replace(group, slots=slots, attributes=attributes))
        elif slots:
            frozen.append(
                Frozen(group.name, "only a branch that is gone read it", tuple(s.key for s in slots), group.size)
            )
    return replace(
        structure,
        groups=tuple(groups),
        frozen=tuple(frozen),
        shapes={name: shape for name, shape in structure.shapes.items() if not inside(name, paths)},
        positions={name: count for name, count in structure.positions.items() if not inside(name, paths)},
        columns=tuple(columns for columns in structure.columns if not inside(columns.tensor, paths)),
        branches=replace(
            branches,
            paths=tuple(branches.paths[i] for i in stay),
            scales=tuple(branches.scales[i] for i in stay),
        ),
    )


def apart_from_branches(structure: Structure, removed: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Of what is to go, that which belongs to groups and columns of this structure."""
    names = {part.name for part in structure.parts if part is not structure.branches}
    return {name: numbers for name, numbers in removed.items() if name in names}


def gone_paths(before: Structure, after: Structure) -> list[str]:
    """Paths of the branches that one structure has and the other has not."""
    if before.branches is None or after.branches is None:
        return []
    return [path for path in before.branches.paths if path not in after.branches.paths]
