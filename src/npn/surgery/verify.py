"""Check a resized model against the structure that was planned."""

from torch import nn

from npn.errors import ResizeError
from npn.structure import Structure
from npn.tracing.capture import model_tensors


def check_shapes(model: nn.Module, structure: Structure) -> None:
    """Every tensor has the shape that the structure says.

    Raises:
        ResizeError: naming the first that has not.
    """
    shapes = structure.physical()
    for name, tensor in model_tensors(model).items():
        expected = shapes.get(name)
        if expected is None or tuple(tensor.shape) != expected:
            raise ResizeError(
                f"{name} has shape {tuple(tensor.shape)} where {expected} was planned; was the model changed by hand "
                "since npn.attach? Attach it anew"
            )
