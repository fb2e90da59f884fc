"""The cost of a structure, in parameters and multiply-adds, as a function of its gates."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from npn._utils import cpu
from npn._utils.validation import finite, instance
from npn.errors import ConfigurationError
from npn.functional import effective_gates, product_cost, shared_unit_correction
from npn.gates.cost_tables import CostTables, cost_tables
from npn.gates.weight_cost import WeightCost
from npn.structure import Structure, unit_of_column

KINDS = ("params", "weights", "macs", "units", "layerwise")


class CostModel:
    """Expected size of the whole network under independent gates.

    A weight costs `(sum of its rows' pi) (sum of its columns' pi) kernel`; a unit on both axes is counted once. A
    weight inside a branch costs this times the branch's pi: gates are independent, `E[z_b z_u] = pi_b pi_u`. Weights
    with their own gates are left to `single`.

    Args:
        model: the model, for its parameters' names.
        structure: its structure.
        device: device of the tables that `expected` uses.

    Attributes:
        gated: names of the groups, branches and columns, in the order of their gates.
        branches: the branches, if they have gates.
        of_group: int64 (units,), group of each unit.
        single: expected cost of the weights with their own gates; None if there are none.
    """

    def __init__(self, model: nn.Module, structure: Structure, device: torch.device) -> None:
        self.gated = [part.name for part in structure.parts]
        names = [name for name, _ in model.named_parameters()]
        whole = cost_tables(structure, names)
        self._whole, self._exact = whole, whole.without_single()
        self._device_copy = self._exact.to(device, torch.float32)
        self._has_shared = {kind: bool(worth.any()) for kind, worth in whole.shared.items()}
        self._least = {group.name: float(group.multiple) for group in structure.groups}
        self.branches = structure.branches
        self._first = sum(group.size for group in structure.groups)
        self.of_group = torch.repeat_interleave(cpu.arange(len(whole.sizes)), whole.sizes.long()).to(device)
        feeding = unit_of_column(structure)
        self._feeding = None if feeding is None else feeding.to(device)
        self.single, self._fed_by_none = _of_single_weights(structure, names, whole, device)
        self._prices: tuple[dict[str, float], Tensor] | None = None

    def expected(self, kind: str, gates: Tensor, weights: Mapping[str, float] | None = None) -> Tensor:
        """E[cost(z)], scalar, differentiable.

        Args:
            kind: "params", "weights" (parameters with several axes: no biases, no normalisation), "macs", "units" or
                "layerwise" (each unit costs the weights that read it, a branch the weights that its gate multiplies).
            gates: (gates,), keep probabilities of units, branches and columns, then of single weights. For float64 on
                the CPU the cost is computed in float64.
            weights: group name -> factor, for "layerwise".

        Returns:
            Scalar, in parameters, MACs, units or weights.

        Raises:
            ConfigurationError: the kind is unknown.
        """
        units, single = gates[: len(self.of_group)], gates[len(self.of_group) :]
        probability = effective_gates(units, self._feeding)
        sums = probability.new_zeros(len(self.gated)).index_add(0, self.of_group, probability)
        exact = sums.dtype == torch.float64 and sums.device.type == "cpu"
        tables = self._exact if exact else self._device_copy
        present = None
        if self.branches is not None:
            present = probability[self._first : self._first + self.branches.size]
        with torch.autocast(sums.device.type, enabled=False):  # counts do not survive bfloat16
            cost = self._cost(kind, tables, probability, sums, weights, present)
            return cost if self.single is None else cost + self.single.expected(kind, units, single, weights)

    def _cost(
        self,
        kind: str,
        on: CostTables,
        probability: Tensor | None,
        sums: Tensor,
        weights: Mapping[str, float] | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Cost without weights that have their own gates; without `probability`, no gate is random.

        Args:
            kind, weights: see `expected`.
            on: the tables.
            probability: (units,), keep probabilities, of columns with that of the unit that feeds each.
            sums: (groups,), their sum over each group.
            present: (branches,), keep probabilities; None if branches have no gates.
        """
        share = None if present is None else torch.cat([present, present.new_ones(1)])
        if kind == "units":
            return sums.sum() if share is None else (sums * share[on.owner]).sum()
        if kind == "layerwise":
            factors = None if weights is None else self._factors(weights, sums.device)
            price = on.fan_out.sum(0) if share is None else share[on.home] @ on.fan_out
            cost = (sums * price if factors is None else sums * price * factors).sum()
            if self.branches is not None and present is not None:
                own = (present * on.scaled).sum()
                cost = cost + (own if factors is None else own * factors[self.gated.index(self.branches.name)])
            return cost
        if kind not in on.weight:
            raise ConfigurationError(f"cost must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
        weight = on.weight[kind] if share is None else on.weight[kind] * share[on.home]
        cost = product_cost(sums, weight, on.constant, on.counts)
        if self._has_shared[kind] and probability is not None:
            table = on.shared[kind]
            worth = table.sum(0) if share is None else share[on.home] @ table
            cost = cost + shared_unit_correction(probability, worth[self.of_group])
        return cost

    def _factors(self, weights: Mapping[str, float], device: torch.device) -> Tensor:
        """(groups,): the factors on the device, cached because every step passes the same ones."""
        if self._prices is None or self._prices[0] != weights:
            instance("weights", weights, Mapping, "a dict from group name to factor")
            for name, factor in weights.items():
                finite(f"the factor of {name!r}", factor)
            self._prices = (dict(weights), torch.tensor([weights.get(n, 0.0) for n in self.gated], device=device))
        return self._prices[1]

    def at(self, kind: str, sizes: Mapping[str, float]) -> float:
        """Cost of the network without random gates.

        Args:
            kind: see `expected`.
            sizes: group name -> number of open units; all units of the other groups are open.

        Returns:
            The cost.
        """
        return self._cost_at_sizes(kind, sizes, None)

    def least(self, kind: str) -> float:
        """Cost with one unit in every group, and with the one branch that is then the cheapest.

        Of the weights with their own gates, one is left in each parameter.

        Args:
            kind: see `expected`.

        Returns:
            The cost.
        """
        ones = dict.fromkeys(self.gated, 1.0) | self._least
        if self.branches is None:
            return self._cost_at_sizes(kind, ones, None, least=True)
        return min(self._cost_at_sizes(kind, ones, number, least=True) for number in range(self.branches.size))

    def _cost_at_sizes(self, kind: str, sizes: Mapping[str, float], only: int | None, least: bool = False) -> float:
        """Cost of the network without random gates, with all branches or with only one.

        Of the weights with their own gates all are open, or, for the least cost, one in each parameter.
        """
        sums = cpu.tensor([float(sizes.get(n, s)) for n, s in zip(self.gated, self._whole.sizes.tolist(), strict=True)])
        present = cpu.ones(self.branches.size, dtype=torch.float64) if self.branches is not None else None
        if present is not None and only is not None:
            present = cpu.arange(len(present)).eq(only).double()
        tables = self._exact if least else self._whole
        cost = float(self._cost(kind, tables, None, sums.double(), present=present))
        if self.single is None:
            return cost
        if least:
            return cost + self._least_single(kind, present)
        return cost + (self._fed_by_none if kind == "layerwise" else 0.0)

    def _least_single(self, kind: str, present: Tensor | None) -> float:
        """Cost of one weight in each parameter with gates on its weights, without those in branches that are gone."""
        each = self._whole.single.double() * (0.0 if kind == "units" else self._whole.weight.get(kind, cpu.ones(())))
        share = 1.0 if present is None else torch.cat([present, present.new_ones(1)])[self._whole.home]
        return float((each * share).sum())


def _of_single_weights(
    structure: Structure, names: Sequence[str], tables: CostTables, device: torch.device
) -> tuple[WeightCost | None, float]:
    """The cost of weights with their own gates, and the number of those that read no unit."""
    own = structure.unstructured
    if not own:
        return None, 0.0
    rows, shapes = [names.index(name) for name in own], structure.physical()
    prices = {kind: dict(zip(own, each[rows].tolist(), strict=True)) for kind, each in tables.weight.items()}
    count = sum(torch.Size(shapes[name]).numel() for name in own)
    return WeightCost(structure, prices, device), count - float((tables.fan_out[rows] @ tables.sizes).sum())
