"""What an op computes, in words that are the same at every width if the computation is the same."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from npn.tracing.capture.lines import op_name, source_line
from npn.tracing.labels import Value
from npn.tracing.labels.places import numbered, repetitions
from npn.tracing.rules import MOVEMENT, RULES
from npn.tracing.rules.constants import SHAPE_ONLY
from npn.tracing.rules.indexing import uniform
from npn.tracing.rules.matmul import ALONE, WITH_BIAS
from npn.tracing.rules.mixing import REDUCTIONS, reduced_axes

_INDEXING = ("index", "index_select", "gather", "take_along_dim", "embedding")  # an index may follow the size
_SIZED = frozenset((  # ops among whose whole numbers some may be numbers of units
    "convolution", "native_group_norm", "native_layer_norm", "_fused_rms_norm", "rms_norm", "native_channel_shuffle",
    "topk", "kthvalue", "slice_scatter", "select_scatter",
))  # fmt: skip
# position of the first factor; its last axis and the last but one of the second are summed over
_PRODUCTS = dict.fromkeys(ALONE, 0) | dict.fromkeys(WITH_BIAS, 1)
_COUNTLESS = ("mean", "amax", "amin", "max", "min", "any", "all", "median", "mode")  # of n equal numbers, that number
_COPIES = ("clone", "contiguous", "detach", "alias")  # whether one is made may depend on strides
_LITERAL = ("im2col", "diagonal", "rot90")  # ops that only move elements, by numbers that are none of units


def printed(node: Node, env: Mapping[Node, Any], name: str) -> str:
    """An op, what it computes with, and where: the same at every width, or the computation is another.

    Sizes and positions along axes of units are left out, and constants until something other than a constant is
    computed with them: those that only say where to look may follow the width.

    Args:
        node: the op.
        env: what is known of its operands and its result.
        name: of the ATen op.
    """
    shown = list[str]()
    if not all(isinstance(result, Value) and result.const is not None for result in tree_leaves(env[node])):
        shown = [str(given) for given in _numbers(node, name)]
        used = 0 if name in SHAPE_ONLY else 1 if name in _INDEXING else None
        sources = [env[n] for n in node.all_input_nodes[:used]]
        shown += [_digest(v.const) for v in sources if isinstance(v, Value) and v.const is not None]
        shown += [*_positions(node, env, name), *_repetitions(node, env, name), *_lengths(node, env)]
    return f"{name}({', '.join(shown)}) at {source_line(node)}"


def computed(graph: Graph) -> list[str]:
    """What a graph computes from its inputs but for moves of elements: ops, numbers that are no sizes, and lines.

    It is coarser than `printed`, and needs no labels, which cannot follow a single unit. Matrix products are multiplied
    and added: by strides and sizes PyTorch chooses between `addmm` and `mm`, and where one entry is summed, `mul`.

    Args:
        graph: see `npn.tracing.capture.graph.Capture`.
    """
    shown, from_inputs = list[str](), set[Node]()
    for node in graph.nodes:
        if node.op == "placeholder" or from_inputs.intersection(node.all_input_nodes):
            from_inputs.add(node)
        name = op_name(node) if node.op == "call_function" else ""
        if node in from_inputs and name and name not in MOVEMENT and name not in _COPIES:
            numbers = ", ".join(str(given) for given in _numbers(node, name))
            names = ["mul"] if name in ALONE else ["mul", "add"] if name in WITH_BIAS else [name]
            shown += [f"{each}({numbers}) at {source_line(node)}" for each in names]
    return shown


def _numbers(node: Node, name: str) -> list[Any]:
    """The numbers and words among the arguments, without those that may be sizes of units or positions among them."""
    tags = getattr(node.target, "tags", ())
    whole = torch.Tag.pointwise in tags or torch.Tag.nondeterministic_seeded in tags  # no size, no position
    schema = getattr(node.target, "_schema", None)
    scalar = {a.name for a in schema.arguments if "number" in str(a.type)} if schema else set()
    names = [a.name for a in schema.arguments] if schema else [""] * len(node.args)
    pairs = [*zip(names, node.args, strict=False), *node.kwargs.items()]
    factory = name in SHAPE_ONLY or torch.Tag.nondeterministic_seeded in tags or not node.all_input_nodes
    literal = schema and not factory and name not in _SIZED and (name not in MOVEMENT or name in _LITERAL)
    found: list[Any] = []
    for given, value in pairs:
        if isinstance(value, (float, bool, str)) or (isinstance(value, int) and (whole or given in scalar)):
            found.append(value)
        elif name == "convolution":  # groups may follow
            found += [value] if given in ("stride", "padding", "dilation", "output_padding") else []
        elif literal and _whole(value):
            found.append(value)
    return found


def _whole(value: Any) -> bool:
    """Whether this is a whole number, or several."""
    return type(value) is int or (isinstance(value, Sequence) and len(value) > 0 and all(type(v) is int for v in value))


def _fixed(value: Any, axis: int) -> bool:
    """Whether no units lie along an axis of an operand."""
    return isinstance(value, Value) and not value.neutral and value.fixed(axis % len(value.shape))


def _positions(node: Node, env: Mapping[Node, Any], name: str) -> list[str]:
    """Where ops read along axes of fixed size: these positions do not follow the width."""
    if not node.args or not isinstance(node.args[0], Node) or name not in _POSITIONS:
        return []
    value = env[node.args[0]]
    if not isinstance(value, Value) or not value.shape:
        return []
    return _POSITIONS[name](node, value, env)


def _arguments(node: Node) -> dict[str, Any]:
    """All arguments by name."""
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    defaults = {a.name: a.default_value for a in node.target._schema.arguments if a.has_default_value()}  # type: ignore[union-attr]
    return defaults | dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _sliced(node: Node, value: Value, env: Mapping[Node, Any]) -> list[str]:
    given = _arguments(node)
    axis = given["dim"] % len(value.shape)
    if not _fixed(value, axis):
        return []
    return [str(slice(given["start"], given["end"], given["step"]).indices(value.shape[axis]))]


def _along(*names: str) -> Callable[[Node, Value, Mapping[Node, Any]], list[str]]:
    """Print some arguments of an op that reads along one axis."""

    def shown(node: Node, value: Value, env: Mapping[Node, Any]) -> list[str]:
        given = _arguments(node)
        axis = given.get("dim", given.get("dimension", 0))
        return [str(given[name]) for name in names] if _fixed(value, axis) else []

    return shown


def _rolled(node: Node, value: Value, env: Mapping[Node, Any]) -> list[str]:
    given = _arguments(node)
    pairs = zip(given["dims"], given["shifts"], strict=True) if given["dims"] else []
    return [str(shift % value.shape[axis]) for axis, shift in pairs if _fixed(value, axis)]


def _padded(node: Node, value: Value, env: Mapping[Node, Any]) -> list[str]:
    given, rank = _arguments(node), len(value.shape)
    pad = given["pad"] if "pad" in given else given["padding"]
    sides = [(rank - 1 - i, pad[2 * i : 2 * i + 2]) for i in range(len(pad) // 2)]
    return [str(side) for axis, side in sides if value.shape[axis] == 1 or _fixed(value, axis)]


def _indexed(node: Node, value: Value, env: Mapping[Node, Any]) -> list[str]:
    given = _arguments(node)
    several: Any = given.get("indices")
    if isinstance(several, Sequence):
        pairs: list[tuple[int, Any]] = [(axis, index) for axis, index in enumerate(several) if isinstance(index, Node)]
    else:
        pairs = [(given.get("dim") or 0, several if "indices" in given else given["index"])]
    indices = [env[index] for axis, index in pairs if _fixed(value, axis)]
    return [_digest(index.const) for index in indices if isinstance(index, Value) and index.const is not None]


_POSITIONS: dict[str, Callable[[Node, Value, Mapping[Node, Any]], list[str]]] = {
    "slice": _sliced, "slice_scatter": _sliced, "select": _along("index"), "select_scatter": _along("index"),
    "unfold": _along("size", "step"), "topk": _along("k"), "kthvalue": _along("k"), "roll": _rolled,
    "constant_pad_nd": _padded, "index": _indexed, "index_select": _indexed, "gather": _indexed,
    "take_along_dim": _indexed,
    **{f"{kind}_pad{n}d": _padded for kind in ("reflection", "replication") for n in (1, 2, 3)},
}  # fmt: skip


def _lengths(node: Node, env: Mapping[Node, Any]) -> list[str]:
    """Sizes of the result's axes along which no units lie; of several results, where each is taken."""
    value, tensor = env[node], node.meta.get("val")
    if not isinstance(value, Value) or value.neutral or not isinstance(tensor, Tensor) or not node.users:
        return []
    source = env[node.args[0]] if node.args and isinstance(node.args[0], Node) else None
    padding = isinstance(source, Value) and bool(source.parts) and not value.parts and op_name(node) in MOVEMENT
    if padding or not tensor.numel():  # it has no units, so that all its sizes look fixed
        return []
    if value.unmerged is not None and value.unmerged.loose:  # one entry is repeated for each of some units
        value = value.unmerged
        axes = [a for a in range(len(value.shape)) if value.fixed(a)]
    else:
        axes = [a for a in range(len(value.shape)) if value.fixed(a) and not uniform(value, node, a)]
    return ["sizes " + "x".join(f"{a}:{value.shape[a]}" for a in axes)] if axes else []


