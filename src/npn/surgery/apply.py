"""Apply a plan: make all new tensors first, then put them in place; after a failure put everything back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from npn._utils.collectives import broadcast
from npn._utils.fsdp import owners, replace_shard
from npn._utils.layout import laid_out_like
from npn._utils.models import in_mode, model_tensors
from npn._utils.shards import full, like
from npn.modules import described_sizes, increased
from npn.structure import NEW, removed_paths, selected_columns
from npn.surgery.branches import forget_edits, removal_edits
from npn.surgery.edits import (
    Edit,
    carry_out,
    renew_places,
    replace_data,
    select_columns,
    set_attribute,
    set_gradient,
    set_item,
)
from npn.surgery.fill import initial_entries
from npn.surgery.initial import Finish
from npn.surgery.optimizer import gather, gather_gradient, moved_state, weight_copies
from npn.surgery.plan import Plan
from npn.surgery.verify import check_shapes


@dataclass(frozen=True)
class Extra:
    """A tensor outside the model that is resized with one group or parameter, such as the logits of its gates.

    Attributes:
        tensor: 1-D, one entry per unit; or in the shape of a parameter.
        name: name of the group, or of the parameter.
        new: value of new entries.
        of_weights: whether the tensor has the shape of a parameter.
    """

    tensor: Tensor
    name: str
    new: float
    of_weights: bool = False


def apply_plan(
    model: nn.Module,
    plan: Plan,
    optimizers: Sequence[Optimizer] = (),
    extras: Sequence[Extra] = (),
    finish: Finish | None = None,
) -> None:
    """Resize a model, its optimizers' state and further tensors in place.

    Parameters and buffers keep their identity (`.data` is replaced), so optimizers and other references stay valid. Of
    a model that `fully_shard` has split over processes, one tensor at a time is gathered, resized and split again.

    Args:
        model: the model that the plan was made for.
        plan: the resize.
        optimizers: optimizers whose state follows.
        extras: tensors outside the model that follow.
        finish: changes the new values of the model's tensors, before they are put in place.

    Raises:
        ResizeError, OptimizerError: nothing has changed.
    """
    with torch.no_grad(), torch.inference_mode(False):
        edits = _edits(model, plan, optimizers, finish) + _extra_edits(plan, optimizers, extras)
        edits += removal_edits(model, removed_paths(plan.before, plan.after), optimizers)
        changed = [(model.get_submodule(path), name, delta) for path, name, delta in plan.attributes]
        values = increased(changed + _described(model, plan))
        edits += [set_attribute(module, name, value) for (module, name), value in values.items()]
        selected = selected_columns(plan.after)
        edits += [select_columns(model.get_submodule(path), index) for path, index in selected.items()]

    def check() -> None:
        check_shapes(model, plan.after)
        with in_mode(model, True):
            pass  # here a model drops what it keeps of its weights for eval(), such as a table of positions

    carry_out(edits, check)
    renew_places(model)


def _edits(model: nn.Module, plan: Plan, optimizers: Sequence[Optimizer], finish: Finish | None) -> list[Edit]:
    """Edits of the model's tensors, their gradients and their optimizer state."""
    tensors, sharded = model_tensors(model), owners(model)
    edits: list[Edit] = []
    values = dict[str, Tensor]()
    for name, sources in plan.sources.items():
        value = resized(model, name, full(tensors[name].data), sources, plan.zeroed.get(name, {}))
        if sharded and any(bool((source == NEW).any()) for source in sources.values()):
            broadcast([value])  # each process has drawn different new entries
        values[name] = like(value, tensors[name])
    start = dict[str, Tensor]()
    if finish is not None:
        if weight_copies(optimizers):  # which change as the kept weights do
            start = {name: full(value).clone() for name, value in values.items()}
        finish(values)
    for name, sources in plan.sources.items():
        owner = sharded.get(id(tensors[name]))
        replace = replace_data(tensors[name], values[name]) if owner is None else replace_shard(owner, values[name])
        state = _state_edits(tensors[name], sources, optimizers, name, full(values[name]), start.get(name))
        edits += [replace, *state]
    return edits


def _extra_edits(plan: Plan, optimizers: Sequence[Optimizer], extras: Sequence[Extra]) -> list[Edit]:
    """Edits of the tensors outside the model."""
    edits: list[Edit] = []
    for extra in extras:
        if extra.of_weights:
            gone, sources = extra.name not in plan.after.unstructured, plan.sources.get(extra.name, {})
        else:
            source = plan.units.get(extra.name)
            gone, sources = source is not None and not len(source), {} if source is None else {0: source}
        if gone:  # it vanishes with a branch
            edits += forget_edits(optimizers, [extra.tensor])
        elif sources:
            value = gather(extra.tensor.data, sources)
            for axis, source in sources.items():
                value.index_fill_(axis, (source == NEW).nonzero().reshape(-1).to(value.device), extra.new)
            edits.append(replace_data(extra.tensor, value))
            edits += _state_edits(extra.tensor, sources, optimizers, f"the gates of {extra.name}", value)
    return edits


def _state_edits(
    tensor: Tensor,
    sources: Mapping[int, Tensor],
    optimizers: Sequence[Optimizer],
    name: str,
    value: Tensor,
    start: Tensor | None = None,
) -> list[Edit]:
    """Edits of one tensor's optimizer state and gradient."""
    edits: list[Edit] = []
    for state, key, moved in moved_state(optimizers, tensor, sources, name, value, start):
        edits.append(set_item(state, key, moved))
    if tensor.is_leaf and tensor.grad is not None:  # torch warns who asks a buffer that was computed for its gradient
        edits.append(set_gradient(tensor, like(gather_gradient(full(tensor.grad), sources), tensor.grad)))
    return edits


def resized(
    model: nn.Module, name: str, old: Tensor, sources: Mapping[int, Tensor], zeroed: Mapping[int, Tensor]
) -> Tensor:
    """Compute the new value of one tensor: move kept entries, fill new ones, zero the positions that read new units.

    Args:
        model: the model, in which the tensor's owner is looked up.
        name: name of the tensor.
        old: its present value.
        sources: axis -> int64 (new length,), old position of each new position, `NEW` where there is none.
        zeroed: axis -> positions to set to zero.

    Returns:
        The new value, in the memory format of `old`.
    """
    value = old
    for axis, source in sources.items():
        new = (source == NEW).nonzero().reshape(-1).to(old.device)
        present, value = value, gather(value, {axis: source})
        if len(new):
            shape = tuple(len(new) if a == axis else s for a, s in enumerate(value.shape))
            value.index_copy_(axis, new, initial_entries(model, name, present, axis, shape).to(value.dtype))
    for axis, positions in zeroed.items():
        value.index_fill_(axis, positions.to(value.device), 0)
    return laid_out_like(value, old)


def _described(model: nn.Module, plan: Plan) -> list[tuple[nn.Module, str, int]]:
    """Changes of `out_features`, `in_channels`, `num_features`, ... that follow from the plan."""
    before = plan.before.physical()
    changes = {
        (tensor, axis): len(source) - before[tensor][axis]
        for tensor, sources in plan.sources.items()
        for axis, source in sources.items()
    }
    return described_sizes(model, changes, {(path, name) for path, name, _ in plan.attributes}, plan.before.bare)
