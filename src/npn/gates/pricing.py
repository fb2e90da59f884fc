"""What the network costs under its gates, as penalties and budgets ask for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from npn.functional import effective_gates
from npn.gates.costing import CostModel
from npn.gates.gates import Gates
from npn.gates.group import UnitGroup
from npn.structure import Structure, unit_of_column


class Pricing:
    """The cost of a model's structure under its gates; the tables are made again after a resize or a move.

    Args:
        model: for its parameters' names.
        structure: its units.
        gates: their gates.
    """

    def __init__(self, model: nn.Module, structure: Structure, gates: Gates) -> None:
        self.gates = gates
        self.restructure(model, structure)
        self._full = self.costs.at  # of the structure at attach

    def restructure(self, model: nn.Module, structure: Structure) -> None:
        """Cost another structure from now on; the full cost stays that at attach."""
        self._model, self._structure = model, structure
        self._costs: CostModel | None = None
        self._unit_of_column: Tensor | None = None
        self._device: torch.device | None = None

    @property
    def costs(self) -> CostModel:
        """The cost of the present structure."""
        if self._costs is None or self._device != self.gates.device:
            self._device = self.gates.device
            names = [group.name for group in self.gates.groups]
            with torch.inference_mode(False):
                self._costs = CostModel(self._model, self._structure, names, self._device)
                feeding = unit_of_column(self._structure)
                self._unit_of_column = None if feeding is None else feeding.to(self._device)
        return self._costs

    def expected(self, kind: str, probability: Tensor, weights: Mapping[str, float] | None = None) -> Tensor:
        """E[cost(z)], scalar, differentiable; units in grace cost nothing more or less.

        Args:
            kind: see `CostModel.expected`.
            probability: (units,) of all gates.
            weights: group name -> factor, for "layerwise".
        """
        if self.gates.grace_left:
            probability = torch.where(self.gates.held(), torch.ones_like(probability), probability)
        costs = self.costs
        return costs.expected(kind, effective_gates(probability, self._unit_of_column), weights)

    def full(self, kind: str) -> float:
        """Cost of the model at attach, every gate open."""
        return self._full(kind, {})

    def at(self, probability: Tensor) -> "Priced":
        """The costs at these keep probabilities."""
        return Priced(self, probability)

    def copied(self, model: nn.Module, gates: Gates) -> "Pricing":
        """The same for a copy of the model and of its gates."""
        new = Pricing.__new__(Pricing)
        new.gates, new._full = gates, self._full
        new.restructure(model, self._structure)
        return new


@dataclass(frozen=True)
class Priced:
    """The costs at one keep probability: what a penalty sees during a training step.

    Attributes:
        pricing: of the model.
        probability: (units,) of all gates, differentiable in the logits.
    """

    pricing: Pricing
    probability: Tensor

    @property
    def k(self) -> float:
        """The sharpness."""
        return self.pricing.gates.k

    @property
    def groups(self) -> Sequence[UnitGroup]:
        """All that has gates."""
        return self.pricing.gates.groups

    def expected_cost(self, kind: str, /, weights: Mapping[str, float] | None = None) -> Tensor:
        """E[cost(z)], differentiable."""
        return self.pricing.expected(kind, self.probability, weights)

    def full_cost(self, kind: str, /) -> float:
        """Cost of the model at attach, every gate open."""
        return self.pricing.full(kind)

    def minimum_cost(self, kind: str, /) -> float:
        """Cost with one unit left in every group, and the branch that is then the cheapest."""
        return self.pricing.costs.least(kind)
