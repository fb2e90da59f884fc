"""The table from gates to the entries of the weights that they mask."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from npn._utils import cpu
from npn._utils.models import model_tensors
from npn._utils.shards import is_shard, local, rows
from npn.functional import effective_gates, effective_gates_gradient
from npn.masking.stack import Stack
from npn.structure import Branches, Columns, Structure, gate_of_entries, unit_of_column

T = TypeVar("T")


class MaskTable:
    """The weights of a model that read gated units, and the gate of each of their entries.

    Gates are numbered through all groups, branches and columns, in this order. The gate of a branch multiplies whole
    parameters: its axis is None. The gates of single weights follow. Of a parameter split over processes, the table
    has this process's rows.

    Args:
        model: the model.
        structure: its structure.

    Attributes:
        units: number of gates, without those of single weights.
        names, parameters: the masked weights.
        values: their data at present, which share memory with the parameters; of a shard, this process's rows.
        stacks: the weights once more, those of one shape together, in the same order.
        axes: for each weight, the axes along which it is masked.
        sizes: lengths of these axes, in order of weights and axes.
        index: int64 (sum of sizes,), number of each entry's gate; `units` where there is none.
        unit_of_column: see `npn.structure.unit_of_column`.
        single: for each weight, the place of its own gates among those of all single weights; None if it has none.
        device: device of the weights.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        tensors = model_tensors(model)
        self.units = structure.units
        single = {part.key for part in structure.columns}
        columns: dict[str, dict[int | None, Tensor]] = {}
        owners = gate_of_entries(structure, lambda slot: slot.reads and slot.key not in single)
        for (name, along), owner in owners.items():
            columns.setdefault(name, {})[along] = owner
        for part, start in zip(structure.parts, structure.firsts, strict=True):
            if isinstance(part, Branches):
                for branch, scales in enumerate(part.scales, start):
                    for name in scales:
                        columns.setdefault(name, {})[None] = cpu.tensor([branch])
            elif isinstance(part, Columns):
                columns.setdefault(part.tensor, {})[part.axis] = cpu.arange(start, start + part.size)
        places, start = dict[str, slice](), 0
        for name in structure.unstructured:
            columns.setdefault(name, {})
            places[name] = slice(start, start + tensors[name].numel())
            start = places[name].stop
        for name, owner in ((name, along[0]) for name, along in columns.items() if 0 in along):
            columns[name][0] = owner[rows(tensors[name])]
        alike: dict[tuple[Any, ...], list[str]] = {}
        for name, axes in columns.items():
            kind = _layout(tensors[name]), *axes, name if name in places else None
            alike.setdefault(kind, []).append(name)
        self.names = [name for names in alike.values() for name in names]
        self.single = [places.get(name) for name in self.names]
        self.parameters: list[Tensor] = [tensors[name] for name in self.names]
        self.values = [local(parameter) for parameter in self.parameters]
        self._places = [value.data_ptr() for value in self.values]
        self._layouts = [_layout(parameter) for parameter in self.parameters]
        self._homes = [_home(model, name) for name in self.names]
        self._model, self._tree, self._held = model, _tree(model), _held(model)
        self.axes = [list(columns[name]) for name in self.names]
        self.device = self.parameters[0].device if self.parameters else torch.device("cpu")
        pieces = [owner for name in self.names for owner in columns[name].values()]
        self.sizes = [len(piece) for piece in pieces]
        self.index = torch.cat([*pieces, cpu.zeros(0, dtype=torch.long)]).to(self.device)
        self.stacks = list[Stack]()
        for first, *more in alike.values():
            like = torch.empty_like(local(tensors[first]), device="meta")
            sizes = [len(owner) for owner in columns[first].values()]
            self.stacks.append(Stack(1 + len(more), like, list(columns[first]), sizes, places.get(first)))
        self._lengths = [stack.count * sum(stack.sizes) for stack in self.stacks]
        feeding = unit_of_column(structure)
        self.unit_of_column = None if feeding is None else feeding.to(self.device)

    @property
    def named(self) -> dict[str, Tensor]:
        """Name of each weight -> the parameter."""
        return dict(zip(self.names, self.parameters, strict=True))

    def follow(self) -> bool:
        """Look up where the parameters' data lie at present.

        Returns:
            False if parameters were replaced or added, also with their modules, or moved to another layout, dtype or
            device: then this table is no longer right.
        """
        if any(
            tuple(modules.values()) != children or tuple(own) != names for modules, children, own, names in self._tree
        ):
            if _held(self._model) != self._held:
                return False
            self._tree = _tree(self._model)  # what has come and gone has no parameters
        for i, (parameter, (home, leaf)) in enumerate(zip(self.parameters, self._homes, strict=True)):
            if home.get(leaf) is not parameter or _layout(parameter) != self._layouts[i]:
                return False
            place = _here(parameter).data_ptr()
            if place != self._places[i]:
                self.values[i], self._places[i] = local(parameter), place
        return True

    @cached_property
    def copies(self) -> list[Tensor]:
        """Room for masked copies, the same for all training steps: new memory costs more than multiplying."""
        return self.empty()

    def empty(self) -> list[Tensor]:
        """Make room for a masked copy of each weight, stack by stack."""
        return [stack.empty(self.device) for stack in self.stacks]

    def factors(self, mask: Tensor) -> list[list[Tensor]]:
        """Turn a mask over all gates into factors of the stacked weights.

        Args:
            mask: (gates,).

        Returns:
            For each stack, see `Stack.factors`.
        """
        units, single = (mask, mask[:0]) if len(mask) == self.units else (mask[: self.units], mask[self.units :])
        padded = nn.functional.pad(effective_gates(units, self.unit_of_column), (0, 1), value=1.0)
        pieces = padded.index_select(0, self.index).split(self._lengths)
        return [stack.factors(piece, single) for stack, piece in zip(self.stacks, pieces, strict=True)]

    def expand(self, mask: Tensor) -> list[list[Tensor]]:
        """Turn a mask over all gates into factors that broadcast on the weights.

        Args:
            mask: (gates,).

        Returns:
            For each weight, one factor per masked axis, then one in its own shape if its single weights have gates.
        """
        return self.unstacked(self.factors(mask))

    def unstacked(self, factors: list[list[Tensor]]) -> list[list[Tensor]]:
        """Factors of each weight, from those of the stacks.

        Args:
            factors: the result of `factors`.
        """
        rows = ([factor.unbind() for factor in stacked] for stacked in factors)
        return [list(each) for row in rows for each in zip(*row, strict=True)]

    def members(self, each: Sequence[T]) -> Iterator[tuple[Stack, list[T]]]:
        """Each stack, with what belongs to its weights.

        Args:
            each: one entry for each weight.
        """
        left = iter(each)
        return ((stack, list(islice(left, stack.count))) for stack in self.stacks)

    def gradient(self, products: Sequence[Tensor], factors: Sequence[Sequence[Tensor]], mask: Tensor) -> Tensor:
        """d loss / d mask.

        Args:
            products: for each stack, weight times gradient with respect to the masked weight.
            factors: the result of `factors`.
            mask: (gates,).

        Returns:
            float32 (gates,).
        """
        total = torch.zeros(self.units + 1, dtype=torch.float32, device=self.device)
        single = torch.zeros(len(mask) - self.units, dtype=torch.float32, device=self.device)
        pieces = list[Tensor]()
        for stack, product, each in zip(self.stacks, products, factors, strict=True):
            units, own = stack.gradients(product, each)
            pieces.append(units)
            if own is not None and stack.single is not None:
                single[stack.single] = own
        if pieces:
            total.index_add_(0, self.index, torch.cat(pieces))
        gates = effective_gates_gradient(total[:-1], mask[: self.units], self.unit_of_column)
        return torch.cat([gates, single]) if len(single) else gates


def _tree(model: nn.Module) -> list[tuple[dict[str, Any], tuple[Any, ...], dict[str, Any], tuple[str, ...]]]:
    """For each module the dicts of its submodules and parameters, and what is in them: quickly compared later."""
    held = [(module._modules, module._parameters) for module in model.modules()]
    return [(modules, tuple(modules.values()), own, tuple(own)) for modules, own in held]


def _held(model: nn.Module) -> list[tuple[str, int]]:
    return [(name, id(parameter)) for name, parameter in model.named_parameters(remove_duplicate=False)]


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    tensor = _here(tensor)
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _here(tensor: Tensor) -> Tensor:
    return local(tensor) if is_shard(tensor) else tensor


def _home(model: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The dict in which a module keeps a tensor, and the tensor's key in it."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    return (module._parameters if leaf in module._parameters else module._buffers), leaf
