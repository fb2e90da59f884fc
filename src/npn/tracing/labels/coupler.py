"""Unite units that can only come and go together, while a graph is walked."""

from torch import Tensor

from npn.structure import Couplings, Key
from npn.tracing.labels.ledger import Ledger


class Coupler:
    """Unites the labels of places that are coupled, while a graph is walked.

    Args:
        places: see `Structure.couplings`.
    """

    def __init__(self, places: Couplings) -> None:
        self._places = places
        self._first: dict[Key, Tensor] = {}

    def unite(self, ledger: Ledger, place: Key, labels: Tensor) -> None:
        """Unite the labels of one place with each other and with those of places before it.

        Args:
            ledger: keeps what is united.
            place: (tensor name, axis).
            labels: of the axis.
        """
        if place in self._places:
            first, number = self._places[place]
            *others, last = labels.chunk(number)
            for chunk in (*others, *([self._first[first]] if first in self._first else [])):
                ledger.unite(chunk, last)
            self._first[first] = last
