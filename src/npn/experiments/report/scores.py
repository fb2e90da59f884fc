"""How good a network is, as one number: by its kind in the measurements of a run."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """One kind of number.

    Attributes:
        key: name in rows and results for the test data; see `keys`.
        name: in the title of a column, after "test" or "validation".
        label: of an axis.
        factor: of the number on an axis, and of differences.
        unit: of differences.
        digits: of differences.
        of: loss in nats per prediction, and share of correct predictions -> the number.
        text: writes the number with its unit.
        phrase: writes it in a line of other numbers.
        rises: a higher number is better.
    """

    key: str
    name: str
    label: str
    factor: float
    unit: str
    digits: int
    of: Callable[[float, float], float]
    text: Callable[[float], str]
    phrase: Callable[[float], str]
    rises: bool

    @property
    def keys(self) -> tuple[str, str]:
        """Names in rows and results, for test and validation data."""
        return self.key, f"validation_{self.key}"


ACCURACY = Score(
    key="accuracy",
    name="accuracy",
    label="accuracy in %",
    factor=100.0,
    unit="percentage points",
    digits=2,
    of=lambda loss, correct: correct,
    text=lambda value: f"{100 * value:.2f}%",
    phrase=lambda value: f"accuracy {100 * value:.2f}%",
    rises=True,
)
BITS = Score(
    key="bits_per_byte",
    name="loss",
    label="bits per byte",
    factor=1.0,
    unit="bits per byte",
    digits=3,
    of=lambda loss, correct: loss / math.log(2.0),
    text=lambda value: f"{value:.3f} bits per byte",
    phrase=lambda value: f"{value:.3f} bits per byte",
    rises=False,
)


def score_of(row: Mapping[str, Any]) -> Score:
    """Find the kind of score that measurements or a result have.

    Args:
        row: with the key of a score.

    Example:
        >>> score = score_of({"bits_per_byte": 2.0})
        >>> score.text(score.of(math.log(4.0), 0.5))
        '2.000 bits per byte'
    """
    return BITS if BITS.key in row else ACCURACY
