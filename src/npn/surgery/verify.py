"""Compare a model's shapes with its structure."""

from torch import nn

from npn._utils.models import model_tensors
from npn.errors import ResizeError
from npn.structure import Structure

OTHER = (
    "the model has other parameters than when it was attached: {what}, as after quantization, an adapter such as LoRA, "
    "or a parametrization. Do that to the plain model that plastic.export() returns, or call plastic.detach() before "
    "and npn.attach after it"
)
SET_UP = (
    "the model has a buffer that it had not when it was attached: {name} is new, as where the forward pass registers "
    "it. Call the model once before npn.attach"
)


def check_shapes(model: nn.Module, structure: Structure) -> None:
    """Raise unless every tensor is there and has the shape that the structure gives it.

    Args:
        model: the model.
        structure: its structure.

    Raises:
        ResizeError: a tensor that units lie in is gone, one is new, or a shape differs; the message names the first.
    """
    shapes, tensors = structure.physical(), model_tensors(model)
    gone = next((s.tensor for group in structure.groups for s in group.slots if s.tensor not in tensors), None)
    if gone is not None:
        raise ResizeError(OTHER.format(what=f"there is no {gone}"))
    for name, tensor in tensors.items():
        expected = shapes.get(name)
        if expected is None:
            if not isinstance(tensor, nn.Parameter):
                raise ResizeError(SET_UP.format(name=name))
            raise ResizeError(OTHER.format(what=f"{name} is new"))
        if tuple(tensor.shape) != expected:
            raise ResizeError(
                f"{name} has shape {tuple(tensor.shape)} where {expected} was planned; was the model changed by hand "
                "since npn.attach? Attach it again"
            )
