"""Gates on single input columns act together with the gates of the units that feed these columns.

Gates are numbered through all groups, branches and columns, in this order. A column c that unit u feeds is read where
both are open, so its weights see `z_c z_u`: the *effective* gate.
"""

import torch
from torch import Tensor


def effective_gates(gates: Tensor, unit_of_column: Tensor | None) -> Tensor:
    """Gates (or keep probabilities), each column's times that of the unit that feeds it; differentiable.

    Independent gates: `E[z_c z_u] = pi_c pi_u`.

    Args:
        gates: (..., units + columns).
        unit_of_column: int64 (columns,), number of the unit that feeds each column, the number of units where none
            does; None for no columns.

    Returns:
        The effective gates, in the shape of `gates`.

    Example:
        >>> gates = torch.tensor([1.0, 0.0, 1.0, 0.5, 1.0])  # two units, three columns
        >>> effective_gates(gates, torch.tensor([0, 1, 2]))  # no unit feeds the last column
        tensor([1., 0., 1., 0., 1.])
    """
    if unit_of_column is None:
        return gates
    units, columns = gates.split([gates.shape[-1] - len(unit_of_column), len(unit_of_column)], dim=-1)
    padded = torch.cat([units, torch.ones_like(units[..., :1])], dim=-1)
    return torch.cat([units, columns * padded.index_select(-1, unit_of_column)], dim=-1)


def effective_gates_gradient(gradient: Tensor, gates: Tensor, unit_of_column: Tensor | None) -> Tensor:
    """d loss / d gates from the gradient with respect to the effective gates: the chain rule of `effective_gates`.

    Args:
        gradient: with respect to the effective gates, (units + columns,).
        gates: (units + columns,).
        unit_of_column: int64 (columns,), number of the unit that feeds each column, the number of units where none
            does; None for no columns.

    Returns:
        The gradient with respect to the gates, (units + columns,).

    Example:
        >>> gates = torch.tensor([1.0, 0.0, 1.0, 1.0])  # two units, two columns
        >>> effective_gates_gradient(torch.tensor([0.0, 0.0, 2.0, 3.0]), gates, torch.tensor([0, 1]))
        tensor([2., 3., 2., 0.])
    """
    if unit_of_column is None:
        return gradient
    split = [len(gates) - len(unit_of_column), len(unit_of_column)]
    (to_units, to_columns), (units, columns) = gradient.split(split), gates.split(split)
    padded = torch.cat([units, units.new_ones(1)])
    from_columns = padded.new_zeros(len(padded)).index_add(0, unit_of_column, to_columns * columns)
    return torch.cat([to_units + from_columns[:-1], to_columns * padded[unit_of_column]])
