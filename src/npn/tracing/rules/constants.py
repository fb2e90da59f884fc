"""Values that depend on no input and no parameter: computed once, with the dtype, shape and elements of the op."""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves, tree_map

from npn._utils import cpu
from npn.errors import TraceError
from npn.tracing.labels import Value
from npn.tracing.labels.places import restrided
from npn.tracing.rules.call import Call

LIMIT = 1 << 22  # elements of a constant that are worth computing
FILLS: dict[str, tuple[int, str] | float] = {  # the number that fills, or where it stands among the arguments
    "zeros_like": 0, "new_zeros": 0, "zero": 0, "ones_like": 1, "new_ones": 1,
    "full_like": (1, "fill_value"), "new_full": (2, "fill_value"), "fill": (1, "value"),
}  # fmt: skip
SHAPE_ONLY = frozenset((  # random or without content: nothing of the operand but its shape
    "empty_like", "rand_like", "randn_like", "randint_like", "new_empty", "empty", "empty_strided", "new_empty_strided",
))  # fmt: skip
_VIEWS = ("view", "_unsafe_view", "_reshape_alias")  # a constant need not lie in memory as the captured value does


def constant(tensor: Tensor) -> Value:
    """A value whose elements are known; a sparse tensor's are not looked at, a fake one has none."""
    known = tensor.layout is torch.strided and not isinstance(tensor, FakeTensor)
    return Value(tuple(tensor.shape), const=tensor.detach().cpu() if known else None)


def compute(call: Call) -> Any:
    """What an op gives, if that depends on no input and no parameter and is worth computing; else None."""
    if call.name in FILLS:
        return _filled(call)
    if not isinstance(call.node.target, torch._ops.OpOverload):
        return None
    small = all(torch.Size(shape).numel() <= LIMIT for shape in call.shapes)
    return _folded(call) if small and all(v.const is not None for v in call.values) else None


def draw(call: Call) -> Any:
    """A random result: exchangeable along an axis where what it is drawn by does not vary, unless it repeats."""
    if call.node.meta.get("repeats"):
        return call.plain()
    seen = [] if call.name in SHAPE_ONLY else call.values
    return call.plain(free=all(v.free or not any(v.fixed(axis) for axis in range(len(v.shape))) for v in seen))


def _filled(call: Call) -> Value | None:
    """One number everywhere, stored once; the operand lends no more than its shape and dtype."""
    wanted, fill = call.node.meta["val"], FILLS[call.name]
    number = call.arg(*fill) if isinstance(fill, tuple) else fill
    if isinstance(number, Value):
        number = number.const
    if number is None:
        return None
    return constant(cpu.empty((), dtype=wanted.dtype).fill_(number).expand(wanted.shape))


def _folded(call: Call) -> Any:
    """The op itself on constants, on the CPU.

    Raises:
        TraceError: the result is of another dtype or shape than in the captured graph.
    """
    args, kwargs = tree_map(_given, (call.args, call.kwargs))
    kwargs.pop("pin_memory", None)
    if call.name == "as_strided":
        results = restrided(args[0], call.node.args[0].meta["val"], *args[1:])  # type: ignore[union-attr]
        if results is None:
            return None
    elif call.name in _VIEWS:
        results = args[0].reshape(tuple(args[1]))
    else:
        with torch.autocast("cpu", enabled=False):  # the graph has every cast already
            results = call.node.target(*args, **kwargs)  # type: ignore[operator]
    for wanted, found in zip(tree_leaves(call.node.meta.get("val")), tree_leaves(results), strict=True):
        if isinstance(wanted, Tensor) and (wanted.dtype, wanted.shape) != (found.dtype, found.shape):
            raise TraceError(
                f"{call.name} at {call.where}: expected a constant of {wanted.dtype} {tuple(wanted.shape)}, got "
                f"{found.dtype} {tuple(found.shape)}; compute it in the module's __init__ and keep it as a buffer"
            )
    return tree_map(lambda t: constant(t) if isinstance(t, Tensor) else t, results)


def _given(value: Any) -> Any:
    if isinstance(value, Value):
        assert value.const is not None
        return value.const.detach()  # not the tensor itself, whose shape an op in place would change
    return torch.device("cpu") if isinstance(value, torch.device) else value
