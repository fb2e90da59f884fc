"""Settings of a run of the comparison."""

from dataclasses import dataclass

from npn.experiments.engine.options import Options


@dataclass(frozen=True)
class PeerOptions(Options):
    """Settings of a run of the comparison, besides those of every experiment; its mode is one of `arms.KINDS`.

    Attributes:
        network: one of `networks.NETWORKS`.
        settings: what trials choose, by name: learning rates, weight decay, the method's own settings.
        like: folder of a finished run whose widths a plain net gets.
        start: folder of a finished run that this one continues.
        precision: "fp32", "bf16" or "fp16".
    """

    network: str | None = None
    settings: dict[str, float] | None = None
    like: str | None = None
    start: str | None = None
    precision: str | None = None
