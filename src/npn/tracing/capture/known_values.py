"""Fake tensors with values where these follow from inputs and buffers, so that decisions by them can be traced."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from npn.errors import TraceError
from npn.structure import Decisions
from npn.tracing.capture.lines import source_line

T = TypeVar("T")
MOST = 2**20  # entries of a value that is worth computing
_PRODUCTS = (torch.ops.aten.addmm.default, torch.ops.aten.mm.default, torch.ops.aten.convolution.default)
_DECIDES = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class KnownValues(FakeTensorMode):
    """Tensors without values, but for those that a forward pass computes from its inputs, buffers and constants.

    `.item()`, `if`, `nonzero()` and `x[mask]` on these give what they give for the example inputs; what depends on a
    weight has no value, and is refused as by `FakeTensorMode`.

    Args:
        assume_half: of a mask without values, which a router's choice is, `nonzero()` and `x[mask]` take half of the
            places in place of an error, `mask.any()` holds, and `mask.sum()` is half.

    Example:
        >>> mode = KnownValues()
        >>> mask = mode.from_input(torch.tensor([True, False, True]))
        >>> with mode:
        ...     bool(mask.any()), mask.sum().item(), torch.empty(3, 4)[mask].shape
        (True, 2, torch.Size([2, 4]))
    """

    def __init__(self, assume_half: bool = False) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.assume_half = assume_half
        self._known = WeakTensorKeyDictionary()

    def from_input(self, value: Any) -> Any:
        """A fake tensor that has a value; what is no tensor stays as it is.

        Args:
            value: one of the model's inputs or buffers.
        """
        if not isinstance(value, Tensor):
            return value
        known = value.detach().clone()  # code may write into it
        fake = self.from_tensor(value if _layout(known) == _layout(value) else known)
        self._known[fake] = known
        return fake

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = self._follows(func, args, kwargs)
        if known and torch.Tag.data_dependent_output in func.tags:
            return self._computed(func, args, kwargs)
        if known and torch.Tag.dynamic_output_shape in func.tags:
            return tree_map(self.from_input, self._computed(func, args, kwargs))
        if not known and self.assume_half and args and isinstance(args[0], FakeTensor):
            assumed = self._of_half(func, args[0])
            if assumed is not None:
                return assumed
        result = super().__torch_dispatch__(func, types, args, kwargs)
        fakes = tree_leaves(result)
        if known and all(isinstance(fake, FakeTensor) and fake.numel() <= MOST for fake in fakes):
            for fake, value in zip(fakes, tree_leaves(self._computed(func, args, kwargs)), strict=True):
                self._known[fake] = value
        elif func._schema.is_mutable:
            self._forget(tree_leaves(_written(func, args, kwargs)))
        return result

    def _of_half(self, func: Any, mask: FakeTensor) -> Any:
        """What an operator gives for a mask of which half of the places hold; None for other operators."""
        half = math.ceil(mask.numel() / 2)
        if func is torch.ops.aten.nonzero.default:
            with self:
                return mask.new_empty((half, mask.dim()), dtype=torch.int64)
        if mask.dtype == torch.bool and func is torch.ops.aten.any.default:
            return self.from_input(torch.tensor(half > 0, device=mask.device))
        if mask.dtype == torch.bool and func is torch.ops.aten.sum.default:
            return self.from_input(torch.tensor(half, device=mask.device))
        return None

    def _follows(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether the result follows from known values and constants."""
        if torch.Tag.nondeterministic_seeded in func.tags or "empty" in func._schema.name:
            return False
        fakes = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor)]
        if not all(fake in self._known for fake in fakes):
            return False
        walks = "as_strided" in func._schema.name  # through memory, which has to be laid out alike
        return not walks or all(_layout(fake) == _layout(self._known[fake]) for fake in fakes)

    def _computed(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The operator on values; views are views, so that what is written in place is seen by all of them."""
        values = tree_map(
            lambda leaf: self._known.get(leaf, leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs)
        )
        with torch.no_grad():
            return func(*values[0], **values[1])

    def _forget(self, written: Sequence[Any]) -> None:
        """Tensors into which something unknown has been written have no value any more, nor have their views."""
        lost = {
            self._known[leaf].untyped_storage().data_ptr()
            for leaf in written
            if isinstance(leaf, Tensor) and leaf in self._known
        }
        for fake in [fake for fake, value in self._known.items() if value.untyped_storage().data_ptr() in lost]:
            del self._known[fake]


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.stride(), tensor.storage_offset()


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments into which an operator writes."""
    specs = func._schema.arguments
    given = {spec.name: value for spec, value in zip(specs, args, strict=False)} | dict(kwargs)
    writes = [spec.name for spec in specs if spec.alias_info is not None and spec.alias_info.is_write]
    return [given[name] for name in writes if isinstance(given.get(name), (Tensor, list, tuple))]


def fake_inputs(mode: FakeTensorMode, inputs: T) -> T:
    """Replace the tensors among a model's inputs by fake ones.

    Args:
        mode: of the fake tensors.
        inputs: any nested structure.
    """
    fake = mode.from_input if isinstance(mode, KnownValues) else mode.from_tensor
    found: T = tree_map(lambda leaf: fake(leaf) if isinstance(leaf, Tensor) else leaf, inputs)
    return found


def needs_values(error: Exception) -> bool:
    """Whether an error says that a forward pass decides by values that fake tensors do not have.

    Args:
        error: raised on fake tensors.
    """
    name = type(error).__name__
    return "DynamicOutputShape" in name or "DataDependent" in name


def decisions(graph: Graph, learned: Sequence[bool], leaving: tuple[str, ...] = ()) -> Decisions:
    """The lines at which a forward pass decides by values.

    Args:
        graph: of the forward pass, with its lines recorded.
        learned: whether each of the model's own tensors, which are the first placeholders, is a parameter.
        leaving: lines at which made-up values have left it.

    Raises:
        TraceError: a weight is left without any input, so that nobody sees what it couples.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    weights, inputs = set(placeholders[: len(learned)]), set(placeholders[len(learned) :])
    unknown = {node for node, is_learned in zip(placeholders, learned, strict=False) if is_learned}  # or by chance
    buffers = weights - unknown
    picks = False
    by_inputs, by_buffers, by_others = dict[str, None](), dict[str, None](), dict[str, None]()
    for node in graph.nodes:
        needed, value = set(node.all_input_nodes), node.meta.get("val")
        if needed and needed <= weights:
            weights.add(node)  # a weight in another form
        elif (needed & weights and isinstance(value, Tensor) and not value.numel()) and (
            by_inputs or by_buffers or by_others or node.target in _PRODUCTS
        ):
            cause = "the forward pass decides by values of its inputs, and " if by_inputs else ""
            raise TraceError(
                f"{cause}example_inputs leave a weight nothing to do at {source_line(node)}; give example_inputs for "
                "which every part of the model has work"
            )
        if needed & unknown or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            unknown.add(node)
        if needed & inputs:
            inputs.add(node)
        if needed & buffers:
            buffers.add(node)
        mask = _decided_by(node)
        scalar = node.target is torch.ops.aten._local_scalar_dense.default
        if scalar and source_line(node) in leaving:
            continue
        if mask in unknown:
            picks = picks or not scalar
            by_others[source_line(node)] = None
        elif mask in inputs and not node.meta.get("own"):
            by_inputs[source_line(node)] = None
        elif mask in buffers:
            by_buffers[source_line(node)] = None
    picked, held = (tuple(by_others), ()) if picks else ((), tuple(by_others))
    return Decisions(tuple(by_inputs), tuple(by_buffers), picked, held, leaving)


def _decided_by(node: Node) -> Node | None:
    """The node by whose values this one decides."""
    if node.target is torch.ops.aten.index.Tensor:  # which says of any index that it may be a mask
        masks = (index for index in node.all_input_nodes[1:] if index.meta["val"].dtype == torch.bool)
        return next(masks, None)
    decides = any(tag in getattr(node.target, "tags", ()) for tag in _DECIDES)
    return node.all_input_nodes[0] if decides and node.all_input_nodes else None
