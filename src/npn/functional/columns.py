"""Combine the gate of an input column with the gate of the unit that feeds the column.

Gates are numbered through all groups, branches and columns, in this order. A column c fed by unit u is read where both
gates are open, so its weights see `z_c z_u`: the *effective* gate.
"""

import torch
from torch import Tensor


def effective_gates(gates: Tensor, unit_of_column: Tensor | None) -> Tensor:
    """Multiply each column's gate (or keep probability) by that of the unit that feeds it; differentiable.

    For independent gates `E[z_c z_u] = pi_c pi_u`.

    Args:
        gates: (..., units + columns).
        unit_of_column: int64 (columns,), number of the unit that feeds each column; the number of units where no unit
            feeds it; None if there are no columns.

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
    padded = torch.nn.functional.pad(units, (0, 1), value=1.0)  # there may be no unit
    return torch.cat([units, columns * padded.index_select(-1, unit_of_column)], dim=-1)


def effective_gates_gradient(gradient: Tensor, gates: Tensor, unit_of_column: Tensor | None) -> Tensor:
    """Apply the chain rule of `effective_gates`: d loss / d gates from d loss / d effective gates.

    Args:
        gradient: (units + columns,), gradient with respect to the effective gates.
        gates: (units + columns,).
        unit_of_column: int64 (columns,), number of the unit that feeds each column; the number of units where no unit
            feeds it; None if there are no columns.

    Returns:
        (units + columns,), gradient with respect to the gates.

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
