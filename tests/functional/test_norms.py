"""Norms and reductions over the open units against torch's own on the open units alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from npn.functional.norms import over_open

CALLS: list[tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]] = [
    (F.layer_norm, ((),), {}),
    (F.layer_norm, ((), "weight", "weight", 0.1), {}),
    (F.rms_norm, ((),), {}),
    (F.rms_norm, ((), "weight"), {"eps": 0.1}),
    (F.normalize, (), {"dim": -1}),
    (F.normalize, (1.0, -1), {}),
    (torch.mean, (-1,), {}),
    (torch.mean, (), {}),
    (Tensor.mean, (), {"dim": (1, 2), "keepdim": True}),
    (Tensor.sum, (-1, True), {}),
    (Tensor.var, (-1,), {}),
    (Tensor.var, (), {"dim": -1, "unbiased": False, "keepdim": True}),
    (torch.var, ((0, 2),), {"correction": 2}),
    (Tensor.std, (False,), {}),
    (Tensor.norm, (), {"dim": -1}),
    (torch.linalg.vector_norm, (3, -1), {}),
]


@pytest.mark.parametrize("number", range(len(CALLS)))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_each_function_over_the_open_units(number: int, dtype: torch.dtype) -> None:
    function, args, kwargs = CALLS[number]
    torch.manual_seed(number)
    x, weight = torch.randn(3, 4, 6, dtype=dtype) + 1, torch.randn(6, dtype=dtype)
    z = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])

    def filled(weight: Tensor) -> list[Any]:
        return [(len(weight),) if a == () else weight if isinstance(a, str) else a for a in args]

    found = over_open(function, z, x, *filled(weight), **kwargs)
    wanted = function(x[..., z > 0], *filled(weight[z > 0]), **kwargs)
    found = found[..., z > 0] if found.shape[-1:] == (6,) else found
    assert found.dtype == wanted.dtype == dtype
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(found, wanted, **tolerance)
