"""Gates on single input columns act together with the gates of the units that feed these columns.

Gates are numbered through all groups, branches and columns, in this order. A column c that unit u feeds is read where
both are open, so its weights see `z_c z_u`: the *effective* gate.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from npn.surgery import apart_from_branches, completed, without_branches
from npn.tracing import Structure


def feeders(structure: Structure) -> Tensor | None:
    """int64 (columns,): number of the unit that feeds each column, the number of all units where none does.

    None for a structure without gates on columns.
    """
    if not structure.columns:
        return None
    units = structure.before_columns
    pieces = []
    for columns in structure.columns:
        feeder, start = torch.full((structure.shapes[columns.tensor][columns.axis],), units), 0
        for group in structure.groups:
            for slot in group.slots:
                if slot.key == columns.key:
                    feeder[slot.index] = torch.arange(start, start + group.size)[:, None]
            start += group.size
        pieces.append(feeder[columns.kept])
    return torch.cat(pieces)


def effective(gates: Tensor, feeder: Tensor | None) -> Tensor:
    """Gates (or keep probabilities), each column's times that of the unit that feeds it; differentiable.

    Independent gates: `E[z_c z_u] = pi_c pi_u`.

    Args:
        gates: (..., units + columns).
        feeder: (columns,), see `feeders`.

    Example:
        >>> effective(torch.tensor([1.0, 0.0, 1.0, 0.5, 1.0]), torch.tensor([0, 1, 2]))  # the last is fed by no unit
        tensor([1., 0., 1., 0., 1.])
    """
    if feeder is None:
        return gates
    units, columns = gates.split([gates.shape[-1] - len(feeder), len(feeder)], dim=-1)
    padded = torch.cat([units, torch.ones_like(units[..., :1])], dim=-1)
    return torch.cat([units, columns * padded.index_select(-1, feeder)], dim=-1)


def chain(gradient: Tensor, gates: Tensor, feeder: Tensor | None) -> Tensor:
    """d loss / d gates from the gradient with respect to the effective gates: the chain rule of `effective`.

    Args:
        gradient, gates: (units + columns,).
        feeder: (columns,), see `feeders`.

    Example:
        >>> chain(torch.tensor([0.0, 0.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 1]))
        tensor([2., 3., 2., 0.])
    """
    if feeder is None:
        return gradient
    split = [len(gates) - len(feeder), len(feeder)]
    (to_units, to_columns), (units, columns) = gradient.split(split), gates.split(split)
    padded = torch.cat([units, units.new_ones(1)])
    from_columns = padded.new_zeros(len(padded)).index_add(0, feeder, to_columns * columns)
    return torch.cat([to_units + from_columns[:-1], to_columns * padded[feeder]])


def open_sizes(structure: Structure, closed: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Units of each group, branches, and columns of each layer, that are left once what is closed has gone.

    Args:
        closed: name -> numbers of the closed gates.

    Returns:
        Sizes by name; 0 where all that a group had goes with closed branches.
    """
    left = without_branches(structure, closed)
    gone = completed(left, apart_from_branches(left, closed))
    gates = torch.cat([_stays(part.size, gone.get(part.name, ())) for part in left.parts])
    pieces = effective(gates, feeders(left)).split([part.size for part in left.parts])
    sizes = {part.name: int(piece.sum()) for part, piece in zip(left.parts, pieces, strict=True)}
    return {part.name: sizes.get(part.name, 0) for part in structure.parts}


def _stays(size: int, gone: Sequence[int]) -> Tensor:
    stays = torch.ones(size)
    stays[list(gone)] = 0
    return stays
