"""Settings of LeNet-5."""

from dataclasses import dataclass

from npn.experiments.engine.options import Options


@dataclass(frozen=True)
class LeNetOptions(Options):
    """Settings of LeNet-5, besides those of every experiment.

    Attributes:
        learning_rate: of the weights, at its highest.
        weight_decay: of the weights.
        augment: shift, turn and scale every training image at random.
        teacher: folder of a finished run; its network's answers are learned beside the labels.
        like: folder of a finished run; "scratch" trains a net of its widths instead of one of the budget's size.
        weights: gates on the single weights of all layers, instead of on units and inputs.
        overshoot: growth ends at so many times the budget, before gates choose what stays.
        preset: "paper" for the paper's own recipe, see docs/paper.md.
    """

    learning_rate: float | None = None
    weight_decay: float | None = None
    augment: bool | None = None
    teacher: str | None = None
    like: str | None = None
    weights: bool | None = None
    preset: str | None = None
    overshoot: float | None = None
