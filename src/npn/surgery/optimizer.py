"""Optimizer state follows a resize: kept entries keep theirs, new ones start without momentum."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from npn.errors import OptimizerError
from npn.structure import NEW

# second moments: zero would make the first updates of a new entry several times too large
_SECOND_MOMENTS = ("sq", "square", "variance", "row_var", "col_var", "sum", "exp_inf", "acc_delta", "step_size")


_MOMENTA = ("momentum_buffer", "exp_avg", "prev")
# moments of a matrix kept as a product of two vectors: the axis, from the end, along which each has no entries
_FACTORED = {"row_var": -1, "col_var": -2}


def gather(value: Tensor, sources: Mapping[int, Tensor], mean: bool = False, without: int | None = None) -> Tensor:
    """Entries of `value` at their new positions.

    Args:
        sources: axis -> old position behind each new one, `NEW` where there is none.
        mean: new entries get the mean of the kept ones along the axis instead of zero.
        without: an axis along which `value` has no entries, though the parameter may have.
    """
    for axis, source in sources.items():
        if axis == without or (value.shape[axis] == 1 and int(source.max()) > 0):
            continue
        source = source.to(value.device)
        new = source == NEW
        kept = value.index_select(axis, source.clamp(min=0))
        if bool(new.any()):
            rest = value.index_select(axis, source[~new]).mean(axis, keepdim=True) if mean else kept.new_zeros(())
            shape = [-1 if a == axis else 1 for a in range(value.dim())]
            kept = torch.where(new.view(shape), rest.to(kept.dtype), kept)
        value = kept
    return value


def moved_state(
    optimizers: Sequence[Optimizer], parameter: Tensor, sources: Mapping[int, Tensor], name: str
) -> list[tuple[dict[str, object], str, Tensor]]:
    """New state tensors of one parameter in every optimizer that holds it: (state, key, tensor).

    Raises:
        OptimizerError: a state tensor is not laid out like the parameter.
    """
    moved = []
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.LBFGS) and optimizer.state and _holds(optimizer, parameter):
            # one flat vector over all parameters, kept with the first of them
            raise OptimizerError(_strange(optimizer, "old_dirs", name, parameter, "a list of flat tensors"))
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
                raise OptimizerError(_strange(optimizer, key, name, parameter, "a list of tensors"))
            if not isinstance(value, Tensor) or value.dim() == 0:
                continue
            fits = value.dim() == parameter.dim() and all(
                v in (p, 1) for v, p in zip(value.shape, parameter.shape, strict=True)
            )
            if not fits:
                raise OptimizerError(_strange(optimizer, key, name, parameter, f"shape {tuple(value.shape)}"))
            mean = any(word in key for word in _SECOND_MOMENTS)
            without = _FACTORED[key] % value.dim() if key in _FACTORED and value.dim() > 1 else None
            moved.append((state, key, gather(value, sources, mean, without)))
    return moved


def gather_gradient(gradient: Tensor, sources: Mapping[int, Tensor]) -> Tensor:
    """A gradient at the new positions; of a sparse one, along axes on which it is dense."""
    if not gradient.is_sparse:
        return gather(gradient, sources)
    gradient = gradient.coalesce()
    shift = gradient.sparse_dim() - 1  # the values' first axis counts entries
    if any(axis <= shift for axis in sources):
        return gather(gradient.to_dense(), sources)
    values = gather(gradient.values(), {axis - shift: source for axis, source in sources.items()})
    shape = [*gradient.shape[: shift + 1], *values.shape[1:]]
    return torch.sparse_coo_tensor(gradient.indices(), values, shape, is_coalesced=True, check_invariants=False)


def forget_momentum(optimizers: Sequence[Optimizer], parameter: Tensor, index: Tensor) -> None:
    """Entries that were set by hand do not go on moving as before."""
    for optimizer in optimizers:
        state = optimizer.state.get(parameter, {})
        for key in _MOMENTA:
            if isinstance(value := state.get(key), Tensor):
                value[index] = 0


def _holds(optimizer: Optimizer, parameter: Tensor) -> bool:
    return any(p is parameter for group in optimizer.param_groups for p in group["params"])


def _strange(optimizer: Optimizer, key: str, name: str, parameter: Tensor, came: str) -> str:
    return (
        f"{type(optimizer).__name__} keeps {key!r} of {name} as {came}; expected the layout of the parameter "
        f"{tuple(parameter.shape)}, which a resize can carry along. Use an optimizer with elementwise state, "
        "or clear its state before resizing"
    )
