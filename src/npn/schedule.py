"""Stages of a training, one sharpness `k` each: pre-train, plastic and fine-tune in the paper."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final

from torch import nn

from npn._utils.validation import HANDLE, complete_state, instance, is_number, not_negative, shown, whole_number
from npn.errors import CheckpointError, ConfigurationError


class HasSharpness(Protocol):
    """The interface that a schedule needs: `npn.Plasticity`, or any object whose `k` can be set.

    Attributes:
        k: sharpness, 0 to `math.inf`.
    """

    k: float


def annealed(start: float, end: float, fraction: float, how: Literal["geometric", "linear"] = "geometric") -> float:
    """Sharpness at a fraction of the way from `start` to `end`.

    geometric: `start (end / start)^fraction`; linear: `start + fraction (end - start)`.

    Args:
        start: sharpness at fraction 0; above 0 for "geometric".
        end: sharpness at fraction 1; above 0 for "geometric".
        fraction: 0 to 1; other values are clipped.
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
    """End a stage early, once the metric has not improved for `patience` observations.

    A value v improves on the best value b of the stage when `v < b - min_delta` (mode "min") or `v > b + min_delta`
    ("max"). NaN is never an improvement.

    Args:
        patience: observations in a row without improvement that end the stage, at least 1.
        min_delta: by how much a value must beat the best one, in the metric's unit, at least 0.
        mode: "min" for losses, "max" for accuracies.
        minimum: epochs that the stage lasts in any case.

    Attributes:
        patience, min_delta, mode, minimum: the arguments.

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
        not_negative("Plateau min_delta", self.min_delta)
        if self.mode not in ("min", "max"):
            raise ConfigurationError(f'Plateau mode must be "min" or "max", got {self.mode!r}')

    def improves(self, value: float, best: float | None) -> bool:
        """Whether a value beats the best value so far; the first value that is not NaN always does.

        Args:
            value: the new value.
            best: the best value so far, None before the first.
        """
        if math.isnan(value):
            return False
        if best is None:
            return True
        return value < best - self.min_delta if self.mode == "min" else value > best + self.min_delta


@final
@dataclass(frozen=True)
class Stage:
    """Some epochs at one sharpness, or along one path of sharpness values.

    `k = inf` trains the present network unchanged, `k = 0` is dropout with probability 1 - g(0), and in between units
    open and close. With `k_end`, epoch i of n has the sharpness `annealed(k, k_end, i / (n - 1))`.

    Args:
        name: name in reports and figures; unique in a schedule.
        epochs: number of epochs, at least 1; the largest number if `until` is given.
        k: sharpness, 0 to `math.inf`.
        k_end: sharpness of the stage's last epoch, finite; `None` keeps `k`.
        anneal: path from `k` to `k_end`, "geometric" (both above 0) or "linear".
        until: ends the stage early when the metric given to `Schedule.observe` stops improving.

    Attributes:
        name, epochs, k, k_end, anneal, until: the arguments.

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
        if not is_number(self.k) or not self.k >= 0.0:
            raise ConfigurationError(f"{where}: k must be >= 0 (math.inf is a mode), got {self.k!r}")
        if self.anneal not in ("geometric", "linear"):
            raise ConfigurationError(f'{where}: anneal must be "geometric" or "linear", got {self.anneal!r}')
        if self.until is not None:
            instance(f"{where}: until", self.until, Plateau, "npn.Plateau(patience=...)")
        if self.k_end is None:
            return
        if math.isinf(self.k) or not is_number(self.k_end) or not 0.0 <= self.k_end < math.inf:
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
        """Sharpness of an epoch of the stage.

        Args:
            position: epoch, counted from the start of the stage; an epoch after its end has the last one's sharpness.
        """
        if self.k_end is None:
            return self.k
        return annealed(self.k, self.k_end, position / (self.epochs - 1), self.anneal)


