"""The multiply-adds of a graph: how often each weight is used, and the products that no single weight accounts for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Node

from npn.tracing.labels import Value, squeeze_constant

_PASS = ("t", "transpose", "permute", "view", "reshape", "_unsafe_view", "clone", "_to_copy", "detach", "expand",
         "unsqueeze", "squeeze", "_weight_norm_interface", "getitem", "mul", "div", "alias", "index", "index_select",
         "select", "slice")  # fmt: skip
# positions of the second and the first factor among the arguments
_CONTRACTIONS = {"mm": (1, 0), "bmm": (1, 0), "mv": (0, 1), "addmm": (2, 1), "baddbmm": (2, 1), "convolution": (1, 0),
                 "_grouped_mm": (1, 0), "grouped_mm_fallback": (1, 0), "_trilinear": (1, 0)}  # fmt: skip
_ONE_AXIS = {"mm": (0, 1), "addmm": (0, 1), "convolution": (1, 1)}  # contracted axis of both, where no other is shared


@dataclass(frozen=True)
class LabelledProduct:
    """A product of two values or of two weights, or of a weight that is used once for each of some units.

    Attributes:
        macs: its multiply-adds.
        labels: of its factors, without axes along which they do not vary.
        tensor: name of the weight that has last been used for one of the factors; None if none was.
    """

    macs: float
    labels: tuple[Tensor, ...]
    tensor: str | None


@dataclass
class MultiplyAdds:
    """The multiply-adds of the part of a graph that has been seen.

    Attributes:
        origin: node -> name and node of the tensor that it is made of without arithmetic, for weights.
        positions: how often each weight is used, by name (MACs per element of the weight).
        products: all that is not in `positions`.
    """

    origin: dict[Node, tuple[str, Node]] = field(default_factory=dict)
    positions: dict[str, float] = field(default_factory=dict)
    products: list[LabelledProduct] = field(default_factory=list)
    _used: dict[Node, str] = field(default_factory=dict)  # the last weight on the way to each node

    def see(self, node: Node, name: str, env: Mapping[Node, Any]) -> None:
        """Take account of one node.

        Args:
            node: the node; those before it have been seen.
            name: of its op.
            env: what is known of the results of all nodes so far.
        """
        inputs = [a for a in node.args if isinstance(a, Node)]
        if name in _PASS and inputs and inputs[0] in self.origin:
            self.origin[node] = self.origin[inputs[0]]
        used = next((self._used[a] for a in inputs if a in self._used), None)
        if name in _CONTRACTIONS:
            factors = [node.args[position] for position in _CONTRACTIONS[name]]
            weights = [self.origin[factor] for factor in factors if isinstance(factor, Node) and factor in self.origin]
            macs, values = _macs(name, node), [env.get(factor) for factor in factors]  # type: ignore[arg-type]
            used = weights[0][0] if weights else used
            if len(weights) == 1 and not _repeated(name, values, [factor in self.origin for factor in factors]):
                source, whole = weights[0]
                each = macs / max(whole.meta["val"].numel(), 1)
                self.positions[source] = self.positions.get(source, 0.0) + each
            else:
                parts = [part for value in values if isinstance(value, Value) for part in value.parts]
                labels = tuple(squeeze_constant(part.labels) for part in parts)
                self.products.append(LabelledProduct(macs, labels, used))
        if used is not None:
            self._used[node] = used


def _repeated(name: str, values: list[Any], weights: list[bool]) -> bool:
    """Whether a weight is used once for each of some units, which lie along another axis of the data."""
    if name not in _ONE_AXIS:
        return False
    data = next(i for i, weight in enumerate(weights) if not weight)
    value = values[data]
    return isinstance(value, Value) and any(part.axes - {_ONE_AXIS[name][data]} for part in value.parts)


def _macs(name: str, node: Node) -> float:
    """Multiply-adds of one product."""
    val = node.meta["val"]
    out = val[0] if isinstance(val, (tuple, list)) else val
    if name == "_trilinear":
        return float(out.numel() * math.prod(node.args[1].meta["val"].shape[1:]))  # type: ignore[union-attr]
    if name == "convolution":
        x, weight = node.args[0].meta["val"], node.args[1].meta["val"]  # type: ignore[union-attr]
        transposed = bool(node.args[6])
        return float((x if transposed else out).numel() * math.prod(weight.shape[1:]))
    a = node.args[_CONTRACTIONS[name][1]].meta["val"]  # type: ignore[union-attr]
    b = node.args[_CONTRACTIONS[name][0]].meta["val"]  # type: ignore[union-attr]
    contracted = (b if name == "mv" else a).shape[-1]
    return float(out.numel() * contracted)
