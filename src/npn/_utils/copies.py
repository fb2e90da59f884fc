"""Copy a model, or say which of its attributes cannot be copied; copy an object but for some of its attributes."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from npn.errors import ConfigurationError


def model_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy` of a model.

    Args:
        model: the model.
        memo: what the copy gets instead of some objects, by `id`; see `copy.deepcopy`.

    Raises:
        ConfigurationError: naming the attribute that cannot be copied.

    Example:
        >>> model_copy(nn.Linear(2, 3), {})
        Linear(in_features=2, out_features=3, bias=True)
    """
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception as error:
        for path, module in model.named_modules():
            for name, value in vars(module).items():
                try:
                    None if name == "_modules" else copy.deepcopy(value, {**memo, id(model): model})
                except Exception as cause:
                    what = f"{path}.{name}".lstrip(".")
                    raise ConfigurationError(
                        f"the model cannot be copied because of its attribute {what}, a {type(value).__name__}: "
                        f"{cause}. Take it off the model before the copy, or give its class a __deepcopy__"
                    ) from error
        raise


Held = TypeVar("Held")


def deep_copy(held: Held, memo: dict[int, Any], fresh: Mapping[str, Any]) -> Held:
    """Copy an object with all its attributes, as `copy.deepcopy` does, but for those that the copy gets anew.

    Args:
        held: the object.
        memo: see `copy.deepcopy`.
        fresh: name of an attribute -> its value in the copy.

    Returns:
        The copy.
    """
    new = object.__new__(type(held))
    memo[id(held)] = new
    for name, value in vars(held).items():
        setattr(new, name, fresh[name] if name in fresh else copy.deepcopy(value, memo))
    return new
