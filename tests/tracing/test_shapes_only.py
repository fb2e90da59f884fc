"""Stand-ins on the meta device give the shapes and strides of the functions themselves, and fail where these fail."""

import pytest
import torch
from torch.nn import functional as F

from npn.tracing.capture.shapes_only import STAND_INS, ShapesOnly

INPUTS = {
    "row-major": lambda: torch.randn(2, 4, 6, 4),
    "channels-last": lambda: torch.randn(2, 4, 6, 4).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(2, 4, 4, 6).transpose(2, 3),
    "sliced": lambda: torch.randn(2, 8, 6, 4)[:, ::2],
    "half": lambda: torch.randn(2, 4, 6, 4, dtype=torch.bfloat16),
}
NORMS = {
    F.batch_norm: lambda x, n: (x, torch.zeros(n), torch.ones(n), torch.ones(n), torch.zeros(n)),
    F.group_norm: lambda x, n: (x, 2, torch.ones(n), torch.zeros(n)),
    F.layer_norm: lambda x, n: (x, (n,), torch.ones(n), torch.zeros(n)),
}


def arguments(function, x, units=4):
    return NORMS[function](x, units) if function in NORMS else (x,)


def on_meta(args):
    return tuple(a.to("meta") if isinstance(a, torch.Tensor) else a for a in args)


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("function", STAND_INS, ids=lambda f: f.__name__)
def test_shapes_and_strides(function, given):
    args = arguments(function, INPUTS[given]().to(torch.float32 if function in NORMS else None))
    with torch.no_grad():
        expected = function(*args)
        with ShapesOnly():
            found = function(*on_meta(args))
    assert found.is_meta and (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.stride() == expected.stride()


@pytest.mark.parametrize("function", NORMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("units", [3, 5])
def test_wrong_sizes_fail(function, units):
    args = arguments(function, torch.randn(2, 4, 6, 4), units)
    with pytest.raises(RuntimeError):
        function(*args)
    with pytest.raises(RuntimeError, match="norm over"), ShapesOnly():
        function(*on_meta(args))


def test_groups_have_to_divide_the_units():
    with pytest.raises(RuntimeError, match="4 units are not divisible into 3 groups"), ShapesOnly():
        F.group_norm(torch.empty(2, 4, 3, device="meta"), 3)


def test_values_are_left_alone():
    x = torch.randn(3)
    with ShapesOnly():
        assert torch.equal(F.gelu(x), torch.nn.functional.gelu(x)) and F.gelu(x).abs().sum() > 0
