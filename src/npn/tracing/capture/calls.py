"""What a forward pass calls, to see whether a model computes the same in train and in eval mode."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from npn._utils.inputs import output_tensors

FunctionCall = tuple[Any, ...]  # name, operands and numbers

_PASSED_ON = frozenset((  # functions that leave every unit to itself: the result stands for the first operand
    "dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "alpha_dropout_", "feature_dropout",
    "feature_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_", "native_dropout",
))  # fmt: skip
_OF_ITS_INPUT = frozenset(("batch_norm", "instance_norm", "rrelu", "rrelu_"))  # the mode chooses statistics or slopes
_DROPS_INSIDE = frozenset((
    "multi_head_attention_forward", "scaled_dot_product_attention", "lstm", "gru", "rnn_tanh", "rnn_relu",
))  # fmt: skip


class Calls(TorchFunctionMode):
    """Records what is called with tensors inside: which function, on results of which calls, with which numbers.

    Dropout, and the statistics that BatchNorm takes, are left out: they differ between the modes in every model, and
    leave every unit to itself.

    Args:
        tensors: what the pass begins with, in order.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._names = WeakTensorKeyDictionary()  # tensors may outlive the pass
        for number, tensor in enumerate(tensors):
            self._names[tensor] = f"given {number}"
        self._calls = list[FunctionCall]()

    def ended(self, result: Any) -> list[FunctionCall]:
        """The calls, and last what the pass returned.

        Args:
            result: of the forward pass.
        """
        return [*self._calls, ("returned", *map(self._name, output_tensors(result)))]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        operands = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        names = [self._name(tensor) for tensor in operands]  # before a function in place changes them
        result = func(*args, **kwargs)
        name = _called(func)
        found = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if name in _PASSED_ON:
            self._give(found, names[0] if names else name)
        elif (found or "set" in name) and not (operands and all(tensor.dim() == 0 for tensor in operands)):
            if name in _OF_ITS_INPUT:
                names, leaves = names[:1], []
            numbers = [] if name in _DROPS_INSIDE else [_shown(leaf) for leaf in leaves if not isinstance(leaf, Tensor)]
            self._calls.append((name, *names, *numbers))
            self._give(found, len(self._calls))
        return result

    def _name(self, tensor: Tensor) -> Any:
        return self._names.get(tensor)

    def _give(self, tensors: list[Tensor], call: Any) -> None:
        for place, tensor in enumerate(tensors):
            self._names[tensor] = (call, place) if place else call


def _shown(value: Any) -> str:
    """A number, a word, a slice; of another object its type, since it may be made anew by each call."""
    plain = value is None or isinstance(value, (bool, int, float, complex, str, slice, torch.dtype))
    return repr(value) if plain else type(value).__name__


def _called(func: Any) -> str:
    """The name of a function; of an attribute of tensors, the attribute's."""
    name = getattr(func, "__name__", type(func).__name__)
    return f"{getattr(func.__self__, '__name__', '')} {name}" if name in ("__get__", "__set__") else str(name)


def given(model: nn.Module, buffers: dict[str, Tensor], inputs: Any) -> list[Tensor]:
    """What a forward pass begins with: parameters, buffers and inputs, in the same order in both modes.

    Args:
        model: whose parameters they are.
        buffers: of the call.
        inputs: of the call.
    """
    tensors = [*model.parameters(), *buffers.values(), *tree_leaves(inputs)]
    return [tensor for tensor in tensors if isinstance(tensor, Tensor)]
