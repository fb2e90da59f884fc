"""The price of size: the interface of a penalty, and a fixed price per parameter or MAC."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, final, get_args

from torch import Tensor

from npn._utils.patterns import match_patterns
from npn._utils.validation import complete_state, not_negative
from npn.errors import CheckpointError, ConfigurationError

CostKind = Literal["params", "weights", "macs", "units", "layerwise"]


class _Group(Protocol):
    @property
    def name(self) -> str: ...


class Priced(Protocol):
    """The interface that a penalty needs: `npn.Plasticity`, or the costs at one training step's keep probabilities.

    It has the sharpness `k`, the `groups`, the differentiable `expected_cost`, the `full_cost` of the model at attach
    and the `minimum_cost` with one unit in every group.
    """

    @property
    def k(self) -> float: ...
    @property
    def groups(self) -> Sequence[_Group]: ...
    def expected_cost(self, kind: CostKind, /, weights: Mapping[str, float] | None = None) -> Tensor: ...
    def full_cost(self, kind: CostKind, /) -> float: ...
    def minimum_cost(self, kind: CostKind, /) -> float: ...


class CostTerm(ABC):
    """The part of the objective that pays for size: `Penalty` or `Budget`.

    Args:
        cost: "params", "weights" (those with two or more axes: no biases, no normalisation), "macs" (of the whole
            example batch, as `count_macs` counts them: give `attach` a batch of one for those of one example), "units"
            or "layerwise" (each unit costs the weights that read it).

    Attributes:
        cost: the argument.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> class Squared(CostTerm):
        ...     def loss(self, plastic):
        ...         return (plastic.expected_cost(self.cost) / plastic.full_cost(self.cost)) ** 2
        >>> plastic = SimpleNamespace(  # stands for npn.attach's result
        ...     expected_cost=lambda kind: torch.tensor(50.0), full_cost=lambda kind: 100.0)
        >>> Squared("params").loss(plastic)
        tensor(0.2500)
    """

    def __init__(self, cost: CostKind) -> None:
        if cost not in get_args(CostKind):
            raise ConfigurationError(f"cost must be one of {', '.join(map(repr, get_args(CostKind)))}, got {cost!r}")
        self.cost = cost

    def bind(self, plastic: Priced) -> None:  # noqa: B027 - nothing to look up is a fine default
        """Look up everything that depends on the model; `npn.attach` calls it once.

        Args:
            plastic: the attached model.
        """

    @abstractmethod
    def loss(self, plastic: Priced) -> Tensor:
        """Price of the present gates, in loss units.

        Args:
            plastic: costs at the present keep probabilities.

        Returns:
            (), differentiable in the logits, computed without a host synchronisation.
        """

    def update(self, plastic: Priced) -> None:  # noqa: B027
        """Adapt to the present cost; called once per training step, after the gradients.

        Args:
            plastic: costs at the present keep probabilities.
        """

    def shared_tensors(self) -> list[Tensor]:
        """Tensors learned by `update` that must agree between processes; averaged over them after each step."""
        return []

    def reset(self) -> None:  # noqa: B027
        """Forget everything that `update` has learned."""

    def state_dict(self) -> dict[str, Any]:
        """The values that `update` has learned, as plain values."""
        return {"type": type(self).__name__, "cost": self.cost}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` saved.

        Args:
            state: the result of `state_dict`.

        Raises:
            CheckpointError: the state belongs to another kind of penalty; nothing was loaded.
        """
        mine = CostTerm.state_dict(self)
        complete_state(state, (), f"a {type(self).__name__}", "penalty")
        theirs = {key: state.get(key) for key in mine}
        if mine != theirs:
            raise CheckpointError(f"the state belongs to another penalty: expected {mine}, got {theirs}")


@final
class Penalty(CostTerm):
    """A fixed price: `weight * E[cost(z)]`.

    With cost "layerwise" this is the regulariser of the paper, `sum_l lambda_l sum_j pi_lj |fan-out of a unit of l|`,
    and `weight` may give each group l its lambda_l.

    Args:
        cost: "params", "weights", "macs", "units" or "layerwise", see `CostTerm`.
        weight: price in loss units per parameter (or per MAC, or per unit), >= 0; for "layerwise" also a dict from name
            pattern to price, in which the first match counts and groups without a match cost nothing. There, a
            parameter with gates on its single weights has a price of its own, under its name.

    Attributes:
        cost, weight: the arguments.

    Raises:
        ConfigurationError: the cost is unknown, a weight is negative or infinite, or a dict is given with another cost.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> plastic = SimpleNamespace(expected_cost=lambda kind: torch.tensor(5320.0))  # stands for npn.attach's result
        >>> round(float(Penalty(cost="params", weight=1e-3).loss(plastic)), 3)
        5.32

    References:
        Li & Ji, Neural Plasticity Networks, arXiv:1908.08118.
    """

    def __init__(self, cost: CostKind = "params", weight: float | Mapping[str, float] = 1e-6) -> None:
        super().__init__(cost)
        if isinstance(weight, Mapping):
            if cost != "layerwise":
                raise ConfigurationError(f'weights per group need cost="layerwise", got cost={cost!r}; give one float')
            weight = dict(weight)
        for value in weight.values() if isinstance(weight, dict) else (weight,):
            not_negative("weight", value)
        self.weight = weight
        self._per_group: dict[str, float] | None = None

    def __repr__(self) -> str:
        return f"Penalty(cost={self.cost!r}, weight={self.weight})"

    def bind(self, plastic: Priced) -> None:
        """Find the groups that each name pattern matches.

        Args:
            plastic: the attached model.

        Raises:
            ConfigurationError: a pattern matches no group.
        """
        if isinstance(self.weight, dict):
            names = [*(group.name for group in plastic.groups), *getattr(plastic, "unstructured", ())]
            self._per_group = dict.fromkeys(names, 0.0) | match_patterns(self.weight, names, "weight")

    def loss(self, plastic: Priced) -> Tensor:
        """`weight * E[cost]`, (), in loss units; differentiable in the logits.

        Args:
            plastic: costs at the present keep probabilities.
        """
        if not isinstance(self.weight, dict):
            return self.weight * plastic.expected_cost(self.cost)
        if self._per_group is None:
            self.bind(plastic)
        return plastic.expected_cost(self.cost, weights=self._per_group)
