"""When training is what: stages of one sharpness `k` each, as the paper's pre-train, plastic and fine-tune."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final

from npn._utils.validation import whole_number
from npn.errors import CheckpointError, ConfigurationError


class HasSharpness(Protocol):
    """What a schedule acts on: `npn.Plasticity`, or anything else whose `k` can be set."""

    k: float


def annealed(start: float, end: float, fraction: float, how: Literal["geometric", "linear"] = "geometric") -> float:
    """The sharpness a fraction of the way from `start` to `end`.

    geometric: `start (end / start)^fraction`; linear: `start + fraction (end - start)`.

    Args:
        start: sharpness at fraction 0; above 0 for "geometric".
        end: sharpness at fraction 1; above 0 for "geometric".
        fraction: how much of the way is done, 0 to 1; values outside are clipped.
        how: "geometric" or "linear".

    Returns:
        The sharpness; exactly `start` and `end` at the two ends.

    Example:
        >>> annealed(1.0, 100.0, 0.5), annealed(1.0, 100.0, 0.5, "linear")
        (10.0, 50.5)
    """
    if fraction <= 0.0:
        return start
    if fraction >= 1.0:
        return end
    if how == "geometric":
        return float(start * (end / start) ** fraction)
    return start + fraction * (end - start)


@final
@dataclass(frozen=True)
class Plateau:
    """Ends a stage early: the metric has not improved for `patience` observations.

    A value v improves on the best one b of the stage when `v < b - min_delta` (mode "min") or `v > b + min_delta`
    ("max"). NaN improves on nothing.

    Args:
        patience: observations in a row without improvement that end the stage, at least 1.
        min_delta: by how much a value must beat the best one, in the metric's unit, at least 0.
        mode: "min" for losses, "max" for accuracies.
        minimum: epochs that the stage lasts in any case.

    Raises:
        ConfigurationError: an argument is outside its range.

    Example:
        >>> Plateau(patience=5, min_delta=0.01).improves(0.85, best=0.9)
        True
    """

    patience: int
    min_delta: float = 0.0
    mode: Literal["min", "max"] = "min"
    minimum: int = 0

    def __post_init__(self) -> None:
        whole_number("Plateau patience", self.patience, 1)
        whole_number("Plateau minimum", self.minimum, 0)
        if not 0.0 <= self.min_delta < math.inf:
            raise ConfigurationError(f"Plateau min_delta must be a finite number >= 0, got {self.min_delta!r}")
        if self.mode not in ("min", "max"):
            raise ConfigurationError(f'Plateau mode must be "min" or "max", got {self.mode!r}')

    def improves(self, value: float, best: float | None) -> bool:
        """Whether `value` beats the best value so far; the first value that is a number always does."""
        if math.isnan(value):
            return False
        if best is None:
            return True
        return value < best - self.min_delta if self.mode == "min" else value > best + self.min_delta


@final
@dataclass(frozen=True)
class Stage:
    """Some epochs at one sharpness, or along one path of it.

    `k = inf` trains the present network as it is, `k = 0` is dropout with probability 1 - g(0), and in between units
    open and close. With `k_end`, epoch i of n has the sharpness `annealed(k, k_end, i / (n - 1))`.

    Args:
        name: what reports and figures call it; unique in a schedule.
        epochs: length, at least 1; the longest it may take if `until` is given.
        k: sharpness, 0 to `math.inf`.
        k_end: sharpness of the stage's last epoch, finite; `None` keeps `k`.
        anneal: path from `k` to `k_end`, "geometric" (both above 0) or "linear".
        until: ends the stage early when the metric given to `Schedule.observe` stops improving.

    Raises:
        ConfigurationError: an argument is outside its range.

    Example:
        >>> stage = Stage("plastic", 3, k=1.0, k_end=9.0, anneal="linear")
        >>> [stage.k_at(epoch) for epoch in range(3)]
        [1.0, 5.0, 9.0]

    References:
        Li & Ji, Neural Plasticity Networks, arXiv:1908.08118: one sharpness k moves the stages.
    """

    name: str
    epochs: int
    k: float = math.inf
    k_end: float | None = None
    anneal: Literal["geometric", "linear"] = "geometric"
    until: Plateau | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigurationError(f"a stage needs a non-empty name, got {self.name!r}")
        where = f"stage {self.name!r}"
        whole_number(f"{where}: epochs", self.epochs, 1)
        if not self.k >= 0.0:
            raise ConfigurationError(f"{where}: k must be >= 0 (math.inf is a mode), got {self.k!r}")
        if self.anneal not in ("geometric", "linear"):
            raise ConfigurationError(f'{where}: anneal must be "geometric" or "linear", got {self.anneal!r}')
        if self.k_end is None:
            return
        if math.isinf(self.k) or not 0.0 <= self.k_end < math.inf:
            raise ConfigurationError(
                f"{where}: k_end needs a finite k and must itself be finite and >= 0, got k={self.k!r}, "
                f"k_end={self.k_end!r}; anneal to a large finite k and let the next stage have k=math.inf"
            )
        if self.anneal == "geometric" and not (self.k > 0.0 and self.k_end > 0.0):
            raise ConfigurationError(
                f"{where}: geometric annealing needs k > 0 and k_end > 0, got k={self.k!r}, k_end={self.k_end!r}; "
                'use anneal="linear"'
            )
        if self.epochs < 2:
            raise ConfigurationError(f"{where}: k_end needs at least 2 epochs, got epochs={self.epochs!r}")

    def k_at(self, position: int) -> float:
        """The sharpness of the stage's epoch `position`, counted from 0; past its end that of the last one."""
        if self.k_end is None:
            return self.k
        return annealed(self.k, self.k_end, position / (self.epochs - 1), self.anneal)


