"""Move optimizer state with a resize: kept entries keep their state, new ones start without momentum."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from npn._utils.layout import along, laid_out_like
from npn._utils.shards import full, like
from npn.errors import OptimizerError
from npn.structure import NEW

# second moments; zero would make the first updates of a new entry several times too large
_SECOND_MOMENTS = ("sq", "square", "variance", "row_var", "col_var", "sum", "exp_inf", "acc_delta", "step_size")


_MOMENTA = ("momentum_buffer", "exp_avg", "prev")
# copies of the weights that a step returns to: schedule-free optimizers, MADGRAD, Prodigy, ASGD, Lookahead, SAM
_COPIES = ("z", "x0", "p0", "ax", "slow_buffer", "slow_param", "slow_params", "lookahead_slow_buff", "old_p")
# matrix moments factored into two vectors: the axis, counted from the end, along which each has no entries
_FACTORED = {"row_var": -1, "col_var": -2}
# the same without that axis, as in the Adafactor of transformers, fairseq and timm
_LACKING = {"exp_avg_sq_row": -1, "exp_avg_sq_col": -2}


def gather(value: Tensor, sources: Mapping[int, Tensor], mean: bool = False, without: int | None = None) -> Tensor:
    """Move the entries of a tensor to their new positions.

    Args:
        value: any shape.
        sources: axis -> int64 (new length,), old position of each new position, `NEW` where there is none.
        mean: whether new entries get the mean of the kept ones along the axis instead of zero.
        without: an axis along which `value` has no entries, although the parameter may have some.

    Returns:
        The entries at their new positions.
    """
    for axis, source in sources.items():
        if axis == without or (value.shape[axis] == 1 and int(source.max()) > 0):
            continue
        source = source.to(value.device)
        new = source == NEW
        kept = value.index_select(axis, source.clamp(min=0))
        if bool(new.any()):
            rest = value.index_select(axis, source[~new]).mean(axis, keepdim=True) if mean else kept.new_zeros(())
            kept = torch.where(along(new, axis, value.dim()), rest.to(kept.dtype), kept)
        value = kept
    return value


def new_entries(sources: Mapping[int, Tensor], dims: int, device: torch.device) -> Tensor:
    """Which entries of a resized tensor are new, as a mask that broadcasts over it.

    Args:
        sources: see `gather`.
        dims: axes of the tensor.
        device: of the mask.
    """
    new = torch.zeros((1,) * dims, dtype=torch.bool, device=device)
    for axis, source in sources.items():
        new = new | along((source == NEW).to(device), axis, dims)
    return new


def moved_state(
    optimizers: Sequence[Optimizer],
    parameter: Tensor,
    sources: Mapping[int, Tensor],
    name: str,
    value: Tensor,
    start: Tensor | None = None,
) -> list[tuple[dict[str, object], str, Tensor]]:
    """Compute the new state tensors of one parameter in every optimizer that holds it.

    New entries of a state that holds a copy of the weights get the new weights: zero would pull them back. What is kept
    changes as the kept weights do, of which a unit that is split gives a part to its copy.

    Args:
        optimizers: optimizers that may hold the parameter.
        parameter: the parameter, not yet resized.
        sources: see `gather`.
        name: name of the parameter, for the error message.
        value: the parameter's new value, whole.
        start: the same before kept weights were changed; None if none was.

    Returns:
        (state dict, key, new tensor) entries.

    Raises:
        OptimizerError: a state tensor does not have the layout of the parameter.
    """
    moved = []
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.LBFGS) and optimizer.state and id(parameter) in held_by(optimizer):
            # LBFGS keeps one flat vector over all parameters, in the state of the first
            raise OptimizerError(_strange(optimizer, "old_dirs", name, parameter, "a list of flat tensors"))
        state = optimizer.state.get(parameter, {})
        strange = unmovable(parameter, state)
        if strange is not None:
            raise OptimizerError(_strange(optimizer, strange[0], name, parameter, strange[1]))
        for key, old in state.items():
            if not isinstance(old, Tensor) or old.dim() == 0:
                continue
            mean = any(word in key for word in _SECOND_MOMENTS)
            if old.dim() < parameter.dim():
                axis = _LACKING[key] % parameter.dim()
                entry = gather(full(old).unsqueeze(axis), sources, mean, axis).squeeze(axis)
            else:
                without = _FACTORED[key] % old.dim() if key in _FACTORED and old.dim() > 1 else None
                entry = gather(full(old), sources, mean, without)
                if key in _COPIES and old.shape == parameter.shape:
                    kept = entry if start is None else entry + (value - start).to(entry)
                    entry = torch.where(new_entries(sources, old.dim(), entry.device), value.to(entry), kept)
                entry = laid_out_like(entry, old)
            moved.append((state, key, like(entry, old)))
    return moved


def unmovable(parameter: Tensor, state: Mapping[str, object]) -> tuple[str, str] | None:
    """Find an entry of a parameter's state that a resize cannot move.

    Args:
        parameter: the parameter.
        state: its state in an optimizer.

    Returns:
        Key and form of the first such entry; None if there is none.
    """
    for key, value in state.items():
        if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
            return key, "a list of tensors"
        if not isinstance(value, Tensor) or value.dim() == 0:
            continue
        shape = list(parameter.shape)
        if key in _LACKING and value.dim() == len(shape) - 1:
            del shape[_LACKING[key]]
        if value.dim() != len(shape) or any(v not in (p, 1) for v, p in zip(value.shape, shape, strict=True)):
            return key, f"shape {tuple(value.shape)}"
    return None


def gather_gradient(gradient: Tensor, sources: Mapping[int, Tensor]) -> Tensor:
    """Move the entries of a gradient to their new positions; a sparse gradient stays sparse if only dense axes change.

    Args:
        gradient: dense or sparse, in the parameter's old shape.
        sources: see `gather`.

    Returns:
        The gradient in the new shape.
    """
    if not gradient.is_sparse:
        return laid_out_like(gather(gradient, sources), gradient)
    gradient = gradient.coalesce()
    shift = gradient.sparse_dim() - 1  # the first axis of `values` numbers the sparse entries
    if any(axis <= shift for axis in sources):
        return gather(gradient.to_dense(), sources)
    values = gather(gradient.values(), {axis - shift: source for axis, source in sources.items()})
    shape = [*gradient.shape[: shift + 1], *values.shape[1:]]
    return torch.sparse_coo_tensor(
        gradient.indices(), values, shape, device=values.device, is_coalesced=True, check_invariants=False
    )


def forget_momentum(optimizers: Sequence[Optimizer], parameter: Tensor, where: Tensor) -> None:
    """Zero the momentum of entries that were set by hand, so that they do not continue to move or move back.

    Args:
        optimizers: optimizers that may hold the parameter.
        parameter: the parameter, of which a state that holds a copy gets the present entries.
        where: bool, in the shape of the parameter: the entries.
    """
    for optimizer in optimizers:
        state = optimizer.state.get(parameter, {})
        for key in _MOMENTA:
            if isinstance(value := state.get(key), Tensor):
                value.masked_fill_(where, 0)
        for copied in _copies(state, parameter):
            copied.copy_(torch.where(where.to(copied.device), parameter.detach().to(copied), copied))


def weight_copies(optimizers: Sequence[Optimizer]) -> list[Tensor]:
    """The state tensors that hold copies of parameters.

    Args:
        optimizers: any.
    """
    states = ((state, p) for each in optimizers for p, state in each.state.items() if isinstance(p, Tensor))
    return [copied for state, parameter in states for copied in _copies(state, parameter)]


def _copies(state: Mapping[str, object], parameter: Tensor) -> list[Tensor]:
    """Those of one parameter."""
    found = [state.get(key) for key in _COPIES]
    return [value for value in found if isinstance(value, Tensor) and value.shape == parameter.shape]


def held_by(optimizer: Optimizer) -> set[int]:
    """`id` of each parameter in the groups of an optimizer.

    Args:
        optimizer: any.
    """
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _strange(optimizer: Optimizer, key: str, name: str, parameter: Tensor, came: str) -> str:
    """The error message for state that does not have the parameter's layout."""
    return (
        f"{type(optimizer).__name__} keeps {key!r} of {name} as {came}; expected the layout of the parameter "
        f"{tuple(parameter.shape)}, which a resize can carry along. Use an optimizer with elementwise state, "
        "load state that was saved at the present sizes, or clear it before resizing"
    )
