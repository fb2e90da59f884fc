"""Integers with which torch's layers describe their parameters, and which follow a resize: `out_features`, ..."""

from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any

from torch import nn

from npn._utils.models import home_of

# attributes in which PyTorch's layers record their sizes: (parameter, axis) -> attribute
_DESCRIBED: tuple[tuple[type[nn.Module], dict[tuple[str, int], str]], ...] = (
    (nn.Linear, {("weight", 0): "out_features", ("weight", 1): "in_features"}),
    (nn.modules.conv._ConvTransposeNd, {("weight", 0): "in_channels", ("weight", 1): "out_channels"}),
    (nn.modules.conv._ConvNd, {("weight", 0): "out_channels", ("weight", 1): "in_channels"}),
    (nn.modules.batchnorm._NormBase, {("weight", 0): "num_features", ("running_mean", 0): "num_features"}),
    (nn.GroupNorm, {("weight", 0): "num_channels"}),
    (nn.Bilinear, {("weight", 0): "out_features", ("weight", 1): "in1_features", ("weight", 2): "in2_features"}),
    (nn.RNNCellBase, {("weight_ih", 1): "input_size", ("weight_hh", 1): "hidden_size"}),
    (nn.EmbeddingBag, {("weight", 1): "embedding_dim"}),
    (nn.Embedding, {("weight", 1): "embedding_dim"}),
    (nn.LayerNorm, {("weight", 0): "normalized_shape"}),
    (nn.RMSNorm, {("weight", 0): "normalized_shape"}),
    (nn.PReLU, {("weight", 0): "num_parameters"}),
)
# attributes in which layers without parameters record the size of their input
_OF_THE_INPUT = ((nn.modules.batchnorm._NormBase, "num_features"), (nn.GroupNorm, "num_channels"))


def described_sizes(
    model: nn.Module,
    changes: Mapping[tuple[str, int], int],
    apart: Set[tuple[str, str]] = frozenset(),
    bare: Mapping[str, Sequence[tuple[str, int]]] = MappingProxyType({}),
) -> list[tuple[nn.Module, str, int]]:
    """Changes of `out_features`, `in_channels`, `num_features`, ... that follow from changes of parameters.

    Args:
        model: whose layers describe their parameters.
        changes: (name of the parameter, axis) -> change of its length.
        apart: (module path, attribute) of integers that follow in another way.
        bare: layers without parameters and where their input lies, see `Structure`.

    Returns:
        (module, attribute, change) entries.
    """
    found: dict[tuple[str, str], tuple[nn.Module, str, int]] = {}
    for (tensor, axis), delta in changes.items():
        path, leaf = home_of(tensor)
        module = model.get_submodule(path)
        table = next((t for kind, t in _DESCRIBED if isinstance(module, kind)), {})
        attribute = table.get((leaf, axis))
        if attribute is None or (path, attribute) in apart or not _counts(getattr(module, attribute)):
            continue
        convolution = isinstance(module, nn.modules.conv._ConvNd)
        per_group = getattr(module, "groups", 1) if convolution and axis == 1 else 1
        found[path, attribute] = (module, attribute, delta * per_group)
        if convolution and (path, "groups") in apart and axis == 0:  # then inputs and outputs follow together
            other = "in_channels" if attribute == "out_channels" else "out_channels"
            if (path, other) not in apart:
                found[path, other] = (module, other, delta * getattr(module, other) // getattr(module, attribute))
    for path, places in bare.items():
        module = model.get_submodule(path)
        attribute = next((name for kind, name in _OF_THE_INPUT if isinstance(module, kind)), None)
        deltas = {changes.get(place, 0) for place in places}
        if attribute is not None and len(deltas) == 1 and (path, attribute) not in apart:
            found[path, attribute] = (module, attribute, deltas.pop())
    return list(found.values())


def _counts(value: Any) -> bool:
    return not isinstance(value, tuple) or len(value) == 1
