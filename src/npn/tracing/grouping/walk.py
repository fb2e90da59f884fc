"""Walk a captured graph once and record every unit in a ledger."""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map

from npn._utils.layout import along
from npn.tracing.capture.bare import probe_of
from npn.tracing.capture.deadline import Deadline
from npn.tracing.capture.graph import Capture
from npn.tracing.capture.lines import op_name, source_line
from npn.tracing.grouping.fingerprint import printed
from npn.tracing.grouping.multiply_adds import MultiplyAdds
from npn.tracing.labels import Ledger, Part, Value, merge, squeeze_constant
from npn.tracing.labels.coupler import Coupler
from npn.tracing.rules import MOVEMENT, RULES, Call, pointwise, unknown
from npn.tracing.rules.constants import SHAPE_ONLY, compute, constant, draw
from npn.tracing.rules.mixing import written

_RESHAPING = ("view", "reshape", "_unsafe_view", "unflatten", "chunk", "split", "split_with_sizes", "pixel_shuffle",
              "channel_shuffle", "native_channel_shuffle")  # fmt: skip


@dataclass(frozen=True)
class Walked:
    """A walked graph.

    Attributes:
        ledger: labels and how they join.
        multiply_adds: multiply-adds.
        fingerprint: the ops in order with their float arguments; equal for the same computation at other widths.
        unreached: parameters that took no part.
        numbers: integers above 1 in the shapes that the code asks for.
        probes: (path, axis, labels) of what goes into modules without tensors, see `npn.tracing.capture.bare`.
        values: what is known of the result of every node.
    """

    ledger: Ledger
    multiply_adds: MultiplyAdds
    fingerprint: tuple[str, ...]
    unreached: tuple[str, ...] = ()
    numbers: frozenset[int] = frozenset()
    probes: tuple[tuple[str, int | None, list[Tensor]], ...] = ()
    values: Mapping[Node, Any] = field(default_factory=dict, repr=False, compare=False)


def walk(
    captured: Capture, tensors: Mapping[str, Tensor], deadline: Deadline | None = None, coupler: Coupler | None = None
) -> Walked:
    """Propagate labels through the graph.

    Args:
        captured: the graph.
        tensors: the model's own, for integer buffers and constants.
        deadline: of the trace; None for none.
        coupler: unites places that are coupled; None if there are none.

    Raises:
        TraceError: the time is over.
    """
    deadline, coupler = deadline or Deadline(math.inf), coupler or Coupler({})
    ledger = Ledger(layers=captured.layers)
    env: dict[Node, Any] = {}
    multiply_adds = MultiplyAdds()
    fingerprint: list[str] = []
    unreached: list[str] = []
    numbers: set[int] = set()
    probes: list[tuple[str, int | None, list[Tensor]]] = []
    held: dict[str, Value] = {}  # tensors of the code; ops in place write to a copy of them
    names = iter(captured.names)
    idle, total = _idle(captured.graph), len(captured.graph.nodes)
    for i, node in enumerate(captured.graph.nodes):
        probe = probe_of(node)
        if probe is not None and isinstance(into := env.get(node.args[0]), Value):
            probes.append((*probe, [squeeze_constant(p.labels) for p in into.parts if probe[1] in {None, *p.axes}]))
        if node in idle:
            continue
        if node.op == "placeholder":
            name = next(names, None)
            env[node] = _leaf(ledger, node, name, tensors, coupler)
            if name is not None:
                multiply_adds.origin[node] = (name, node)
                if not node.users and isinstance(tensors[name], nn.Parameter):
                    unreached.append(name)
        elif node.op == "get_attr":
            target = str(node.target)
            if target not in held:
                held[target] = constant(captured.constants[target].clone())
            env[node] = held[target]
        elif node.op == "output":
            for value in tree_map(lambda n: env[n] if isinstance(n, Node) else n, node.args[0]):
                if isinstance(value, Value):
                    for part in value.parts:
                        ledger.freeze(part.labels, "it is the model's output")
        else:
            env[node] = _call(ledger, node, env)
            deadline.check(f"{i:,} of {total:,} operations followed", op_name(node), source_line(node))
            fingerprint.append(printed(node, env, _out_of_place(op_name(node))))
            multiply_adds.see(node, op_name(node), env)
            if op_name(node) in _RESHAPING:
                numbers.update(n for n in tree_leaves(node.args[1:]) if type(n) is int and n > 1)
    return Walked(ledger, multiply_adds, tuple(fingerprint), tuple(unreached), frozenset(numbers), tuple(probes), env)


