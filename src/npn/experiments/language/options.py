"""Settings of the GPT."""

from dataclasses import dataclass

from npn.experiments.engine.options import Options


@dataclass(frozen=True)
class LanguageOptions(Options):
    """Settings of the GPT, besides those of every experiment.

    Attributes:
        text: folder of text files; None for the sources of Python's standard library.
        width: of the stream.
        layers: number of blocks.
        context: bytes of a window.
        norm: "rms" or "layer".
        positions: "rotary" or "learned".
        precision: "fp32", "bf16" or "fp16".
        learning_rate: highest learning rate of the weights.
        like: scratch: folder of a finished run, whose sizes are trained with new weights.
        blocks: sparsify: gates on whole attention and MLP branches, too; expand always has them.
    """

    text: str | None = None
    width: int | None = None
    layers: int | None = None
    context: int | None = None
    norm: str | None = None
    positions: str | None = None
    precision: str | None = None
    learning_rate: float | None = None
    like: str | None = None
    blocks: bool | None = None
