"""Settings of LeNet-300-100."""

from dataclasses import dataclass

from npn.experiments.engine.options import Options


@dataclass(frozen=True)
class LeNet300Options(Options):
    """Settings of LeNet-300-100, besides those of every experiment.

    Attributes:
        learning_rate: of the weights, at its highest.
        weight_decay: of the weights.
        augment: shift, turn and scale every training image at random.
        units: let the gates of whole units learn beside those of single weights.
    """

    learning_rate: float | None = None
    weight_decay: float | None = None
    augment: bool | None = None
    units: bool | None = None
