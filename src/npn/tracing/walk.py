"""Walk a captured graph once and record every unit in a ledger."""

import operator
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_map

from npn.tracing.capture import Capture, source_line
from npn.tracing.labels import Ledger, Part
from npn.tracing.rules import MOVEMENT, RULES, Call, pointwise, unknown
from npn.tracing.rules_mixing import written  # the import registers its rules, too
from npn.tracing.values import Value, merge

_FOLD_LIMIT = 1 << 22  # elements of a constant that are worth computing
_RANDOM = ("empty_like", "rand_like", "randn_like", "new_empty", "empty", "empty_strided", "new_empty_strided")
_FILLED = {"zeros_like": 0, "new_zeros": 0, "ones_like": 1, "new_ones": 1, "full_like": None, "new_full": None}
_INDEXING = ("index", "index_select", "gather", "take_along_dim", "embedding")  # an index may follow the size


@dataclass(frozen=True)
class Walked:
    """A walked graph.

    Attributes:
        ledger: labels and how they join.
        positions: how often each weight is applied, by name (MACs per element of the weight).
        fingerprint: the ops in order with their float arguments; equal for the same computation at other widths.
        unreached: parameters that took no part.
    """

    ledger: Ledger
    positions: dict[str, float]
    fingerprint: tuple[str, ...]
    unreached: tuple[str, ...] = ()


def walk(captured: Capture, tensors: Mapping[str, Tensor]) -> Walked:
    """Propagate labels through the graph; `tensors` are the model's own, for integer buffers and constants."""
    ledger = Ledger()
    env: dict[Node, Any] = {}
    origin: dict[Node, str] = {}
    positions: dict[str, float] = {}
    fingerprint: list[str] = []
    unreached: list[str] = []
    names = iter(captured.names)
    for node in captured.module.graph.nodes:
        if node.op == "placeholder":
            name = next(names, None)
            env[node] = _leaf(ledger, node, name, tensors)
            if name is not None:
                origin[node] = name
                if not node.users and isinstance(tensors[name], nn.Parameter):
                    unreached.append(name)
        elif node.op == "get_attr":
            env[node] = _constant(getattr(captured.module, node.target))
        elif node.op == "output":
            for value in tree_map(lambda n: env[n] if isinstance(n, Node) else n, node.args[0]):
                if isinstance(value, Value):
                    for part in value.parts:
                        ledger.freeze(part.labels, "it is the model's output")
        else:
            env[node] = _call(ledger, node, env)
            fingerprint.append(_print(node, env))
            _trace_origin(node, origin, positions)
    return Walked(ledger, positions, tuple(fingerprint), tuple(unreached))


def _leaf(ledger: Ledger, node: Node, name: str | None, tensors: Mapping[str, Tensor]) -> Any:
    val = node.meta.get("val")
    if not isinstance(val, Tensor):
        return None
    shape = tuple(val.shape)
    if name is None:
        return Value(shape)
    if not val.is_floating_point() and not val.is_complex():
        return _constant(tensors[name].detach())
    parts = []
    for axis, size in enumerate(shape):
        if size > 1:
            labels = ledger.fresh(name, axis, size)
            view = labels.reshape([-1 if a == axis else 1 for a in range(len(shape))])
            parts.append(Part(view.expand(shape), weight=True, table=not isinstance(tensors[name], nn.Parameter)))
    return Value(shape, tuple(parts))


def _constant(tensor: Tensor) -> Value:
    tensor = tensor.detach().cpu()
    return Value(tuple(tensor.shape), const=tensor)


def _call(ledger: Ledger, node: Node, env: dict[Node, Any]) -> Any:
    args, kwargs = tree_map(lambda n: env[n] if isinstance(n, Node) else n, (tuple(node.args), dict(node.kwargs)))
    if node.target is operator.getitem:
        return args[0][args[1]] if isinstance(args[0], (list, tuple)) else args[0]
    name = _name(node)
    if name in _IN_PLACE_MOVES:
        moved = RULES[name[:-1]](Call(ledger, node, args, kwargs, name[:-1], source_line(node)))
        env[node.args[0]] = moved  # type: ignore[index]
        return moved
    call = Call(ledger, node, args, kwargs, name, source_line(node))
    values = call.values
    if name == "copy_":  # functionalised buffer updates come last; some kernels write into slices on the way
        buffer = isinstance(node.args[0], Node) and node.args[0].op == "placeholder"
        value = merge(ledger, args[:2] if buffer else args[1:2], args[0].shape, call.where)
        return _write(call, node.args[0], value, env)
    tags = getattr(node.target, "tags", ())
    if name in _RANDOM or (torch.Tag.nondeterministic_seeded in tags and all(v.neutral for v in values)):
        return call.plain(free=True)
    if name in _FILLED:
        fill = _FILLED[name]
        return Value(call.shapes[0], const=torch.tensor(args[-1] if fill is None else fill).expand(call.shapes[0]))
    if all(v.const is not None for v in values) and _small(call):
        return _fold(node, args, kwargs)
    if all(v.neutral for v in values):
        return call.plain(free=bool(values) and all(v.free for v in values))
    if name not in MOVEMENT:
        for part in (p for v in values for p in v.parts):
            ledger.touch(part.labels)
    if name in RULES:
        return RULES[name](call)
    if torch.Tag.pointwise in tags or name in _ELEMENTWISE:
        return pointwise(call)
    return unknown(call, f"no rule for {name}, called at {call.where}")


