"""Copy a model, or say which of its attributes cannot be copied."""

import copy
from typing import Any

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
                    None if name == "_modules" else copy.deepcopy(value, dict(memo))
                except Exception as cause:
                    what = f"{path}.{name}".lstrip(".")
                    raise ConfigurationError(
                        f"the model cannot be copied because of its attribute {what}, a {type(value).__name__}: "
                        f"{cause}. Take it off the model before the copy, or give its class a __deepcopy__"
                    ) from error
        raise
