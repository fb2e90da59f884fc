"""One op call as the rules see it, and the table in which a module keeps its rules."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from npn.structure import MIXES
from npn.tracing.labels import Ledger, Value


@dataclass(frozen=True)
class Call:
    """One op call: its graph node, its arguments with nodes replaced by `Value`s, and where the user wrote it."""

    ledger: Ledger
    node: Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str
    where: str

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the results."""
        out = self.node.meta.get("val")
        return [tuple(t.shape) for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)]

    @functools.cached_property
    def values(self) -> list[Value]:
        """Every value among the arguments."""
        leaves = tree_leaves((self.args, self.kwargs), is_leaf=lambda v: isinstance(v, Value))
        return [leaf for leaf in leaves if isinstance(leaf, Value)]

    def plain(self, free: bool = False, cause: str = "") -> Any:
        """The result without units."""
        results: list[Value | None] = [Value(shape, free=free, cause=cause) for shape in self.shapes]
        return results if isinstance(self.node.meta.get("val"), (tuple, list)) else (results or [None])[0]

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or keyword."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    @property
    def mixes(self) -> str:
        """The reason when this op makes one unit of an axis."""
        return f"{self.name} {MIXES} at {self.where}"


Rule = Callable[[Call], Any]


class Rules(dict[str, Rule]):
    """Rules by the ATen names of their ops, without overload."""

    def of(self, *names: str) -> Callable[[Rule], Rule]:
        """Enter a function as the rule of these ops.

        Args:
            names: of the ops.
        """

        def enter(function: Rule) -> Rule:
            self.update(dict.fromkeys(names, function))
            return function

        return enter


def unknown(call: Call, reason: str) -> Any:
    """Nothing is known of this op: all its operands keep their size."""
    for value in call.values:
        for part in value.parts:
            call.ledger.freeze(part.labels, reason)
    return call.plain(cause=reason)
