"""The cost of the network under its gates, in the form that penalties and budgets need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from npn.gates.costing import CostModel
from npn.gates.gate import Gate
from npn.gates.gates import Gates
from npn.gates.group import UnitGroup
from npn.structure import Structure


class Pricing:
    """The cost of a model's structure under its gates; the tables are rebuilt after a resize or a device move.

    Args:
        model: the model, for its parameters' names.
        structure: its structure.
        gates: its gates.
        full: whose full cost it shares, as in a copy of an attached model; None for that of this model.

    Attributes:
        gates: the argument.
    """

    def __init__(self, model: nn.Module, structure: Structure, gates: Gates, full: "Pricing | None" = None) -> None:
        self.gates = gates
        self.restructure(model, structure)
        self._at_attach: CostModel = self.costs if full is None else full._at_attach

    def restructure(self, model: nn.Module, structure: Structure) -> None:
        """Use another structure; the full cost stays that of the structure at attach.

        Args:
            model: the resized model.
            structure: its structure.
        """
        self._model, self._structure = model, structure
        self._costs: CostModel | None = None
        self._device: torch.device | None = None

    @property
    def costs(self) -> CostModel:
        """The cost model of the present structure."""
        if self._costs is None or self._device != self.gates.device:
            self._device = self.gates.device
            with torch.inference_mode(False):
                self._costs = CostModel(self._model, self._structure, self._device)
        return self._costs

    def expected(self, kind: str, probability: Tensor, weights: Mapping[str, float] | None = None) -> Tensor:
        """E[cost(z)]; units in grace count as open and have no gradient.

        Args:
            kind: see `CostModel.expected`.
            probability: (gates,), keep probabilities of all gates.
            weights: group name -> factor, for "layerwise".

        Returns:
            Scalar, differentiable in `probability`.
        """
        held = self.gates.held()
        if held is not None:
            probability = torch.where(held, torch.ones_like(probability), probability)
        return self.costs.expected(kind, probability, weights)

    def full(self, kind: str) -> float:
        """Cost of the model at attach with every gate open.

        Args:
            kind: see `CostModel.expected`.
        """
        return self._at_attach.at(kind, {})


@dataclass(frozen=True)
class Costs:
    """The costs at given keep probabilities, as a penalty uses them in a training step.

    Attributes:
        pricing: the pricing of the model.
        probability: (gates,), keep probabilities of all gates, differentiable in the logits.
    """

    pricing: Pricing
    probability: Tensor

    @property
    def k(self) -> float:
        """The sharpness."""
        return self.pricing.gates.k

    @property
    def groups(self) -> Sequence[UnitGroup]:
        """Everything that has gates."""
        return self.pricing.gates.groups

    @property
    def unstructured(self) -> Mapping[str, Gate]:
        """The gates of single weights, by the name of the parameter."""
        return self.pricing.gates.unstructured

    def expected_cost(self, kind: str, /, weights: Mapping[str, float] | None = None) -> Tensor:
        """E[cost(z)], scalar, differentiable in the logits.

        Args:
            kind: see `CostModel.expected`.
            weights: group name -> factor, for "layerwise".
        """
        return self.pricing.expected(kind, self.probability, weights)

    def full_cost(self, kind: str, /) -> float:
        """Cost of the model at attach with every gate open.

        Args:
            kind: see `CostModel.expected`.
        """
        return self.pricing.full(kind)

    def minimum_cost(self, kind: str, /) -> float:
        """Cost with one unit in every group, and with the one branch that is then the cheapest.

        Args:
            kind: see `CostModel.expected`.
        """
        return self.pricing.costs.least(kind)
