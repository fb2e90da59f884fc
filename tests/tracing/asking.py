"""What the tests of tracing ask of a structure."""

from npn.structure import Structure


def sizes(structure: Structure) -> dict[str, int]:
    return {g.name: g.size for g in structure.groups}


def reasons(structure: Structure, tensor: str, axis: int) -> str:
    return "; ".join(f.reason for f in structure.frozen if (tensor, axis) in f.slots)