def _idle(graph: Graph) -> set[Node]:
    """Nodes whose results nothing uses, where one value alone goes in: a mean over heads that is thrown away.

    What several values go into is walked in any case: a layer without use has parameters that have to follow.
    """
    idle: set[Node] = set()
    for node in reversed(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        quiet = node.target is operator.getitem or (schema is not None and not schema.is_mutable)
        if quiet and len(node.all_input_nodes) == 1 and all(user in idle for user in node.users):
            idle.add(node)
    return idle


def _leaf(ledger: Ledger, node: Node, name: str | None, tensors: Mapping[str, Tensor], coupler: Coupler) -> Any:
    val = node.meta.get("val")
    if not isinstance(val, Tensor):
        return None
    shape = tuple(val.shape)
    if name is None:
        return Value(shape)
    if not val.is_floating_point() and not val.is_complex():
        return constant(tensors[name])
    parts = []
    for axis, size in enumerate(shape):
        if size > 1:
            labels = ledger.fresh(name, axis, size)
            coupler.unite(ledger, (name, axis), labels)
            on_axis = along(labels, axis, len(shape)).expand(shape)
            parts.append(Part(on_axis, weight=True, table=not isinstance(tensors[name], nn.Parameter)))
    return Value(shape, tuple(parts))


def _of_shapes(result: Any, shapes: Sequence[tuple[int, ...]]) -> Any:
    """What a rule returned, if it has the shapes of the op's results."""
    found = [value.shape for value in (result if isinstance(result, (list, tuple)) else [result]) if value is not None]
    if found != list(shapes)[: len(found)]:
        raise ValueError(f"expected results of the shapes {list(shapes)}, got {found}")
    return result


def _call(ledger: Ledger, node: Node, env: dict[Node, Any]) -> Any:
    args: Any = map_arg(node.args, env.__getitem__)
    kwargs: Any = dict(map_arg(node.kwargs, env.__getitem__))
    if node.target is operator.getitem:
        return args[0][args[1]] if isinstance(args[0], (list, tuple)) else args[0]
    name = op_name(node)
    call = Call(ledger, node, args, kwargs, name, source_line(node))
    values = call.values
    if name == "copy_":  # functionalised buffer updates come last; some kernels write into slices on the way
        return _copy(call, env)
    tags = getattr(node.target, "tags", ())
    if name in SHAPE_ONLY or (torch.Tag.nondeterministic_seeded in tags and all(v.neutral for v in values)):
        return draw(call)
    if node.meta.get("repeats"):
        return unknown(call, f"drawn from a seed of the code's own at {call.where}")
    known = compute(call)
    if name in _IN_PLACE_MOVES:
        env[node.args[0]] = known or RULES[_out_of_place(name)](replace(call, name=_out_of_place(name)))  # type: ignore[index]
        return env[node.args[0]]  # type: ignore[index]
    if known is not None:
        return known
    if all(v.neutral for v in values):
        return call.plain(free=bool(values) and all(v.free for v in values))
    if name not in MOVEMENT:
        for part in (p for v in values for p in v.parts):
            ledger.touch(part.labels)
    rule = RULES.get(name, pointwise if torch.Tag.pointwise in tags or name in _ELEMENTWISE else None)
    if rule is None:
        return unknown(call, f"no rule for {name}, called at {call.where}")
    try:
        return tree_map(partial(_caused, values), _of_shapes(rule(call), call.shapes))
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:  # a form that it does not know
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return unknown(call, f"no rule for {name} in this form ({what}), called at {call.where}")


def _caused(operands: Sequence[Value], result: Any) -> Any:
    """What is made of values of which nothing is known has their cause."""
    if not isinstance(result, Value) or result.parts or result.neutral or result.cause:
        return result
    return replace(result, cause=next((value.cause for value in operands if value.cause), ""))


def _copy(call: Call, env: dict[Node, Any]) -> Value:
    """What is written takes the dtype and shape of what it is written to; a buffer keeps its own units."""
    target, (base, source) = call.node.args[0], call.args[:2]
    assert isinstance(target, Node)
    if target.op == "placeholder":
        met = merge(call.ledger, [base, source], base.shape, call.where)
        clear = source.weight and not any(part.opaque for part in source.parts)  # what was there before is gone
        return _write(call, target, replace(met, parts=tuple(replace(p, opaque=not clear) for p in met.parts)), env)
    if source.const is not None:
        value = constant(source.const.to(target.meta["val"].dtype).expand(base.shape))
    else:
        value = merge(call.ledger, [source], base.shape, call.where)
    return _write(call, target, value, env)


def _write(call: Call, target: Node, value: Value, env: dict[Node, Any]) -> Value:
    """Assign to a node, and to what it is a slice of."""
    env[target] = value
    base = target.args[0] if target.op == "call_function" and op_name(target) in MOVEMENT else None
    if not isinstance(base, Node):
        return value
    whole = env[base]
    if op_name(target) != "slice":
        for part in (*whole.parts, *value.parts):
            call.ledger.freeze(part.labels, f"written into in place at {call.where}")
        _write(call, base, Value(whole.shape), env)
        return value
    given: list[Any] = [*target.args[1:]]
    dim, start, end, step = given + [0, None, None, 1][len(given) :]
    if whole.const is not None and value.const is not None:
        changed = constant(torch.slice_scatter(whole.const, value.const, dim, start, end, step))
    else:
        changed = written(call, whole, value, dim, start, end, step)
    _write(call, base, changed, env)
    return value


_IN_PLACE_MOVES = ("transpose_", "t_", "squeeze_", "unsqueeze_", "as_strided_")  # these survive functionalisation
# without the tag "pointwise", some of them in older versions of torch only
_ELEMENTWISE = ("clone", "_to_copy", "detach", "alias", "lift_fresh_copy", "native_dropout", "contiguous",
                "where", "hardswish", "masked_fill", "fill", "bernoulli", "prelu", "_prelu_kernel", "rrelu_with_noise",
                "leaky_relu", "_conj_physical", "ldexp", "polar", "fake_quantize_per_tensor_affine_cachemask",
                "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams", "is_same_size",
                "_has_same_storage_numel")  # fmt: skip


def _out_of_place(name: str) -> str:
    return name[:-1] if name in _IN_PLACE_MOVES else name
