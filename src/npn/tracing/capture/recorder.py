"""Record a forward pass on fake tensors as a graph: each ATen op that runs becomes a node, with the line that asks."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from npn.tracing.capture.deadline import Deadline
from npn.tracing.capture.lines import calling_line

_LIFT = torch.ops.aten.lift_fresh.default
_COPY = torch.ops.aten.lift_fresh_copy.default  # a constant that code writes into is written into anew in each run


class Recorder(TorchDispatchMode):
    """Inside the context, ops become nodes of `graph`; `meta["val"]` is the result of each.

    Where the code has seeded what a draw comes from, `meta["repeats"]` is true: it gives the same numbers each time.

    It does what `make_fx` does, without the objects that `make_fx` hands to code in place of tensors and the records
    that a compiler needs, which take most of its time.

    Args:
        deadline: checked at each node.

    Attributes:
        graph: the ops in order; tensors from elsewhere are `get_attr` nodes.
        constants: these tensors, by the targets of their nodes.
        made: all nodes so far.

    Example:
        >>> import math
        >>> recorder = Recorder(Deadline(math.inf))
        >>> x = torch.ones(2)
        >>> recorder.take([x])
        >>> with recorder:
        ...     y = torch.exp(x) + 1
        >>> recorder.give([y])
        >>> [node.name for node in recorder.graph.nodes]
        ['arg0', 'exp', 'add', 'output']
    """

    supports_higher_order_operators = True

    def __init__(self, deadline: Deadline) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.constants = Graph(), dict[str, Tensor]()
        self.made: list[Node] = []
        self._deadline = deadline
        self._nodes: dict[int, tuple[Tensor, Node]] = {}  # the tensor, so that no other one gets its number
        self._names: dict[int, str] = {}  # of constants
        self._random = _random_state()  # fake draws leave it as it is

    def take(self, inputs: Iterable[Any]) -> None:
        """Make a placeholder for each input, in their order; what is no tensor has one without a value."""
        for number, value in enumerate(inputs):
            node = self.graph.placeholder(f"arg{number}")
            if isinstance(value, Tensor):
                self._see(value, node)

    def give(self, outputs: Sequence[Tensor]) -> None:
        """Make the last node, of the tensors that the forward pass returns."""
        self.graph.output(tree_map(self._argument, list(outputs)))

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if _is_composite(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if isinstance(func, OpOverload) and func._schema.is_mutable:
            self._keep_shapes((args, kwargs))
        given: Any = map_aggregate(args, self._argument), map_aggregate(kwargs, self._argument)
        node = self._node(_COPY if func is _LIFT else func, *given)
        if torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()):
            node.meta["repeats"] = kwargs.get("generator") is not None or _random_state() != self._random
        result = func(*args, **kwargs)
        self._see(result, node)
        return result

    def _node(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Node:
        name = getattr(getattr(target, "overloadpacket", target), "__name__", None)
        node = self.graph.create_node("call_function", target, args, kwargs, name)
        node.meta["line"], node.meta["own"] = calling_line()
        self.made.append(node)
        self._deadline.check(f"{len(self.made):,} operations recorded", node.name, node.meta["line"])
        return node

    def _see(self, result: Any, node: Node) -> None:
        """A node has made these tensors."""
        if isinstance(result, (tuple, list)):
            for number, each in enumerate(result):
                self._see(each, self._node(operator.getitem, (node, number)))
        elif isinstance(result, Tensor):
            self._nodes[id(result)] = result, node
        node.meta["val"] = result

    def _argument(self, value: Any) -> Any:
        """The node of a tensor; anything else as it is."""
        if not isinstance(value, Tensor):
            return value
        found = self._nodes.get(id(value))
        return self._elsewhere(value) if found is None else found[1]

    def _elsewhere(self, value: Tensor) -> Node:
        """A node of a tensor that no op of this forward pass has made."""
        name = self._names.setdefault(id(value), f"constant{len(self._names)}")
        self.constants[name] = value
        node = self.graph.create_node("get_attr", name)
        node.meta["val"] = value
        return node

    def _keep_shapes(self, arguments: Any) -> None:
        """An op in place may change the shape of a tensor; the nodes that have made it keep the one it had."""
        for value in tree_leaves(arguments):
            found = self._nodes.get(id(value))
            if found is not None and isinstance(value, Tensor):
                found[1].meta["val"] = value.detach()


def _random_state() -> bytes:
    """That of the generator that draws by default, on the CPU."""
    with _disable_current_modes():
        return torch.get_rng_state().numpy().tobytes()


@cache
def _is_composite(func: Any) -> bool:
    """Whether an op consists of others, which autograd would have seen in its place; inference mode is without it."""
    if not isinstance(func, OpOverload):
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))
