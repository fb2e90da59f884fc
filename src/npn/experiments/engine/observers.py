"""Observers of a run: a progress display, curves, or several of them as one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Observer(Protocol):
    """Follows a run, to show it. Of several processes only the first one has an observer."""

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """Show an epoch that has ended.

        Args:
            row: measurements of the epoch.
            epochs: the most that the run can take.
        """

    def stage(self, entry: dict[str, Any]) -> None:
        """Show a stage that has ended.

        Args:
            entry: summary of the stage.
        """


@dataclass(frozen=True)
class Observers:
    """Several observers as one, or none.

    Attributes:
        each: called in this order.
    """

    each: Sequence[Observer] = ()

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """Call `epoch` of each observer.

        Args:
            row: measurements of the epoch.
            epochs: the most that the run can take.
        """
        for observer in self.each:
            observer.epoch(row, epochs)

    def stage(self, entry: dict[str, Any]) -> None:
        """Call `stage` of each observer.

        Args:
            entry: summary of the stage.
        """
        for observer in self.each:
            observer.stage(entry)
