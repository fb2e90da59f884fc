"""Expected cost (parameters, multiply-adds) of a network whose units are kept independently of each other."""

from functools import reduce

import torch
from torch import Tensor

from npn.errors import ConfigurationError


def product_cost(group_sums: Tensor, weight: Tensor, constant: Tensor, counts: Tensor) -> Tensor:
    """Expected cost of tensors whose axes are as long as the number of kept units.

    ``sum_t weight_t prod_a (constant_ta + sum_g counts_tag P_g)``, where ``P_g`` is the expected number of kept units
    of group g. A weight matrix is one term with two axes, its rows and its columns, so an element whose row and column
    are both pruned is subtracted once. A bias is a term whose second axis has ``constant`` 1 and no counts.

    The sum is the exact expectation where no unit lies on two axes of one term; for those add
    ``shared_unit_correction``.

    Args:
        group_sums: P, (G,), sum of the keep probabilities of each group, in units.
        weight: (T,), cost of one element of the term: kernel size, or kernel size times output positions for MACs.
        constant: (T, A), elements along each axis that no gate controls.
        counts: (T, A, G), elements along the axis that belong to each unit of the group.

    Returns:
        Scalar, differentiable in ``group_sums``, in the widest of the dtypes.

    Raises:
        ConfigurationError: the shapes do not fit together.

    Example:
        >>> import torch
        >>> # 3 fixed inputs -> hidden group of 80 units, kept with 0.5 -> 2 fixed outputs, no biases
        >>> sums = torch.tensor([80 * 0.5])
        >>> counts = torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]])  # rows of the first, columns of the second
        >>> product_cost(sums, torch.ones(2), torch.tensor([[0.0, 3.0], [2.0, 0.0]]), counts)
        tensor(200.)

    References:
        Li and Ji, "L0-ARM", ECML 2019, and "Neural Plasticity Networks", IJCNN 2021, charge each gate separately,
        E[||z||_0] = sum_j pi_j: one axis and no constant.
    """
    terms, axes = constant.shape if constant.ndim == 2 else (-1, -1)
    if weight.shape != (terms,) or counts.shape != (terms, axes, *group_sums.shape) or group_sums.ndim != 1:
        raise ConfigurationError(
            "expected group_sums (G,), weight (T,), constant (T, A) and counts (T, A, G), got "
            f"{tuple(group_sums.shape)}, {tuple(weight.shape)}, {tuple(constant.shape)} and {tuple(counts.shape)}; "
            "give every term the same number of axes, with constant 1 and counts 0 where one has fewer"
        )
    dtypes = {t.dtype for t in (group_sums, weight, constant, counts)}
    dtype = reduce(torch.promote_types, dtypes)
    flat = counts.to(dtype).flatten(0, 1)
    lengths = torch.addmv(constant.to(dtype).flatten(), flat, group_sums.to(dtype)).view(constant.shape)
    # One multiplication per axis instead of `prod`, whose backward looks for zeros on the host.
    return reduce(torch.mul, lengths.unbind(-1), weight.to(dtype)).sum()


def shared_unit_correction(probability: Tensor, weight: Tensor) -> Tensor:
    """The term missing from ``product_cost`` where a unit lies on two axes, ``sum_j weight_j (pi_j - pi_j^2)``.

    A gate is 0 or 1, so ``E[z_j^2] = pi_j``, whereas the product of two sums contains ``pi_j^2``. The diagonal of a
    square matrix between the units of one group (a recurrent weight, a tied residual stream) therefore comes out too
    cheap.

    Args:
        probability: pi, (n,).
        weight: (n,) or (), cost of the elements whose row and column both belong to unit j: the term's weight times
            the unit's counts on the two axes.

    Returns:
        Scalar, >= 0 for weights >= 0, differentiable in ``probability``. Add it to ``product_cost``.

    Example:
        >>> import torch
        >>> pi = torch.tensor([0.5, 1.0])
        >>> square = product_cost(pi.sum()[None], torch.ones(1), torch.zeros(1, 2), torch.ones(1, 2, 1))
        >>> square + shared_unit_correction(pi, torch.ones(2))  # half the time 1 element, half the time 4
        tensor(2.5000)
    """
    return (weight * (probability - probability * probability)).sum()
