"""Settings of the two moons."""

from dataclasses import dataclass

from npn.experiments.engine.options import Options


@dataclass(frozen=True)
class MoonsOptions(Options):
    """Settings of the two moons, besides those of every experiment.

    Attributes:
        preset: "paper" for the paper's own recipe, see docs/paper.md.
    """

    preset: str | None = None
