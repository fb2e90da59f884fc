"""Weights in compressed sparse row form."""

import warnings

import torch
from torch import Tensor, nn


def csr_weight(weight: Tensor) -> nn.Parameter:
    """Convert a matrix to CSR form, with 32-bit indices; it requires no gradient.

    Args:
        weight: (rows, columns), dense.

    Example:
        >>> csr_weight(torch.eye(3)).values()
        tensor([1., 1., 1.])
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        csr = weight.detach().to_sparse_csr()
        small = csr.crow_indices().int(), csr.col_indices().int()
        made = torch.sparse_csr_tensor(*small, csr.values(), csr.shape, device=csr.device, check_invariants=False)
        return nn.Parameter(made, requires_grad=False)
