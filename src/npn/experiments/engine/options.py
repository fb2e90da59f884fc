"""What a user may set for a run, and how a run's settings survive until it is resumed."""

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from npn.errors import ConfigurationError
from npn.penalty import Budget, CostKind, Penalty


@dataclass(frozen=True)
class Options:
    """Settings of one run; `None` leaves the choice to the experiment.

    Attributes:
        mode: "sparsify" starts at full size and removes, "expand" starts tiny and adds.
        seed: draws the data, the initial weights, the order of the examples and the masks.
        k: sharpness of the plastic stage.
        estimator: name of the gradient estimator, as `npn.attach` takes it.
        function: name of the gate function, as `npn.attach` takes it.
        penalty: lambda in loss units per parameter, or per what the experiment counts as cost.
        budget: cost to end with, in place of a penalty; at most 1 for a share of the full network.
        epochs: epochs in all, divided among the stages as by default, or one number per stage: "20,180,20".
        device: "cpu", "cuda", "cuda:1", ...
        data: folder of the data set, for experiments that read one from disk.
    """

    mode: str | None = None
    seed: int | None = None
    k: float | None = None
    estimator: str | None = None
    function: str | None = None
    penalty: float | None = None
    budget: float | None = None
    epochs: str | None = None
    device: str | None = None
    data: str | None = None

    def over(self, defaults: "Options") -> "Options":
        """These settings, with `defaults` where they leave the choice open.

        Example:
            >>> Options(k=5.0).over(Options(k=7.0, seed=0)) == Options(k=5.0, seed=0)
            True
        """
        return replace(defaults, **{name: value for name, value in asdict(self).items() if value is not None})

    def resumed(self, saved: "Options") -> "Options":
        """The settings of a run to resume, after checking that none given now contradicts them.

        Raises:
            ConfigurationError: a setting differs from the saved run's.
        """
        for field in fields(self):
            now, then = getattr(self, field.name), getattr(saved, field.name)
            if now is not None and now != then:
                raise ConfigurationError(
                    f"the run to resume has {field.name}={then!r}, got {field.name}={now!r}; "
                    "leave the option out, or start another run with --out"
                )
        return saved

    def checked_mode(self, modes: Collection[str]) -> str:
        """The mode, once it is known to be one of `modes` and the settings do not contradict each other.

        Raises:
            ConfigurationError: it is not, or both a penalty and a budget are given, or a penalty where nothing pays, or
                one of them is no finite number.
        """
        if self.mode is None or self.mode not in modes:
            raise ConfigurationError(f"mode must be one of {', '.join(map(repr, modes))}, got {self.mode!r}")
        for name, value in (("penalty", self.penalty), ("budget", self.budget)):
            if value is not None and not 0.0 <= value < math.inf:
                raise ConfigurationError(f"{name} must be a finite number of at least 0, got {value}")
        if self.penalty is not None and self.budget is not None:
            raise ConfigurationError("give a penalty or a budget, not both: a budget finds its penalty by itself")
        if self.mode == "scratch" and self.penalty is not None:
            raise ConfigurationError("scratch trains a plain net of the budget's size: give a budget, not a penalty")
        return self.mode

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and checkpoints."""
        return asdict(self)


@dataclass(frozen=True)
class ResNetOptions(Options):
    """Settings of the residual networks besides those that every experiment has.

    Attributes:
        depth: layers, 6n + 2.
        dataset: "cifar10" or "cifar100".
        decay: of the learning rates: "steps" (the paper's) or "cosine".
        stream: gates on the residual streams, too.
        blocks: gates on whole blocks, too: a closed one is its shortcut.
        precision: "fp32", "bf16" or "fp16".
        channels_last: memory layout of images and kernels.
        compile: call the model through `torch.compile`.
    """

    depth: int | None = None
    dataset: str | None = None
    decay: str | None = None
    stream: bool | None = None
    blocks: bool | None = None
    precision: str | None = None
    channels_last: bool | None = None
    compile: bool | None = None


def cost_term(options: Options, cost: CostKind = "params", **budget: Any) -> Penalty | Budget:
    """What size costs by these settings: a budget if there is one, else the price.

    Args:
        options: with `budget` or `penalty`.
        cost: what is counted.
        budget: further arguments of `npn.Budget`.

    Example:
        >>> cost_term(Options(budget=0.5)).target, cost_term(Options(penalty=1e-6)).weight
        (0.5, 1e-06)
    """
    if options.budget is None:
        return Penalty(cost=cost, weight=options.penalty or 0.0)
    return Budget(cost=cost, target=options.budget if options.budget <= 1 else int(options.budget), **budget)


def in_full(budget: float | None, full: float) -> float | None:
    """The budget as a size, where it may be a share of the full network, whatever network training starts with.

    Example:
        >>> in_full(0.5, full=8442), in_full(300.0, full=8442)
        (4221.0, 300.0)
    """
    return budget if budget is None or budget > 1 else max(2.0, budget * full)  # up to 1 it would again be a share


def stage_lengths(epochs: str | None, default: Sequence[int]) -> list[int]:
    """Epochs of each stage.

    Args:
        epochs: epochs in all, divided in the proportions of `default`, or one number per stage separated by commas, or
            None for the default.
        default: epochs of each stage when nothing is asked for.

    Returns:
        As many whole numbers of at least 1 as `default` has.

    Raises:
        ConfigurationError: not numbers, the wrong number of them, or too few epochs for every stage to have one.

    Example:
        >>> stage_lengths("50", default=[20, 60, 20]), stage_lengths("1,2,3", default=[20, 60, 20])
        ([10, 30, 10], [1, 2, 3])
    """
    if epochs is None:
        return list(default)
    try:
        numbers = [int(part) for part in epochs.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == len(default) and all(number >= 1 for number in numbers):
        return numbers
    if len(numbers) != 1 or numbers[0] < len(default):
        several = f" or {len(default)} numbers of at least 1, one per stage and separated by commas"
        raise ConfigurationError(
            f"epochs must be one number of at least {len(default)}{several * (len(default) > 1)}, got {epochs!r}"
        )
    # whole shares of what is left, stage by stage: the sum is exact and no stage goes empty
    left, weight, lengths = numbers[0], sum(default), []
    for index, share in enumerate(default):
        rest = len(default) - index - 1
        length = min(max(1, round(left * share / weight)), left - rest)
        lengths.append(length)
        left, weight = left - length, weight - share
    return lengths


def in_one_stage(epochs: str | None, default: Sequence[int]) -> str | None:
    """The same epochs for a mode that has a single stage; None stays None.

    Args:
        epochs: as for `stage_lengths`.
        default: epochs of each stage of the other mode.

    Raises:
        ConfigurationError: as `stage_lengths`.

    Example:
        >>> in_one_stage("1,2,3", default=[20, 60, 20])
        '6'
    """
    return None if epochs is None else str(sum(stage_lengths(epochs, default)))
