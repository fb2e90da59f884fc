"""Who follows a run, to show it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Observer(Protocol):
    """Follows a run, to show it."""

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """An epoch is over; the run takes at most `epochs`."""

    def stage(self, entry: dict[str, Any]) -> None:
        """A stage is over."""


@dataclass(frozen=True)
class Observers:
    """Several observers as one, or none.

    Attributes:
        each: told in this order.
    """

    each: Sequence[Observer]

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """Tell them."""
        for observer in self.each:
            observer.epoch(row, epochs)

    def stage(self, entry: dict[str, Any]) -> None:
        """Tell them."""
        for observer in self.each:
            observer.stage(entry)
