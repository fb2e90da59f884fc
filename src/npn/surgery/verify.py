"""Compare a model's shapes with its structure."""

from torch import nn

from npn._utils.models import model_tensors
from npn.errors import ResizeError
from npn.structure import Structure


def check_shapes(model: nn.Module, structure: Structure) -> None:
    """Raise unless every tensor has the shape that the structure gives it.

    Args:
        model: the model.
        structure: its structure.

    Raises:
        ResizeError: a shape differs; the message names the first tensor.
    """
    shapes = structure.physical()
    for name, tensor in model_tensors(model).items():
        expected = shapes.get(name)
        if expected is None or tuple(tensor.shape) != expected:
            raise ResizeError(
                f"{name} has shape {tuple(tensor.shape)} where {expected} was planned; was the model changed by hand "
                "since npn.attach? Attach it again"
            )
