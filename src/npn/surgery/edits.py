"""Changes that can be undone: each edit changes one thing, and a failed set of edits leaves nothing changed."""

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
    """Make all edits, or none.

    Args:
        edits: made in this order.
        check: raises if the outcome is wrong; then everything is put back.

    Returns:
        A function that undoes all of them.
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
    """Replace `.data`, and with it autograd's cached accumulator, which remembers the old shape.

    Only a change of dtype makes PyTorch drop that accumulator, so the data goes through another dtype.
    """
    other = torch.float64 if value.dtype != torch.float64 else torch.float32
    tensor.data = torch.empty(0, dtype=other, device=value.device)
    tensor.data = value


def replace_data(tensor: Tensor, value: Tensor) -> Edit:
    """Give a tensor another value, of any shape; its gradient is dropped."""

    def edit() -> Undo:
        before, grad = tensor.data, tensor.grad

        def undo() -> None:
            set_data(tensor, before)
            tensor.grad = grad

        try:
            tensor.grad = None
            set_data(tensor, value)
        except BaseException:
            undo()
            raise
        return undo

    return edit


def set_gradient(tensor: Tensor, value: Tensor) -> Edit:
    """Give a tensor a gradient, after `replace_data` has dropped the old one."""

    def edit() -> Undo:
        tensor.grad = value
        return lambda: setattr(tensor, "grad", None)

    return edit


def set_item(state: dict[str, Any], key: str, value: Any) -> Edit:
    """Replace an entry of a dict."""

    def edit() -> Undo:
        before = state[key]
        state[key] = value
        return lambda: state.__setitem__(key, before)

    return edit


def set_attribute(module: nn.Module, name: str, value: int) -> Edit:
    """Replace an integer attribute of a module."""

    def edit() -> Undo:
        before = getattr(module, name)
        object.__setattr__(module, name, value)
        return partial(object.__setattr__, module, name, before)

    return edit


def select_columns(module: nn.Module, index: Tensor | None) -> Edit:
    """Give a layer the input columns that it reads; None for all."""

    def edit() -> Undo:
        found = hook_of(module)
        before = found[1].index if found is not None else None
        set_select(module, index)
        return partial(set_select, module, before)

    return edit


def replace_by_absent(model: nn.Module, path: str) -> Edit:
    """Put `absent` in the place of a submodule."""

    def edit() -> Undo:
        parent, _, leaf = path.rpartition(".")
        children = model.get_submodule(parent)._modules
        before = children[leaf]
        assert before is not None
        children[leaf] = absent().train(before.training)
        return partial(children.__setitem__, leaf, before)

    return edit


def forget_parameters(optimizer: Optimizer, parameters: list[Tensor], ids: set[int]) -> Edit:
    """Take parameters out of an optimizer's group and state; the group may be left empty.

    Args:
        optimizer: whose state forgets them.
        parameters: the list of one of its groups, changed in place.
        ids: of the parameters to forget.
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
