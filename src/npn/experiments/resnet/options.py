"""Settings of the residual networks."""

from dataclasses import dataclass

from npn.experiments.engine.options import Options


@dataclass(frozen=True)
class ResNetOptions(Options):
    """Settings of the residual networks, besides those of every experiment.

    Attributes:
        depth: layers, 6n + 2.
        dataset: "cifar10" or "cifar100".
        decay: of the learning rates: "steps" (the paper's) or "cosine".
        stream: gates on the residual streams, too.
        blocks: gates on whole blocks, too; a closed block is its shortcut.
        precision: "fp32", "bf16" or "fp16".
        channels_last: memory layout of images and kernels.
        compile: call the model through `torch.compile`.
        graphs: replay training steps as CUDA graphs between two resizes.
        antithetic_eval: the second pass of an estimator of two losses in eval mode, as in the paper's code.
        overshoot: growth ends at a plain net of so many times the budget, before gates choose what stays.
        round_to: the last cut, before fine-tuning, keeps multiples of so many channels in each block.
    """

    depth: int | None = None
    dataset: str | None = None
    decay: str | None = None
    stream: bool | None = None
    blocks: bool | None = None
    precision: str | None = None
    channels_last: bool | None = None
    compile: bool | None = None
    graphs: bool | None = None
    antithetic_eval: bool | None = None
    overshoot: float | None = None
    round_to: int | None = None
