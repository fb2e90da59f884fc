"""Find the layers whose single input columns can have gates."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from npn._utils import cpu
from npn._utils.models import in_mode
from npn._utils.patterns import matches
from npn.errors import ConfigurationError
from npn.modules.select import input_dim, set_select
from npn.structure import Columns, Structure
from npn.tracing.capture.graph import capture


def with_columns(model: nn.Module, example_inputs: Any, structure: Structure, patterns: Sequence[str]) -> Structure:
    """Add gates on the input columns of the layers that match.

    Args:
        model: any module; unchanged afterwards.
        example_inputs: see `npn.tracing.trace`.
        structure: the structure without columns.
        patterns: patterns of paths of linear and convolution layers.

    Returns:
        The structure with columns.

    Raises:
        ConfigurationError: a pattern matches no layer, or a layer's weight is read other than by calling the layer.
    """
    layers = [path for path, module in model.named_modules() if input_dim(module) is not None]
    for pattern in patterns:
        if not any(matches(path, [pattern]) for path in layers):
            known = ", ".join(layers) or "none"
            raise ConfigurationError(
                f"columns={pattern!r} matches no layer whose inputs can be selected; the model has: {known}"
            )
    columns = []
    for path in layers:
        if matches(path, patterns):
            tensor = f"{path}.weight"
            if not path or tensor not in structure.shapes or not _narrows(model, example_inputs, structure, tensor):
                raise ConfigurationError(
                    f"the inputs of {path or 'the model'!r} cannot be selected: its weight must be its own and read "
                    "by calling the layer, in a model that is more than this layer; leave it out of columns="
                )
            columns.append(Columns(f"{path}.columns", tensor, 1, cpu.arange(structure.shapes[tensor][1])))
    return replace(structure, columns=tuple(columns))


def _narrows(model: nn.Module, example_inputs: Any, structure: Structure, tensor: str) -> bool:
    """Whether the model works, on fake tensors, when one layer selects all but one of its columns."""
    rows, columns, *kernel = structure.shapes[tensor]
    module = model.get_submodule(tensor.removesuffix(".weight"))
    set_select(module, cpu.arange(columns - 1))
    try:
        shapes = {tensor: (rows, columns - 1, *kernel)}
        with in_mode(model, structure.training):
            return columns > 1 and capture(model, example_inputs, shapes).outputs == structure.outputs
    except Exception:
        return False
    finally:
        set_select(module, None)
