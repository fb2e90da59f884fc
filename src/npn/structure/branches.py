"""Remove branches from a structure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from npn.structure.freezing import READER_GONE
from npn.structure.structure import Frozen, Structure
from npn.structure.units import Group, inside


def without_branches(structure: Structure, removed: Mapping[str, Sequence[int]]) -> Structure:
    """Remove branches from a structure, together with the groups and tensors that only they contained.

    A group whose every place lies inside the removed branches vanishes. A group that only they read becomes frozen.

    Args:
        structure: the present structure.
        removed: name -> numbers; the entry under the branches' name gives the branches to remove.

    Returns:
        The structure without these branches.
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
            frozen.append(Frozen(group.name, READER_GONE, tuple(s.key for s in slots), group.size))
    return replace(
        structure,
        groups=tuple(groups),
        frozen=tuple(frozen),
        products=tuple(each for each in structure.products if each.tensor is None or not inside(each.tensor, paths)),
        shapes={name: shape for name, shape in structure.shapes.items() if not inside(name, paths)},
        positions={name: count for name, count in structure.positions.items() if not inside(name, paths)},
        norms=tuple(norm for norm in structure.norms if not inside(norm.path, paths)),
        bare={path: places for path, places in structure.bare.items() if not inside(path, paths)},
        columns=tuple(columns for columns in structure.columns if not inside(columns.tensor, paths)),
        unstructured=tuple(name for name in structure.unstructured if not inside(name, paths)),
        branches=replace(
            branches,
            paths=tuple(branches.paths[i] for i in stay),
            scales=tuple(branches.scales[i] for i in stay),
        ),
    )


def inside_branches(structure: Structure) -> set[str]:
    """Names of the groups, columns and parameters with single-weight gates that vanish with the branches around them.

    Args:
        structure: the present structure.
    """
    if structure.branches is None:
        return set()
    rest = without_branches(structure, {structure.branches.name: range(structure.branches.size)})
    names = {part.name for part in structure.parts} - {part.name for part in rest.parts}
    return names | (set(structure.unstructured) - set(rest.unstructured))


def without_branch_entries(structure: Structure, removed: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Select the removals that concern groups and columns of this structure, not branches.

    Args:
        structure: the structure whose groups and columns count.
        removed: name -> numbers to remove.

    Returns:
        name -> numbers, without branches and unknown names.
    """
    names = {part.name for part in structure.parts if part is not structure.branches}
    return {name: numbers for name, numbers in removed.items() if name in names}


def removed_paths(before: Structure, after: Structure) -> list[str]:
    """Paths of the branches that one structure has and another lacks.

    Args:
        before: the structure with all branches.
        after: the structure without some of them.
    """
    if before.branches is None or after.branches is None:
        return []
    return [path for path in before.branches.paths if path not in after.branches.paths]