@final
class Schedule:
    """The stages of a training, in order.

    The epoch's number determines the stage. When a `Plateau` ends a stage, its remaining epochs are dropped: the next
    stage begins at once, the training becomes shorter, and `for epoch in schedule` stops early. In `for epoch in
    range(schedule.epochs)` the dropped epochs run at the end as more of the last stage, with `schedule.done` true, so
    that the loop can `break`. Entering an epoch at or past `schedule.epochs` is an error. Returning to an earlier epoch
    forgets the plateaus reached after it, so that one schedule can serve several trainings.

    Args:
        stages: at least one, with different names.

    Attributes:
        stages: the argument.

    Raises:
        ConfigurationError: there are no stages, an argument is not a stage, or a name is used twice.

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
        self._epoch = -1  # the last epoch entered
        self._ends: dict[int, int] = {}  # stage index -> end of the stage (exclusive), if a plateau ended it
        self._best: float | None = None
        self._stale = 0

    @property
    def epochs(self) -> int:
        """The largest number of epochs that the training can take: the sum of the stages' epochs."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def stage(self) -> Stage | None:
        """The stage of the present epoch; None before the first epoch."""
        return None if self._epoch < 0 else self.stages[self._locate(self._epoch)]

    @property
    def done(self) -> bool:
        """Whether no epoch remains after the present one."""
        return self._epoch + 1 >= self.spans()[-1][2]

    def spans(self) -> list[tuple[str, int, int]]:
        """`(name, first epoch, end)` of each stage, with the end exclusive; future stages count at full length.

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
        """Begin an epoch and set `plastic.k` to its sharpness.

        Args:
            epoch: number of the epoch, 0 to `epochs - 1`.
            plastic: the result of `npn.attach`.

        Returns:
            The stage of this epoch.

        Raises:
            ConfigurationError: the epoch is outside the schedule, or `plastic` is no handle; nothing has changed.
        """
        if isinstance(plastic, nn.Module) or not hasattr(plastic, "k"):  # a model would take a k, and ignore it
            raise ConfigurationError(f"plastic must be {HANDLE}, got {shown(plastic)}")
        if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch < self.epochs:
            raise ConfigurationError(
                f"epoch must be a whole number from 0 to {self.epochs - 1}, got {epoch!r}; "
                "loop over the schedule itself or give its last stage more epochs"
            )
        index = self._move(epoch)
        plastic.k = self.stages[index].k_at(epoch - self.spans()[index][1])
        return self.stages[index]

    def observe(self, metric: float) -> None:
        """Report the metric of the present epoch; the stage ends after this epoch if its plateau is reached.

        Args:
            metric: usually the validation loss, never a result on test data; ignored by stages without `until`.

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
        """Iterate over the remaining epochs; after `load_state_dict`, over those still to run."""
        while not self.done:
            self._move(self._epoch + 1)
            yield self._epoch

    def state_dict(self) -> dict[str, Any]:
        """The progress of the training, as plain values. Take it at the end of an epoch, after `observe`."""
        return {
            "stages": [[stage.name, stage.epochs] for stage in self.stages],
            "epoch": self._epoch,
            "ends": [self._ends.get(index, -1) for index in range(len(self.stages))],
            "best": self._best,
            "stale": self._stale,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` saved; `for epoch in schedule` then continues with the following epoch.

        Args:
            state: the result of `state_dict` of a schedule with the same stages.

        Raises:
            CheckpointError: the state does not belong to a schedule with these stages; nothing was loaded.
        """
        complete_state(state, ("stages", "epoch", "ends", "best", "stale"), "a Schedule", "schedule")
        here, there = self.state_dict()["stages"], [list(stage) for stage in state["stages"]]
        if here != there:
            raise CheckpointError(f"the state belongs to other stages: expected {here}, got {there}; build those")
        self._epoch = int(state["epoch"])
        self._ends = {index: int(end) for index, end in enumerate(state["ends"]) if end >= 0}
        self._best = None if state["best"] is None else float(state["best"])
        self._stale = int(state["stale"])

    def _locate(self, epoch: int) -> int:
        """Index of the stage of an epoch; epochs past the end belong to the last stage."""
        for index, (_, _, stop) in enumerate(self.spans()):
            if epoch < stop:
                return index
        return len(self.stages) - 1

    def _move(self, epoch: int) -> int:
        """Make an epoch the present one, and return the index of its stage."""
        back = epoch < self._epoch
        before = self._locate(self._epoch) if self._epoch >= 0 else None
        if back:
            self._ends = {index: end for index, end in self._ends.items() if end <= epoch}
        index = self._locate(epoch)
        if back or index != before:  # another stage, or a repetition of this one: reset its plateau
            self._best, self._stale = None, 0
        self._epoch = epoch
        return index
