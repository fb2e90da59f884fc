"""Modules that have no tensors of their own, and keep numbers: which units go into each, so that these can follow."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from npn._utils.models import is_torch_layer, model_tensors
from npn.modules import integers
from npn.structure import Key

_NORMS = (nn.GroupNorm, nn.modules.batchnorm._NormBase)  # they count the channels along axis 1
_OF_TORCH = (*_NORMS, nn.Unflatten)  # torch's other layers without tensors keep no number of units
_MARK = "into"


@contextlib.contextmanager
def probed(model: nn.Module, made: Sequence[Node]) -> Iterator[None]:
    """Inside, a node of its own marks each tensor that goes into such a module; see `probe_of`.

    Args:
        model: that is being traced.
        made: the nodes of the graph, which get more.
    """
    handles = []
    for path, module in model.named_modules():
        if _is_bare(module):
            handles.append(module.register_forward_pre_hook(_marking(path, module, made), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_bare(module: nn.Module) -> bool:
    kept = isinstance(module, _OF_TORCH) or not is_torch_layer(module)
    return kept and not model_tensors(module) and any(number > 1 for number in integers(module).values())


def _marking(path: str, module: nn.Module, made: Sequence[Node]) -> Any:
    axis = 1 if isinstance(module, _NORMS) else None

    def mark(module: nn.Module, args: Any, kwargs: Any) -> None:
        for tensor in (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)):
            before = len(made)
            tensor.detach()  # whose result nothing uses
            for node in made[before:][-1:]:
                node.meta[_MARK] = path, axis

    return mark


def probe_of(node: Node) -> tuple[str, int | None] | None:
    """The module into which the operand of a node goes, and the axis of its units there; None for other nodes.

    Args:
        node: of a traced graph.
    """
    found: tuple[str, int | None] | None = node.meta.get(_MARK)
    return found


def places_of(
    probes: Sequence[tuple[str, int | None, Sequence[Tensor]]],
    unit: np.ndarray,
    slots: Sequence[Key],
    members: Mapping[int, np.ndarray],
) -> dict[str, tuple[Key, ...]]:
    """Where the units lie that go into such modules.

    Args:
        probes: (path of the module, axis of its units or None for any, labels of what goes in; axes along which they
            do not vary may have size 1).
        unit: int64 (labels,), unit of every label.
        slots: all places.
        members: number of the place -> the units along it.

    Returns:
        Path -> places; with an axis, those along which the units lie in the same order.
    """
    found: dict[str, dict[Key, None]] = {}
    for path, axis, parts in probes:
        lines = [unit[_along(part, axis)] for part in parts if part.numel()]
        met = np.zeros(int(unit.max()) + 1, dtype=bool)
        for line in lines:
            met[line[line > 0]] = True
        for number, units in members.items():
            alike = (len(line) == len(units) and ((line == units) | (line == 0)).all() for line in lines)
            if met[units].any() if axis is None else any(alike):
                found.setdefault(path, {})[slots[number]] = None
    return {path: tuple(places) for path, places in found.items()}


def _along(part: Tensor, axis: int | None) -> np.ndarray:
    """Labels along one axis, on the others at the first entry; or all of them."""
    line = part.reshape(-1) if axis is None else part.movedim(axis, -1).reshape(-1, part.shape[axis])[0]
    found: np.ndarray = line.numpy()
    return found
