"""What a method needs to be, so that it decides what stays in place of trained logits."""

import math
from typing import Protocol

from torch import Tensor, nn

from npn.errors import ConfigurationError
from npn.surgery import Plan


class Decision(Protocol):
    """What decides which units and weights stay in place of trained logits, such as the methods of `npn.methods`.

    Attributes:
        folds: whether the exported model is the model with its weights times the mask; else `finish` adds something.
    """

    folds: bool

    def kept_gates(self, least: float = -math.inf) -> Tensor:
        """Which units and weights of this score or more stay, bool (gates,); at least one of each group."""

    def chosen(self) -> tuple[Tensor, Tensor]:
        """Which units and weights the rule keeps, bool (gates,), and a score of each, (gates,)."""

    def evaluation_mask(self) -> Tensor:
        """The real-valued mask of calls outside training steps, (gates,); 0 for what does not stay."""

    def register(self, model: nn.Module) -> None:
        """Put hooks on a model, or on a copy of it, if masks alone do not do what the method does."""

    def unregister(self, model: nn.Module) -> None:
        """Remove these hooks."""

    def restructured(self) -> None:
        """Called after each resize, when the tensors that it carries along have their new sizes."""

    def finish(self, exported: nn.Module, plan: Plan) -> None:
        """Put what is not a mask into an exported copy.

        Args:
            exported: the copy, already resized by the plan.
            plan: which removes the units that do not stay.
        """


def check_undecided(decision: Decision | None, what: str) -> None:
    """Raise if a method decides which units stay.

    Args:
        decision: the method; None if there is none.
        what: what follows from that, for the error message.

    Raises:
        ConfigurationError: a method decides.
    """
    if decision is not None:
        raise ConfigurationError(
            f"{type(decision).__name__} decides which units stay, so {what}; attach the model without a method for that"
        )