def _repetitions(node: Node, env: Mapping[Node, Any], name: str) -> list[str]:
    """How often entries stand along axes whose entries the op counts: a sum does, a mean does not."""
    found = list[str]()
    for position, source in enumerate(node.all_input_nodes):
        value = env[source]
        if isinstance(value, Value) and not value.neutral:
            axes = _counted(node, env, name, source, len(value.shape))
            found += [f"{position}.{axis} {times} times" for axis, times in _times(value, axes) if times > 1]
    return found


def _counted(node: Node, env: Mapping[Node, Any], name: str, source: Node, rank: int) -> list[int]:
    """Axes of an operand whose entries the op counts."""
    if name in _PRODUCTS:  # those that are summed over; a weight has an entry of its own for each
        factors = list(node.args[_PRODUCTS[name] : _PRODUCTS[name] + 2])
        if any(isinstance(env[f], Value) and env[f].weight for f in factors if isinstance(f, Node)):
            return []
        return [max(rank - 1 - i, 0) for i, factor in enumerate(factors) if factor is source]
    if name in REDUCTIONS:
        return [] if name in _COUNTLESS else reduced_axes(name, node.args, node.kwargs, rank)
    return list(range(rank)) if _unknown(node, name) else []


def _unknown(node: Node, name: str) -> bool:
    """Whether tracing has no rule for an op."""
    return name not in RULES and torch.Tag.pointwise not in getattr(node.target, "tags", ()) and name not in SHAPE_ONLY


def _times(value: Value, axes: Sequence[int]) -> list[tuple[int, int]]:
    """How often each entry, or each unit, stands along axes."""
    before = value.unmerged if value.unmerged is not None and value.unmerged.loose else value
    found = list[tuple[int, int]]()
    for axis in axes:
        parts = [part for part in value.parts if axis in part.axes]
        entries = [part.labels for part in parts]
        if not parts and before.loose:
            entries = [numbered(before.shape, before.loose).reshape(value.shape)]
        found += [(axis, repetitions(each, axis)) for each in entries]
    return found


def _digest(const: Tensor) -> str:
    """The elements of a constant, the same ones whatever the length of axes on which it does not vary."""
    for axis in range(const.dim()):
        first = const.narrow(axis, 0, min(1, const.shape[axis]))
        const = first if bool((const == first).all()) else const
    if const.numel() == 1:
        return str(const.item())
    return f"constant {zlib.crc32(const.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()):x}"
