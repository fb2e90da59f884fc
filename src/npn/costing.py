"""What a structure costs: parameters and multiply-adds as a function of the gates."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from npn.errors import ConfigurationError
from npn.functional import product_cost, shared_unit_correction
from npn.tracing import Structure

KINDS = ("params", "macs", "units", "layerwise")


class CostModel:
    """Expected size of the whole network under independent gates.

    A weight costs `(sum of its rows' pi) (sum of its columns' pi) kernel`; a unit on both its axes is counted once.

    Args:
        model: for its parameters' names.
        structure: the units.
        gated: names of the groups whose sums of keep probabilities `expected` takes, in this order.
    """

    def __init__(self, model: nn.Module, structure: Structure, gated: Sequence[str], device: torch.device) -> None:
        self.gated = list(gated)
        position = {name: i for i, name in enumerate(self.gated)}
        names = [name for name, _ in model.named_parameters()]
        row = {name: i for i, name in enumerate(names)}
        axes = max((len(structure.shapes[name]) for name in names), default=1) or 1
        self.constant = torch.ones(len(names), axes, dtype=torch.float64)
        self.counts = torch.zeros(len(names), axes, len(self.gated), dtype=torch.float64)
        self.fan_out = torch.zeros(len(self.gated), dtype=torch.float64)
        self.sizes = torch.zeros(len(self.gated), dtype=torch.float64)
        for name in names:
            for axis, size in enumerate(structure.shapes[name]):
                self.constant[row[name], axis] = size
        single = {part.key for part in structure.columns}
        for part in structure.columns:  # of the full axis, these; each counts where its unit is open, too
            g = position[part.name]
            self.sizes[g] = part.size
            self.counts[row[part.tensor], part.axis, g] = 1
            self.constant[row[part.tensor], part.axis] = 0
            shape = structure.shapes[part.tensor]
            self.fan_out[g] = torch.Size(shape).numel() / shape[part.axis]
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
                        self.fan_out[g] += each * torch.Size(shape).numel() / shape[slot.axis]
        macs = torch.tensor([structure.positions.get(name, 0.0) for name in names], dtype=torch.float64)
        self.weight = {"params": torch.ones(len(names), dtype=torch.float64), "macs": macs}
        self.shared = {kind: self._shared(weight) for kind, weight in self.weight.items()}
        self._has_shared = {kind: bool(worth.any()) for kind, worth in self.shared.items()}
        self._device_copy = self._on(device)
        self._prices: tuple[dict[str, float], Tensor] | None = None

    def _shared(self, weight: Tensor) -> Tensor:
        """Per group: what pi - pi^2 of one unit is worth, where it sits on two axes of the same weight."""
        worth = torch.zeros(len(self.gated), dtype=torch.float64)
        axes = self.constant.shape[1]
        for a in range(axes):
            for b in range(a + 1, axes):
                others = [c for c in range(axes) if c not in (a, b)]
                full = self.constant + self.counts @ self.sizes
                rest = weight * full[:, others].prod(dim=1)
                worth += (rest[:, None] * self.counts[:, a] * self.counts[:, b]).sum(0)
        return worth

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        tensors = {"constant": self.constant, "counts": self.counts, "fan_out": self.fan_out}
        tensors |= {f"weight.{k}": w for k, w in self.weight.items()}
        tensors |= {f"shared.{k}": w for k, w in self.shared.items()}
        return {name: tensor.to(device, torch.float32) for name, tensor in tensors.items()}

    def expected(
        self, kind: str, probability: Tensor, sums: Tensor, of_group: Tensor, weights: Mapping[str, float] | None = None
    ) -> Tensor:
        """E[cost(z)], scalar, differentiable.

        Args:
            kind: "params", "macs", "units" or "layerwise" (each unit costs the weights that read it).
            probability: (units,) of all gated groups, in order; of columns the effective one.
            sums: (groups,) their sums.
            of_group: (units,) group number of each unit.
            weights: group name -> factor, for "layerwise".
        """
        on = self._device_copy
        if kind == "units":
            return sums.sum()
        if kind == "layerwise":
            price = on["fan_out"]
            if weights is not None:
                price = price * self._factors(weights, price.device)
            return (sums * price).sum()
        if kind not in self.weight:
            raise ConfigurationError(f"cost must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
        with torch.autocast(sums.device.type, enabled=False):  # counts do not survive bfloat16
            cost = product_cost(sums, on[f"weight.{kind}"], on["constant"], on["counts"])
        if self._has_shared[kind]:
            cost = cost + shared_unit_correction(probability, on[f"shared.{kind}"][of_group])
        return cost

    def _factors(self, weights: Mapping[str, float], device: torch.device) -> Tensor:
        """(groups,) factors on the device; the same ones are asked for at every step."""
        if self._prices is None or self._prices[0] != weights:
            self._prices = (dict(weights), torch.tensor([weights.get(n, 0.0) for n in self.gated], device=device))
        return self._prices[1]

    def at(self, kind: str, sizes: Mapping[str, float]) -> float:
        """Cost with so many units open in each group, the others unchanged."""
        sums = torch.tensor([float(sizes.get(n, s)) for n, s in zip(self.gated, self.sizes.tolist(), strict=True)])
        sums = sums.to(torch.float64)
        if kind == "units":
            return float(sums.sum())
        if kind == "layerwise":
            return float((sums * self.fan_out).sum())
        if kind not in self.weight:
            raise ConfigurationError(f"cost must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
        return float(product_cost(sums, self.weight[kind], self.constant, self.counts))
