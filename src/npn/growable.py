"""The interface that growth needs of an attached model, and what it reads of it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Report = TypeVar("Report", covariant=True)


class _Gate(Protocol):
    @property
    def mask(self) -> Tensor: ...
    @property
    def grace(self) -> Tensor: ...
    def keep_probability(self) -> Tensor: ...


class GrowableGroup(Protocol):
    """A group of units, as `npn.Plasticity.groups` has them."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def gate(self) -> _Gate: ...


class Growable(Protocol[Report]):
    """The interface that growth needs: `npn.Plasticity`.

    It has the `groups`, the `weights()` that count against a limit, and the methods `grow`, `open` and, for single
    weights, `reconnect`.
    """

    @property
    def groups(self) -> Sequence[GrowableGroup]: ...
    def weights(self) -> Any: ...
    def grow(
        self, added: dict[str, int], /, *, grace: int, init: str = "zero", warmup: int = 0, loss: Any = None
    ) -> Report: ...
    def open(self, group: str, units: list[int], /, *, grace: int) -> Any: ...
    def reconnect(self, share: int | float, /, *, grace: int) -> dict[str, int]: ...


def limit_of(group: GrowableGroup, limits: Mapping[str, int]) -> float:
    """The most units that a group may have, in whole sets.

    Args:
        group: the group.
        limits: group name -> units; groups without one may have any number.
    """
    limit, multiple = limits.get(group.name, math.inf), multiple_of(group)
    return limit if math.isinf(limit) else limit // multiple * multiple


def multiple_of(group: GrowableGroup) -> int:
    """Number of units that come and go together.

    Args:
        group: the group.
    """
    return getattr(group, "multiple", 1)


def names_of(plastic: Growable[Any]) -> list[str]:
    """Names of the groups, including groups that vanished with a branch, which patterns may still name.

    Args:
        plastic: the attached model.
    """
    return list(dict.fromkeys([*getattr(plastic, "names", ()), *(group.name for group in plastic.groups)]))


def closed_units(group: GrowableGroup) -> list[int]:
    """Find the units of a group that are closed and not in grace.

    Args:
        group: the group.

    Returns:
        Their numbers, lowest keep probability first.
    """
    gate = group.gate
    closed = ~gate.mask & (gate.grace <= 0)
    if not bool(closed.any()):
        return []
    order = torch.argsort(gate.keep_probability().detach(), stable=True)
    return [int(unit) for unit in order[closed[order]].tolist()]
