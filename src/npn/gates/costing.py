"""The cost of a structure, in parameters and multiply-adds, as a function of its gates."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from npn._utils import cpu
from npn.errors import ConfigurationError
from npn.functional import effective_gates, product_cost, shared_unit_correction
from npn.gates.single_cost import WeightCost
from npn.structure import Structure, unit_of_column

KINDS = ("params", "weights", "macs", "units", "layerwise")


class CostModel:
    """Expected size of the whole network under independent gates.

    A weight costs `(sum of its rows' pi) (sum of its columns' pi) kernel`; a unit on both axes is counted once. A
    weight inside a branch costs this times the branch's pi: gates are independent, `E[z_b z_u] = pi_b pi_u`. Weights
    with their own gates are left to `single`. A product of two values, as in attention, is one more tensor, whose
    axes are the groups that lie in its factors; it costs multiply-adds only.

    Args:
        model: the model, for its parameters' names.
        structure: its structure.
        gated: names of the groups with gates, in the order of the gates.
        device: device of the tables that `expected` uses.

    Attributes:
        gated: the argument.
        sizes: float64 (groups,), number of units.
        constant: float64 (tensors, axes), ungated elements along each axis.
        counts: float64 (tensors, axes, groups), elements along the axis that belong to each unit.
        fan_out: float64 (tensors, groups), weights that read each unit.
        weight: kind of cost -> float64 (tensors,), cost of one element.
        shared: kind of cost -> float64 (tensors, groups), see `npn.functional.shared_unit_correction`.
        branches: the branches, if they have gates.
        home: int64 (tensors,), branch that contains each tensor, the number of branches if none does.
        scaled: float64 (branches,), number of weights that each branch's gate multiplies.
        owner: int64 (groups,), branch that contains the whole group, the number of branches if none does.
        of_group: int64 (units,), group of each unit.
        single: expected cost of the weights with their own gates; None if there are none.
    """

    def __init__(self, model: nn.Module, structure: Structure, gated: Sequence[str], device: torch.device) -> None:
        self.gated = list(gated)
        position = {name: i for i, name in enumerate(self.gated)}
        names = [name for name, _ in model.named_parameters()]
        row = {name: i for i, name in enumerate(names)}
        products, total = structure.products, len(names) + len(structure.products)
        axes = max([1, *(len(structure.shapes[name]) for name in names), *(len(each.units) for each in products)])
        self.constant = cpu.ones(total, axes, dtype=torch.float64)
        self.counts = cpu.zeros(total, axes, len(self.gated), dtype=torch.float64)
        self.fan_out = cpu.zeros(total, len(self.gated), dtype=torch.float64)  # weights that read a unit
        self.sizes = cpu.zeros(len(self.gated), dtype=torch.float64)
        for name in names:
            for axis, size in enumerate(structure.shapes[name]):
                self.constant[row[name], axis] = size
        single = {part.key for part in structure.columns}
        for part in structure.columns:  # only the present columns; `expected` gets their effective gates
            g = position[part.name]
            self.sizes[g] = part.size
            self.counts[row[part.tensor], part.axis, g] = 1
            self.constant[row[part.tensor], part.axis] = 0
            shape = structure.shapes[part.tensor]
            self.fan_out[row[part.tensor], g] = torch.Size(shape).numel() / shape[part.axis]
        for group in structure.groups:
            if group.name not in position:
                continue
            g = position[group.name]
            self.sizes[g] = group.size
            for slot in group.slots:
                if slot.tensor in row and slot.key not in single:
                    each = slot.index.shape[1]
                    self.counts[row[slot.tensor], slot.axis, g] += each
                    self.constant[row[slot.tensor], slot.axis] -= each * group.size
                    if slot.reads:
                        shape = structure.shapes[slot.tensor]
                        self.fan_out[row[slot.tensor], g] += each * torch.Size(shape).numel() / shape[slot.axis]
        for number, product in enumerate(products, start=len(names)):
            for axis, (name, (rest, amount)) in enumerate(product.units.items()):
                if name in position:  # the others are as they were traced
                    self.constant[number, axis], self.counts[number, axis, position[name]] = rest, amount
        self._least = {group.name: float(group.multiple) for group in structure.groups}
        self.branches = structure.branches if structure.branches and structure.branches.name in position else None
        self.home, self.scaled, self.owner = self._branches(structure, names)
        used = [*(structure.positions.get(name, 0.0) for name in names), *(product.macs for product in products)]
        ranks = cpu.tensor([*(len(structure.shapes[name]) for name in names), *(-1 for _ in products)])
        params, matrices = (ranks >= 0).double(), (ranks > 1).double()
        self.weight = {"params": params, "weights": matrices, "macs": cpu.tensor(used, dtype=torch.float64)}
        feeding = unit_of_column(structure)
        self._feeding = None if feeding is None else feeding.to(device)
        self._has_own = cpu.zeros(total, dtype=torch.bool)
        self.single: WeightCost | None = None
        if structure.unstructured:
            rows = [row[name] for name in structure.unstructured]
            self._has_own[rows] = True
            prices = {
                kind: dict(zip(structure.unstructured, each[rows].tolist(), strict=True))
                for kind, each in self.weight.items()
            }
            self.single = WeightCost(structure, prices, device)
            sizes = cpu.tensor([float(torch.Size(structure.physical()[n]).numel()) for n in structure.unstructured])
            self._fed_by_none = float(sizes.sum() - (self.fan_out[rows] @ self.sizes).sum())
        self.shared = {kind: self._shared(weight) for kind, weight in self.weight.items()}
        self._has_shared = {kind: bool(worth.any()) for kind, worth in self.shared.items()}
        self.of_group = torch.repeat_interleave(cpu.arange(len(self.sizes)), self.sizes.long()).to(device)
        self._first = sum(int(s) for s in self.sizes[: position[self.branches.name]]) if self.branches else 0
        exact_on = torch.device("cpu")
        self._exact, self._device_copy = self._on(exact_on, torch.float64), self._on(device, torch.float32)
        self._whole = self._on(exact_on, torch.float64, whole=True) if structure.unstructured else self._exact
        self._prices: tuple[dict[str, float], Tensor] | None = None

    def _branches(self, structure: Structure, names: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute `home`, `scaled` and `owner`."""
        branches = self.branches
        if branches is None:
            return cpu.zeros(len(self.constant), dtype=torch.long), cpu.zeros(0), cpu.zeros(len(self.gated))
        self.sizes[self.gated.index(branches.name)] = branches.size
        home = [branches.home(name) for name in names]
        scaled = [float(sum(torch.Size(structure.shapes[n]).numel() for n in names)) for names in branches.scales]
        homes = {part.name: {branches.home(slot.tensor) for slot in part.slots} for part in structure.parts}
        owner = [homes[name].pop() if len(homes[name]) == 1 else branches.size for name in self.gated]
        home += [branches.home(product.tensor or "") for product in structure.products]
        return cpu.tensor(home), cpu.tensor(scaled, dtype=torch.float64), cpu.tensor(owner)

    def _shared(self, weight: Tensor) -> Tensor:
        """(tensors, groups): factor of pi - pi^2 of a unit that lies on two axes of the same weight."""
        worth = cpu.zeros(len(weight), len(self.gated), dtype=torch.float64)
        axes = self.constant.shape[1]
        for a in range(axes):
            for b in range(a + 1, axes):
                others = [c for c in range(axes) if c not in (a, b)]
                full = self.constant + self.counts @ self.sizes
                rest = weight * full[:, others].prod(dim=1)
                worth += rest[:, None] * self.counts[:, a] * self.counts[:, b]
        return worth

    def _on(self, device: torch.device, dtype: torch.dtype, whole: bool = False) -> dict[str, Tensor]:
        """All tables on a device; the weights with their own gates cost something in them only if `whole`."""
        tensors = {"constant": self.constant, "counts": self.counts, "scaled": self.scaled}
        priced = {"fan_out": self.fan_out}
        priced |= {f"weight.{k}": w for k, w in self.weight.items()}
        priced |= {f"shared.{k}": w for k, w in self.shared.items()}
        for name, table in priced.items():
            own = self._has_own if table.dim() == 1 else self._has_own[:, None]
            tensors[name] = table if whole else table.masked_fill(own, 0)
        found = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
        return found | {"home": self.home.to(device), "owner": self.owner.to(device)}

    def expected(self, kind: str, probability: Tensor, weights: Mapping[str, float] | None = None) -> Tensor:
        """E[cost(z)], scalar, differentiable.

        Args:
            kind: "params", "weights" (parameters with several axes: no biases, no normalisation), "macs", "units" or
                "layerwise" (each unit costs the weights that read it, a branch the weights that its gate multiplies).
            probability: (units,), keep probabilities of all gates in order; effective ones for columns. For float64 on
                the CPU the cost is computed in float64. Weights with their own gates cost nothing here.
            weights: group name -> factor, for "layerwise".

        Returns:
            Scalar, in parameters, MACs, units or weights.

        Raises:
            ConfigurationError: the kind is unknown.
        """
        of_group = self.of_group
        sums = probability.new_zeros(len(self.gated)).index_add(0, of_group, probability)
        exact = sums.dtype == torch.float64 and sums.device.type == "cpu"
        tables = self._exact if exact else self._device_copy
        with torch.autocast(sums.device.type, enabled=False):  # counts do not survive bfloat16
            if self.branches is None:
                return self._cost(kind, tables, probability, sums, of_group, weights)
            present = probability[self._first : self._first + self.branches.size]
            return self._cost(kind, tables, probability, sums, of_group, weights, present)

    def under(self, kind: str, gates: Tensor, weights: Mapping[str, float] | None = None) -> Tensor:
        """E[cost(z)], scalar, differentiable, at the keep probabilities of all gates.

        Args:
            kind, weights: see `expected`.
            gates: (gates,), keep probabilities of units, branches and columns, then of single weights.
        """
        units, single = gates[: len(self.of_group)], gates[len(self.of_group) :]
        cost = self.expected(kind, effective_gates(units, self._feeding), weights)
        if self.single is None:
            return cost
        with torch.autocast(gates.device.type, enabled=False):
            return cost + self.single.expected(kind, units, single, weights)

    def _cost(
        self,
        kind: str,
        on: Mapping[str, Tensor],
        probability: Tensor | None,
        sums: Tensor,
        of_group: Tensor | None,
        weights: Mapping[str, float] | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """`expected`, given the keep probability of every branch; without `probability`, no gate is random."""
        share = None if present is None else torch.cat([present, present.new_ones(1)])
        if kind == "units":
            return sums.sum() if share is None else (sums * share[on["owner"]]).sum()
        if kind == "layerwise":
            factors = None if weights is None else self._factors(weights, sums.device)
            price = on["fan_out"].sum(0) if share is None else share[on["home"]] @ on["fan_out"]
            cost = (sums * price if factors is None else sums * price * factors).sum()
            if self.branches is not None and present is not None:
                own = (present * on["scaled"]).sum()
                cost = cost + (own if factors is None else own * factors[self.gated.index(self.branches.name)])
            return cost
        if kind not in self.weight:
            raise ConfigurationError(f"cost must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
        weight = on[f"weight.{kind}"] if share is None else on[f"weight.{kind}"] * share[on["home"]]
        cost = product_cost(sums, weight, on["constant"], on["counts"])
        if self._has_shared[kind] and probability is not None and of_group is not None:
            table = on[f"shared.{kind}"]
            worth = table.sum(0) if share is None else share[on["home"]] @ table
            cost = cost + shared_unit_correction(probability, worth[of_group])
        return cost

    def _factors(self, weights: Mapping[str, float], device: torch.device) -> Tensor:
        """(groups,): the factors on the device, cached because every step passes the same ones."""
        if self._prices is None or self._prices[0] != weights:
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
        sums = cpu.tensor([float(sizes.get(n, s)) for n, s in zip(self.gated, self.sizes.tolist(), strict=True)])
        present = cpu.ones(self.branches.size, dtype=torch.float64) if self.branches is not None else None
        if present is not None and only is not None:
            present = cpu.arange(len(present)).eq(only).double()
        tables = self._exact if least else self._whole
        cost = float(self._cost(kind, tables, None, sums.double(), None, present=present))
        if self.single is None:
            return cost
        if least:
            return cost + self._least_single(kind, present)
        return cost + (self._fed_by_none if kind == "layerwise" else 0.0)

    def _least_single(self, kind: str, present: Tensor | None) -> float:
        """Cost of one weight in each parameter with gates on its weights, without those in branches that are gone."""
        each = self._has_own.double() * (0.0 if kind == "units" else self.weight.get(kind, cpu.ones(())))
        share = 1.0 if present is None else torch.cat([present, present.new_ones(1)])[self.home]
        return float((each * share).sum())
