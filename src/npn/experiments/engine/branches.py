"""Branches of an attached model, by path."""

import npn


def closed_branches(plastic: npn.Plasticity) -> list[str]:
    """List the paths of the branches that exist and are closed.

    Args:
        plastic: the attached model.
    """
    branches = plastic.structure.branches
    if branches is None:
        return []
    mask = plastic.group(branches.name).gate.present.tolist()
    return [path for path, is_open in zip(branches.paths, mask, strict=True) if not is_open]