@final
class Schedule:
    """The stages of a training, one after the other.

    The stage follows from the epoch's number. A stage that its `Plateau` ends hands its remaining epochs to nobody: the
    next stage begins at once and the training becomes shorter. `for epoch in schedule` then stops early. In
    `for epoch in range(schedule.epochs)` the epochs left over at the end run as more of the last stage, with
    `schedule.done` true throughout, to `break` on. An epoch at or past `schedule.epochs` is an error. Going back to an
    earlier epoch forgets the plateaus met after it, so that one schedule may serve several trainings.

    Args:
        stages: at least one, with different names.

    Raises:
        ConfigurationError: no stages, something that is not a stage, or a name used twice.

    Example:
        >>> from types import SimpleNamespace
        >>> plastic = SimpleNamespace(k=math.inf)  # stands for the result of npn.attach
        >>> schedule = Schedule(Stage("pretrain", 1), Stage("plastic", 2, k=7.0), Stage("finetune", 1))
        >>> for epoch in schedule:
        ...     stage = schedule.enter(epoch, plastic)
        ...     print(epoch, stage.name, plastic.k)
        0 pretrain inf
        1 plastic 7.0
        2 plastic 7.0
        3 finetune inf
    """

    def __init__(self, *stages: Stage) -> None:
        if not stages:
            raise ConfigurationError("a schedule needs at least one stage, got none")
        for stage in stages:
            if not isinstance(stage, Stage):
                raise ConfigurationError(f"a schedule is made of npn.Stage objects, got {stage!r}")
        names = [stage.name for stage in stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigurationError(f"stage names must differ, used more than once: {', '.join(map(repr, twice))}")
        self.stages = stages
        self._epoch = -1  # the epoch that runs or ran last
        self._ends: dict[int, int] = {}  # stage index -> the epoch after its last, where a plateau ended it
        self._best: float | None = None
        self._stale = 0

    @property
    def epochs(self) -> int:
        """The most epochs the training can take: the sum of the stages' lengths."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def stage(self) -> Stage | None:
        """The stage of the present epoch; `None` before the first."""
        return None if self._epoch < 0 else self.stages[self._locate(self._epoch)]

    @property
    def done(self) -> bool:
        """Whether no epoch is left after the present one."""
        return self._epoch + 1 >= self.spans()[-1][2]

    def spans(self) -> list[tuple[str, int, int]]:
        """`(name, first epoch, epoch after the last)` of each stage, as far as is known: stages to come at full length.

        Example:
            >>> Schedule(Stage("a", 2), Stage("b", 3)).spans()
            [('a', 0, 2), ('b', 2, 5)]
        """
        spans, start = [], 0
        for index, stage in enumerate(self.stages):
            stop = self._ends.get(index, start + stage.epochs)
            spans.append((stage.name, start, stop))
            start = stop
        return spans

    def enter(self, epoch: int, plastic: HasSharpness) -> Stage:
        """Begin an epoch: set `plastic.k` to its sharpness.

        Args:
            epoch: number of the epoch, 0 to `epochs - 1`.
            plastic: the result of `npn.attach`.

        Returns:
            The stage that the epoch belongs to.

        Raises:
            ConfigurationError: the epoch is outside the schedule.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch < self.epochs:
            raise ConfigurationError(
                f"epoch must be a whole number from 0 to {self.epochs - 1}, got {epoch!r}; "
                "loop over the schedule itself or give its last stage more epochs"
            )
        index = self._move(epoch)
        plastic.k = self.stages[index].k_at(epoch - self.spans()[index][1])
        return self.stages[index]

    def observe(self, metric: float) -> None:
        """Report the metric of the present epoch; ends the stage after this epoch if its plateau says so.

        Args:
            metric: usually the validation loss, never anything measured on test data. Without `until` it is ignored.

        Raises:
            ConfigurationError: no epoch was entered yet.
        """
        if self._epoch < 0:
            raise ConfigurationError("observe() belongs to an epoch: call enter(epoch, plastic) first")
        index = self._locate(self._epoch)
        until, (_, start, stop) = self.stages[index].until, self.spans()[index]
        if until is None or self._epoch + 1 >= stop:
            return
        value = float(metric)
        if until.improves(value, self._best):
            self._best, self._stale = value, 0
        else:
            self._stale += 1
        if self._stale >= until.patience and self._epoch - start + 1 >= until.minimum:
            self._ends[index] = self._epoch + 1

    def __repr__(self) -> str:
        stages = ", ".join(f"{stage.name}: {stop - start}" for stage, (_, start, stop) in self._spanned())
        now = "not begun" if self.stage is None else f"epoch {self._epoch} of {self.epochs}, stage {self.stage.name!r}"
        return f"Schedule({stages}; {now})"

    def _spanned(self) -> list[tuple[Stage, tuple[str, int, int]]]:
        return list(zip(self.stages, self.spans(), strict=True))

    def __iter__(self) -> Iterator[int]:
        """The epochs from the next one on, as long as any is left; after `load_state_dict`, those still to run."""
        while not self.done:
            self._move(self._epoch + 1)
            yield self._epoch

    def state_dict(self) -> dict[str, Any]:
        """Where the training is, in plain values. Take it at the end of an epoch, after `observe`."""
        return {
            "stages": [[stage.name, stage.epochs] for stage in self.stages],
            "epoch": self._epoch,
            "ends": [self._ends.get(index, -1) for index in range(len(self.stages))],
            "best": self._best,
            "stale": self._stale,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken: `for epoch in schedule` continues with the epoch after it.

        Args:
            state: what `state_dict` of a schedule with the same stages returned.

        Raises:
            CheckpointError: the state is not that of a schedule, or of one with other stages; nothing was loaded.
        """
        missing = {"stages", "epoch", "ends", "best", "stale"} - set(state)
        if missing:
            raise CheckpointError(f"not the state of a schedule: it lacks {', '.join(sorted(missing))}")
        here, there = self.state_dict()["stages"], [list(stage) for stage in state["stages"]]
        if here != there:
            raise CheckpointError(f"the state belongs to other stages: expected {here}, got {there}; build those")
        self._epoch = int(state["epoch"])
        self._ends = {index: int(end) for index, end in enumerate(state["ends"]) if end >= 0}
        self._best = None if state["best"] is None else float(state["best"])
        self._stale = int(state["stale"])

    def _locate(self, epoch: int) -> int:
        """Index of the stage that an epoch belongs to; what lies past the end belongs to the last one."""
        for index, (_, _, stop) in enumerate(self.spans()):
            if epoch < stop:
                return index
        return len(self.stages) - 1

    def _move(self, epoch: int) -> int:
        """Make an epoch the present one and return the index of its stage."""
        back = epoch < self._epoch
        before = self._locate(self._epoch) if self._epoch >= 0 else None
        if back:
            self._ends = {index: end for index, end in self._ends.items() if end <= epoch}
        index = self._locate(epoch)
        if back or index != before:  # another stage, or another try at this one: its plateau starts afresh
            self._best, self._stale = None, 0
        self._epoch = epoch
        return index
