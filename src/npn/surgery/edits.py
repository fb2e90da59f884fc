"""Edits that can be undone: each changes one thing, and a failed list of edits leaves everything unchanged."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from npn.modules import absent, hook_of, set_select

Undo = Callable[[], Any]
Edit = Callable[[], Undo]


def carry_out(edits: Iterable[Edit], check: Callable[[], None] = lambda: None) -> Undo:
    """Carry out all edits; if one fails, undo those already made.

    Args:
        edits: functions that make one change and return a function that undoes it; called in this order.
        check: called after the last edit; if it raises, all edits are undone.

    Returns:
        A function that undoes all edits.
    """
    done: list[Undo] = []

    def undo() -> None:
        while done:
            done.pop()()

    try:
        for edit in edits:
            done.append(edit())
        check()
    except BaseException:
        undo()
        raise
    return undo


def set_data(tensor: Tensor, value: Tensor) -> None:
    """Replace `.data`, and with it autograd's cached gradient accumulator, which remembers the old shape.

    PyTorch drops that accumulator only when the dtype changes, so the data passes through another dtype.

    Args:
        tensor: the tensor to change.
        value: its new data, of any shape.
    """
    other = torch.float64 if value.dtype != torch.float64 else torch.float32
    if value.layout is torch.strided:  # sparse tensors take only sparse data, and change neither shape nor dtype
        tensor.data = torch.empty(0, dtype=other, device=value.device)
    tensor.data = value


def renew_places(model: nn.Module) -> None:
    """Put every parameter and buffer into its module anew, so that compiled code looks at them again.

    In some versions, 2.11 among them, `torch.compile` passes over the tensors of a module whose dicts are as they were
    (github.com/pytorch/pytorch/issues/163064), and would run code that was made for the old shapes.

    Args:
        model: whose tensors have changed.
    """

    def renew(places: dict[str, Any]) -> None:
        for name, tensor in places.items():
            places[name] = None
            places[name] = tensor

    for module in model.modules():
        renew(module._parameters)
        renew(module._buffers)


def replace_data(tensor: Tensor, value: Tensor) -> Edit:
    """Edit: give a tensor another value, of any shape, and drop its gradient.

    Args:
        tensor: the tensor to change.
        value: its new data.
    """

    def edit() -> Undo:
        before, grad = tensor.data, tensor.grad if tensor.is_leaf else None  # of others there is none, with a warning

        def undo() -> None:
            set_data(tensor, before)
            if tensor.is_leaf:
                tensor.grad = grad

        try:
            if tensor.is_leaf:
                tensor.grad = None
            elif not tensor._is_view():
                tensor.detach_()  # a buffer that an earlier call computed, with a graph of the old sizes
            set_data(tensor, value)
        except BaseException:
            undo()
            raise
        return undo

    return edit


def set_gradient(tensor: Tensor, value: Tensor) -> Edit:
    """Edit: set the gradient of a tensor, after `replace_data` has dropped the old one.

    Args:
        tensor: the tensor to change.
        value: the gradient, in the tensor's new shape.
    """

    def edit() -> Undo:
        tensor.grad = value
        return lambda: setattr(tensor, "grad", None)

    return edit


def set_item(state: dict[str, Any], key: str, value: Any) -> Edit:
    """Edit: replace an entry of a dict.

    Args:
        state: the dict to change.
        key: an existing key.
        value: its new value.
    """

    def edit() -> Undo:
        before = state[key]
        state[key] = value
        return lambda: state.__setitem__(key, before)

    return edit


def set_attribute(module: nn.Module, name: str, value: Any) -> Edit:
    """Edit: replace an integer attribute of a module.

    Args:
        module: the module to change.
        name: name of the attribute.
        value: its new value.
    """

    def edit() -> Undo:
        before = getattr(module, name)
        object.__setattr__(module, name, value)
        return partial(object.__setattr__, module, name, before)

    return edit


def select_columns(module: nn.Module, index: Tensor | None) -> Edit:
    """Edit: set the input columns that a layer reads.

    Args:
        module: a linear or convolution layer.
        index: int64 (columns,), positions on the full input axis; None to read all.
    """

    def edit() -> Undo:
        found = hook_of(module)
        before = found[1].index if found is not None else None
        set_select(module, index)
        return partial(set_select, module, before)

    return edit


def replace_by_absent(model: nn.Module, path: str) -> Edit:
    """Edit: replace a submodule by `absent`.

    Args:
        model: the model to change.
        path: path of the submodule.
    """

    def edit() -> Undo:
        parent, _, leaf = path.rpartition(".")
        children = model.get_submodule(parent)._modules
        before = children[leaf]
        assert before is not None
        children[leaf] = absent().train(before.training)
        return partial(children.__setitem__, leaf, before)

    return edit


def forget_parameters(optimizer: Optimizer, parameters: list[Tensor], ids: set[int]) -> Edit:
    """Edit: remove parameters from a group of an optimizer, and their state; the group may become empty.

    Args:
        optimizer: the optimizer to change.
        parameters: the list of parameters of one of its groups, changed in place.
        ids: `id` of each parameter to remove.
    """

    def edit() -> Undo:
        before = list(parameters)
        states = {p: optimizer.state[p] for p in parameters if id(p) in ids and p in optimizer.state}

        def undo() -> None:
            parameters[:] = before
            optimizer.state.update(states)

        parameters[:] = [p for p in before if id(p) not in ids]
        for p in states:
            del optimizer.state[p]
        return undo

    return edit