def _write(call: Call, target: Any, value: Value, env: dict[Node, Any]) -> Value:
    """Assign to a node, and to what it is a slice of."""
    if isinstance(target, Node) and _name(target) == "slice":
        base = target.args[0]
        given: list[Any] = [*target.args[1:]]
        dim, start, end, step = given + [0, None, None, 1][len(given) :]
        assert isinstance(base, Node) and isinstance(dim, int)
        _write(call, base, written(call, env[base], value, dim, start, end, step), env)
    env[target] = value
    return value


_IN_PLACE_MOVES = ("transpose_", "t_", "squeeze_", "unsqueeze_")  # these survive functionalisation
_ELEMENTWISE = ("clone", "_to_copy", "detach", "alias", "lift_fresh_copy", "native_dropout", "copy", "contiguous",
                "where", "hardswish", "masked_fill", "fill", "bernoulli", "prelu", "_prelu_kernel",
                "rrelu_with_noise")  # fmt: skip


def _small(call: Call) -> bool:
    return all(torch.Size(shape).numel() <= _FOLD_LIMIT for shape in call.shapes)


def _fold(node: Node, args: Any, kwargs: Any) -> Any:
    """Compute a constant subgraph: position ids, masks, tables."""
    args, kwargs = tree_map(lambda v: v.const if isinstance(v, Value) else v, (args, kwargs))
    kwargs = {k: torch.device("cpu") if k == "device" else v for k, v in kwargs.items() if k != "pin_memory"}
    result = node.target(*args, **kwargs)  # type: ignore[operator]
    return tree_map(lambda t: _constant(t) if isinstance(t, Tensor) else t, result)


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[1] if schema is not None else getattr(node.target, "__name__", str(node.target))


def _print(node: Node, env: Mapping[Node, Any]) -> str:
    """An op, the numbers that it computes with, and where: the same at every width, or the computation is another."""
    name = _name(node)
    numbers = (int, float) if torch.Tag.pointwise in getattr(node.target, "tags", ()) or name in _FILLED else float
    given = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, numbers) and not isinstance(a, bool)]
    shown = [str(a) for a in given]
    values = [env[n] for n in node.all_input_nodes]
    if name not in _INDEXING and not all(isinstance(v, Value) and v.neutral for v in values):
        shown += [_digest(v.const) for v in values if isinstance(v, Value) and v.const is not None]
    return f"{name}({', '.join(shown)}) at {source_line(node)}"


def _digest(const: Tensor) -> str:
    """The elements of a constant, the same ones whatever the length of axes on which it does not vary."""
    for axis in range(const.dim()):
        first = const.narrow(axis, 0, min(1, const.shape[axis]))
        const = first if bool((const == first).all()) else const
    return str(const.item()) if const.numel() == 1 else f"constant {zlib.crc32(const.contiguous().numpy().tobytes()):x}"


_PASS = ("t", "transpose", "permute", "view", "reshape", "_unsafe_view", "clone", "_to_copy", "detach", "expand",
         "unsqueeze", "squeeze", "_weight_norm_interface", "getitem", "mul", "div", "alias")  # fmt: skip
_CONTRACTIONS = {"mm": (1, 0), "bmm": (1, 0), "mv": (0, 1), "addmm": (2, 1), "baddbmm": (2, 1), "convolution": (1, 0)}


def _trace_origin(node: Node, origin: dict[Node, str], positions: dict[str, float]) -> None:
    """Follow weights to the products that use them, and count how often each element is used."""
    name = _name(node)
    inputs = [a for a in node.args if isinstance(a, Node)]
    if name in _PASS and inputs and inputs[0] in origin:
        origin[node] = origin[inputs[0]]
        return
    if name in _CONTRACTIONS:
        for position in _CONTRACTIONS[name]:
            weight = node.args[position]
            if isinstance(weight, Node) and weight in origin:
                val = node.meta["val"]
                out = val[0] if isinstance(val, (tuple, list)) else val
                source = origin[weight]
                used = _macs(name, node, out) / max(weight.meta["val"].numel(), 1)
                positions[source] = positions.get(source, 0.0) + used
                return


def _macs(name: str, node: Node, out: Tensor) -> float:
    """Multiply-adds of one product."""
    if name == "convolution":
        x, weight = node.args[0].meta["val"], node.args[1].meta["val"]  # type: ignore[union-attr]
        transposed = bool(node.args[6])
        return float((x if transposed else out).numel() * weight[0].numel())
    a = node.args[_CONTRACTIONS[name][1]].meta["val"]  # type: ignore[union-attr]
    b = node.args[_CONTRACTIONS[name][0]].meta["val"]  # type: ignore[union-attr]
    contracted = (b if name == "mv" else a).shape[-1]
    return float(out.numel() * contracted)
