"""The tables by which a structure's cost follows from its gates: the lengths of axes, and the price of one element."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from npn._utils import cpu
from npn.structure import Structure

PRICED = ("params", "weights", "macs")  # kinds of cost that are a sum over elements


@dataclass(frozen=True)
class CostTables:
    """Terms, each with the axes of one parameter or of one product of two values, such as attention's.

    An axis is as long as the units that lie on it are many; a term costs the product of its axes, times `weight`. A
    product's axes are the groups that lie in its factors; it costs multiply-adds only.

    Attributes:
        sizes: float64 (groups,), number of units.
        constant: float64 (terms, axes), elements along each axis that no gate controls.
        counts: float64 (terms, axes, groups), elements along the axis that belong to each unit.
        fan_out: float64 (terms, groups), weights that read each unit.
        weight: kind of cost -> float64 (terms,), cost of one element.
        shared: kind of cost -> float64 (terms, groups), see `npn.functional.shared_unit_correction`.
        single: bool (terms,), parameters whose weights have gates of their own.
        home: int64 (terms,), branch that contains each term, the number of branches if none does.
        scaled: float64 (branches,), number of weights that each branch's gate multiplies.
        owner: int64 (groups,), branch that contains the whole group, the number of branches if none does.
    """

    sizes: Tensor
    constant: Tensor
    counts: Tensor
    fan_out: Tensor
    weight: Mapping[str, Tensor]
    shared: Mapping[str, Tensor]
    single: Tensor
    home: Tensor
    scaled: Tensor
    owner: Tensor

    def without_single(self) -> "CostTables":
        """The tables in which weights with their own gates cost nothing."""
        if not bool(self.single.any()):
            return self
        return replace(
            self,
            fan_out=self.fan_out.masked_fill(self.single[:, None], 0),
            weight={kind: each.masked_fill(self.single, 0) for kind, each in self.weight.items()},
            shared={kind: each.masked_fill(self.single[:, None], 0) for kind, each in self.shared.items()},
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> "CostTables":
        """The tables that a cost is computed with, on a device.

        Args:
            device: of all tables.
            dtype: of those that are not indices.
        """
        return replace(
            self,
            constant=self.constant.to(device, dtype),
            counts=self.counts.to(device, dtype),
            fan_out=self.fan_out.to(device, dtype),
            weight={kind: each.to(device, dtype) for kind, each in self.weight.items()},
            shared={kind: each.to(device, dtype) for kind, each in self.shared.items()},
            home=self.home.to(device),
            scaled=self.scaled.to(device, dtype),
            owner=self.owner.to(device),
        )


def cost_tables(structure: Structure, names: Sequence[str]) -> CostTables:
    """Make the tables of a structure, on the CPU.

    Args:
        structure: the structure.
        names: names of the model's parameters; they are the first terms, the structure's products follow.
    """
    gated = [part.name for part in structure.parts]
    sizes, constant, counts, fan_out = _lengths(structure, names, gated)
    used = [*(structure.positions.get(name, 0.0) for name in names), *(each.macs for each in structure.products)]
    ranks = cpu.tensor([*(len(structure.shapes[name]) for name in names), *(-1 for _ in structure.products)])
    prices = (ranks >= 0).double(), (ranks > 1).double(), cpu.tensor(used, dtype=torch.float64)
    weight = dict(zip(PRICED, prices, strict=True))
    home, scaled, owner = _branches(structure, names, gated)
    return CostTables(
        sizes=sizes,
        constant=constant,
        counts=counts,
        fan_out=fan_out,
        weight=weight,
        shared={kind: _shared(each, sizes, constant, counts) for kind, each in weight.items()},
        single=cpu.tensor([*(name in structure.unstructured for name in names), *(False for _ in structure.products)]),
        home=home,
        scaled=scaled,
        owner=owner,
    )


def _lengths(structure: Structure, names: Sequence[str], gated: Sequence[str]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`sizes`, `constant`, `counts` and `fan_out`."""
    row, position = {name: i for i, name in enumerate(names)}, {name: i for i, name in enumerate(gated)}
    products, shapes = structure.products, structure.shapes
    total = len(names) + len(products)
    axes = max([1, *(len(shapes[name]) for name in names), *(len(each.units) for each in products)])
    constant = cpu.ones(total, axes, dtype=torch.float64)
    counts = cpu.zeros(total, axes, len(gated), dtype=torch.float64)
    fan_out = cpu.zeros(total, len(gated), dtype=torch.float64)
    sizes = cpu.zeros(len(gated), dtype=torch.float64)
    for name in names:
        for axis, size in enumerate(shapes[name]):
            constant[row[name], axis] = size

    def weights_of_each(tensor: str, axis: int) -> float:
        return torch.Size(shapes[tensor]).numel() / shapes[tensor][axis]

    for part in structure.columns:  # only the present columns; a cost gets their effective gates
        g, t = position[part.name], row[part.tensor]
        sizes[g], counts[t, part.axis, g], constant[t, part.axis] = part.size, 1, 0
        fan_out[t, g] = weights_of_each(part.tensor, part.axis)
    by_columns = {part.key for part in structure.columns}
    for group in structure.groups:
        g = position[group.name]
        sizes[g] = group.size
        for slot in group.slots:
            if slot.tensor not in row or slot.key in by_columns:
                continue
            t, each = row[slot.tensor], slot.index.shape[1]
            counts[t, slot.axis, g] += each
            constant[t, slot.axis] -= each * group.size
            if slot.reads:
                fan_out[t, g] += each * weights_of_each(slot.tensor, slot.axis)
    for t, product in enumerate(products, start=len(names)):
        for axis, (name, (rest, amount)) in enumerate(product.units.items()):
            if name in position:  # the others are as they were traced
                constant[t, axis], counts[t, axis, position[name]] = rest, amount
    if structure.branches is not None:
        sizes[position[structure.branches.name]] = structure.branches.size
    return sizes, constant, counts, fan_out


def _branches(structure: Structure, names: Sequence[str], gated: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """`home`, `scaled` and `owner`."""
    branches = structure.branches
    if branches is None:
        nowhere = cpu.zeros(len(names) + len(structure.products), dtype=torch.long)
        return nowhere, cpu.zeros(0), cpu.zeros(len(gated), dtype=torch.long)
    home = [branches.home(name) for name in names]
    home += [branches.home(product.tensor or "") for product in structure.products]
    scaled = [float(sum(torch.Size(structure.shapes[n]).numel() for n in names)) for names in branches.scales]
    homes = {part.name: {branches.home(slot.tensor) for slot in part.slots} for part in structure.parts}
    owner = [homes[name].pop() if len(homes[name]) == 1 else branches.size for name in gated]
    return cpu.tensor(home), cpu.tensor(scaled, dtype=torch.float64), cpu.tensor(owner)


def _shared(weight: Tensor, sizes: Tensor, constant: Tensor, counts: Tensor) -> Tensor:
    """(terms, groups): factor of pi - pi^2 of a unit that lies on two axes of the same term."""
    axes, full = range(constant.shape[1]), constant + counts @ sizes
    worth = torch.zeros_like(counts[:, 0])
    for a, b in combinations(axes, 2):
        rest = weight * full[:, [c for c in axes if c not in (a, b)]].prod(dim=1)
        worth += rest[:, None] * counts[:, a] * counts[:, b]
    return worth
