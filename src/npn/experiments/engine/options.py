"""Settings of a run: given by a user, completed by the experiment, checked when the run is resumed."""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from npn._importance import CRITERIA
from npn.errors import ConfigurationError

# settings that every experiment has by default
STANDARD: dict[str, Any] = {"seed": 0, "k": 7.0, "estimator": "reinmax", "function": "sigmoid", "device": "cpu"}


@dataclass(frozen=True)
class Options:
    """Settings of one run; `None` leaves the choice to the experiment.

    Attributes:
        mode: "sparsify" starts at full size and removes, "expand" starts tiny and adds.
        seed: draws the data, the initial weights, the order of the examples and the masks.
        k: sharpness of the plastic stage.
        estimator: name of the gradient estimator, as `npn.attach` takes it.
        function: name of the gate function, as `npn.attach` takes it.
        penalty: lambda in loss units per parameter, or per MAC where the experiment counts MACs.
        budget: cost to end with, instead of a penalty; at most 1 for a share of the full network.
        epochs: epochs in all, divided among the stages as by default, or one number per stage: "20,180,20".
        device: "cpu", "cuda", "cuda:1", ...
        data: folder of the data set, for experiments that read one from disk.
        start_from: criterion of `npn.importance` that the gates start from when the plastic stage begins; None starts
            them all alike.
        growth_init: how new units start in mode "expand", see `npn.Growth`; None is "zero".
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
    growth_init: str | None = None
    start_from: str | None = None

    def over(self, defaults: "Options") -> "Options":
        """Fill the settings that these leave open.

        Args:
            defaults: settings to take then; the result has their class.

        Example:
            >>> Options(k=5.0).over(Options(k=7.0, seed=0)) == Options(k=5.0, seed=0)
            True
        """
        return replace(defaults, **{name: value for name, value in asdict(self).items() if value is not None})

    def resumed(self, saved: "Options") -> "Options":
        """Return the settings of a run to resume, after checking that these do not contradict them.

        Args:
            saved: settings that the run began with.

        Raises:
            ConfigurationError: a setting is given and differs.
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
        """Return the mode, after checking it, the penalty and the budget.

        Args:
            modes: modes that the experiment has.

        Raises:
            ConfigurationError: the mode is not one of them, penalty or budget is not a finite number, both are given,
                or one is given where nothing pays it, or a start of new units where none are added.
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
        if self.mode == "dense" and not (self.penalty is None and self.budget is None):
            raise ConfigurationError("dense trains the full net at no price: leave out the penalty and the budget")
        if self.start_from is not None and self.start_from not in CRITERIA:
            raise ConfigurationError(
                f"start_from must be one of {', '.join(map(repr, CRITERIA))}, got {self.start_from!r}"
            )
        if self.growth_init is not None and self.mode != "expand":
            raise ConfigurationError(f"growth_init is for the mode 'expand', which adds units, got mode {self.mode!r}")
        return self.mode

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for JSON and checkpoints."""
        return asdict(self)


def stage_lengths(epochs: str | None, default: Sequence[int]) -> list[int]:
    """Compute the epochs of each stage.

    Args:
        epochs: epochs in all, divided in the proportions of `default`, or one number per stage separated by commas, or
            None for the default.
        default: epochs of each stage by default.

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
    # whole shares of the rest, stage by stage: the sum is exact and every stage has an epoch
    left, weight, lengths = numbers[0], sum(default), []
    for index, share in enumerate(default):
        rest = len(default) - index - 1
        length = min(max(1, round(left * share / weight)), left - rest)
        lengths.append(length)
        left, weight = left - length, weight - share
    return lengths


def in_one_stage(epochs: str | None, default: Sequence[int]) -> str | None:
    """Convert the epochs of a mode with several stages for a mode with one; None stays None.

    Args:
        epochs: as for `stage_lengths`.
        default: epochs of each stage of the mode with several.

    Raises:
        ConfigurationError: as `stage_lengths`.

    Example:
        >>> in_one_stage("1,2,3", default=[20, 60, 20])
        '6'
    """
    return None if epochs is None else str(sum(stage_lengths(epochs, default)))


def parse_seeds(text: str) -> list[int]:
    """Parse a list of seeds and ranges of seeds.

    Args:
        text: numbers and ranges separated by commas.

    Raises:
        ConfigurationError: `text` is something else.

    Example:
        >>> parse_seeds("0-2,7")
        [0, 1, 2, 7]
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise ConfigurationError(f'seeds must be numbers and ranges separated by commas, as "0-4,7", got {text!r}')
        first, last = int(match[1]), int(match[2] or match[1])
        seeds += range(first, last + 1)
    if not seeds:
        raise ConfigurationError(f"no seed in {text!r}: a range runs upwards")
    return seeds
