"""Algorithm 1 of the paper: a layer whose units are all open gets another unit while the network improves."""

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

from torch import Tensor

from npn._utils.patterns import as_patterns, match_patterns
from npn._utils.validation import (
    HANDLE,
    complete_state,
    connection_count,
    is_number,
    not_negative,
    shown,
    whole_number,
)
from npn.candidates import check_start
from npn.errors import ConfigurationError, NonFiniteLossError
from npn.gates.decision import check_undecided
from npn.growable import Growable, GrowableGroup, Report, closed_units, limit_of, multiple_of, names_of
from npn.surgery import checked_init


@final
@dataclass(frozen=True)
class GrowthEvent:
    """One growth.

    Attributes:
        step: number of the call of `Growth.step`, from 1.
        loss: validation loss at that step.
        added: group name -> units added.
        reopened: group name -> closed units reopened.
        connections: name of a parameter -> closed single weights reopened.
    """

    step: int
    loss: float
    added: dict[str, int]
    reopened: dict[str, int]
    connections: dict[str, int] = field(default_factory=dict)


def units_to_open(
    size: int, closed: int, waited: int, *, units: int | float, limit: float, revive: float
) -> tuple[int, int]:
    """Compute how many units one group gets when the loss has improved enough.

    A group with every unit open gets new ones, up to its limit. A group with closed units gets nothing at first,
    because it does not use all its units: either they reopen or `compact` removes them. If neither has happened for
    `revive` steps, the closed units are reopened before any unit is added.

    Args:
        size: units of the group, open and closed.
        closed: closed units of the group.
        waited: steps in a row for which the group has had closed units.
        units: units to open: a whole number, or a float fraction of `size`, rounded down but at least 1.
        limit: largest number of units, and of open units, that the group may have.
        revive: steps after which closed units are reopened.

    Returns:
        Number of closed units to reopen, and number of units to add.

    Example:
        >>> units_to_open(10, closed=0, waited=0, units=0.25, limit=80, revive=10)
        (0, 2)
        >>> units_to_open(10, closed=1, waited=3, units=2, limit=80, revive=10)
        (0, 0)
        >>> units_to_open(10, closed=1, waited=10, units=2, limit=80, revive=10)
        (1, 1)
    """
    if closed and waited < revive:
        return 0, 0
    wanted = max(1, int(units * size)) if isinstance(units, float) else units
    reopened = max(0, int(min(wanted, closed, limit - (size - closed))))
    return reopened, max(0, int(min(wanted - reopened, limit - size)))


@final
class Growth:
    """The paper's Algorithm 1 as a policy: call `step` after each validation, usually once per epoch.

    A group gets a unit when

    1. the validation loss has fallen below its value at the last growth, by more than `min_delta`, and
    2. every unit of the group is open, units in their grace period included.

    Each group is judged by itself, so a closed unit in one layer does not block another layer. A closed unit does not
    block its own group for ever either: after `revive` steps in a row with closed units, a group reopens those, the
    unit with the lowest keep probability first, before it gets new units. Growth ends for good

    a. when the validation loss has not improved, and nothing has grown, for `patience` steps;
    b. when no group can get another unit: each is at its `limit` with every unit open, or the model has `max_params`;
    c. after `until` calls of `step`.

    Units are added physically. A new or reopened unit is held open and unpenalised for `grace` training steps: no
    weight reads it yet, so the penalty would close it before the data give it a gradient. `init` says how it starts;
    every way keeps the function (docs/growing.md has the mathematics):

    - "zero": random fan-in, zero fan-out. At first only the fan-out gets a gradient.
    - "pair": two units at a time with the same fan-in and opposite fan-outs, so that both ends get a gradient at once.
      An odd last unit starts as in "zero": choose an even number of `units`; a fraction is rounded up to one.
    - "split": a copy of the open unit with the largest fan-out, which the two share; both are held open.
    - "select": as "zero", but the best of 16 times as many, chosen by the gradient of their fan-out on one batch, less
      what existing units do already; `step` needs the batch's `loss`.

    Units that come in sets, that have tied or normalised weights or a frozen fan-in start as in "zero" or "select".

    Args:
        units: units that a group gets at a time: an int, or a float fraction of its present size (at least 1 unit; 1.0
            doubles it); or a dict from name pattern to one of these, in which the first match counts and groups without
            a match do not grow.
        limit: largest number of units of a group: an int for all groups, or a dict from name pattern to int, in which
            the first match counts and groups without a match have no limit.
        max_params: growth ends once the model has this many parameters (`plastic.weights()`, biases included); the last
            growth may exceed it.
        patience: calls of `step` without improvement that end growth, one per validation.
        min_delta: by how much the loss must fall to count as an improvement, in loss units.
        grace: training steps (calls of `plastic.backward`) for which a new unit is held open.
        revive: calls of `step` after which closed units are reopened; `None` leaves them to `plastic.compact`.
        only: one or several name patterns of the groups that may grow.
        connections: closed single weights that each parameter of `unstructured` reopens at a growth, see
            `npn.Plasticity.reconnect`; no weight by default. With them, rule (b) is only about `max_params`.
        init: how new units start; those of "pair" and "split" need a `grace` of at least 1.
        warmup: optimizer steps, of which the t-th moves the weights of new units by t / `warmup` only; 0 for none.
        until: calls of `step` after which growth ends, so that the last units have time to learn; `None` for no end.

    Attributes:
        history: the growths so far.
        limits: name pattern -> `limit`; the other arguments are attributes of their own names.

    Raises:
        ConfigurationError: an argument is outside its range.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> gate = SimpleNamespace(mask=torch.tensor([True]), grace=torch.tensor([0]))
        >>> plastic = SimpleNamespace(  # stands for the result of npn.attach: one group with one unit, and it is open
        ...     groups=[SimpleNamespace(name="fc1", size=1, gate=gate)], grow=lambda added, grace: added)
        >>> growth = Growth(limit=80, grace=50)
        >>> growth.step(0.7, plastic)
        {'fc1': 1}
        >>> growth.step(0.7, plastic) is None  # no better than at the last growth
        True

    References:
        Li & Ji, Neural Plasticity Networks, arXiv:1908.08118, Algorithm 1.
    """

    def __init__(
        self,
        units: int | float | Mapping[str, int | float] = 1,
        *,
        limit: int | Mapping[str, int] | None = None,
        max_params: int | None = None,
        patience: int = 20,
        min_delta: float = 0.0,
        grace: int = 100,
        revive: int | None = 10,
        only: str | Sequence[str] = "*",
        connections: int | float = 0,
        init: str = "zero",
        warmup: int = 0,
        until: int | None = None,
    ) -> None:
        pace = dict(units) if isinstance(units, Mapping) else {"*": units}
        for each in pace.values():
            if not is_number(each) or not (0.0 < each < math.inf and (each >= 1 or isinstance(each, float))):
                raise ConfigurationError(f"units must be an int >= 1 or a float fraction > 0 of the size, got {each!r}")
        if not pace:
            raise ConfigurationError("units must name at least one group, got {}: nothing would grow")
        limits = {} if limit is None else dict(limit) if isinstance(limit, Mapping) else {"*": limit}
        optional = [("max_params", max_params), ("revive", revive), ("until", until)]
        for name, value in (*optional, *(("limit", v) for v in limits.values())):
            if value is not None:
                whole_number(name, value, 1)
        whole_number("patience", patience, 1, "validations")
        not_negative("min_delta", min_delta)
        whole_number("grace", grace, 0, "calls of backward")
        connection_count("connections", connections)
        if init in ("pair", "split") and grace < 1:
            raise ConfigurationError(
                f'init="{init}" needs a grace of at least 1, got {grace}: a mask could close one unit of a pair and '
                "not the other, and the function would not be kept"
            )
        self.init, self.warmup = checked_init(init), whole_number("warmup", warmup, 0, "optimizer steps")
        self.until = math.inf if until is None else until
        self.units, self.limits, self.max_params, self.connections = pace, limits, max_params, connections
        self.patience, self.min_delta, self.grace = patience, min_delta, grace
        self.revive = math.inf if revive is None else revive
        self.only = tuple(as_patterns(only, "only") or ())
        if not self.only:
            raise ConfigurationError("only must name at least one group, got none")
        self.history: list[GrowthEvent] = []
        self._steps = 0
        self._stale = 0
        self._best = math.inf  # the lowest loss so far
        self._loss_at_last_growth = math.inf  # the loss at the last growth
        self._waited: dict[str, int] = {}  # group name -> steps in a row with closed units
        self._over = False
        self._model: weakref.ref[Any] | None = None  # the one that these numbers are about

    def __repr__(self) -> str:
        units = self.units["*"] if list(self.units) == ["*"] else self.units
        grown = sum(sum(event.added.values()) for event in self.history)
        state = "over" if self._over else f"{self._stale} of {self.patience} validations without improvement"
        return f"Growth(units={units}, grace={self.grace}; {grown} units in {len(self.history)} growths, {state})"

    @property
    def done(self) -> bool:
        """Whether growth has ended; `step` then does nothing."""
        return self._over

    def step(
        self, validation_loss: float | Tensor, plastic: Growable[Report], *, loss: Callable[[], Tensor] | None = None
    ) -> Report | None:
        """Grow the groups that meet the conditions.

        Args:
            validation_loss: mean data loss, without the penalty, on a held-out part of the training set; never on test
                data.
            plastic: the result of `npn.attach`.
            loss: for init="select": calls the model on a batch of training data, some 1,000 examples, for its loss.

        Returns:
            The `ResizeReport` of the added units; `None` if none was added. Reopened units are listed in `history`.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
            ConfigurationError: an argument is something else, the model is another one than before, a pattern of
                `only`, `units` or `limit` matches no group, or init="select" lacks a loss.
            ResizeError: the model cannot grow. After each of these errors nothing has changed.
        """
        number = isinstance(validation_loss, Tensor) and validation_loss.numel() == 1
        if not number and not is_number(validation_loss):
            needed = "a number, as in growth.step(loss, plastic)"
            raise ConfigurationError(f"validation_loss must be {needed}, got {shown(validation_loss)}")
        if not callable(getattr(plastic, "grow", None)):
            raise ConfigurationError(f"plastic must be {HANDLE}, got {shown(plastic)}")
        self.check_model(plastic)
        if self._over:
            return None
        value = float(validation_loss)
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"growth needs a finite validation loss, got {value} at step {self._steps + 1}; nothing was grown. "
                "Look at the training loss: a lower learning rate or gradient clipping may help"
            )
        start = self._start(loss)
        limits = match_patterns(self.limits, names_of(plastic), "limit") if self.limits else {}
        closed = {group.name: len(closed_units(group)) for group in self._groups(plastic)}
        waited = {name: self._waited.get(name, 0) + 1 if count else 0 for name, count in closed.items()}
        stale = 0 if value < self._best - self.min_delta else self._stale + 1
        exhausted = stale >= self.patience or self._is_full(plastic, limits)
        improved = not exhausted and value < self._loss_at_last_growth - self.min_delta
        added, reopened = self._chosen(plastic, limits, closed, waited) if improved else ({}, {})

        # Only these calls can fail, and then they change nothing; so they come before every other change.
        if (reopened or (improved and self.connections)) and hasattr(plastic, "gates"):
            check_undecided(plastic.gates.decision, "they are not opened by hand")
        report = plastic.grow(added, grace=self.grace, **start) if added else None
        for group in plastic.groups:
            if group.name in reopened:  # looked up again, because growing may have moved the units
                units = closed_units(group)[: reopened[group.name]]
                plastic.open(group.name, units, grace=self.grace)
        connected = plastic.reconnect(self.connections, grace=self.grace) if improved and self.connections else {}
        model = getattr(plastic, "model", None)
        self._model = None if model is None else weakref.ref(model)
        self._steps, self._stale = self._steps + 1, stale
        self._best = value if stale == 0 else self._best
        self._waited = {name: 0 if name in reopened else steps for name, steps in waited.items()}
        if added or reopened or connected:
            self._loss_at_last_growth, self._stale = value, 0
            self.history.append(GrowthEvent(self._steps, value, added, reopened, connected))
        self._over = exhausted or self._steps >= self.until or self._is_full(plastic, limits)
        return report

    def check_model(self, plastic: object) -> None:
        """Raise if this policy has grown another model: its bar, its waiting and its end are about that one.

        Args:
            plastic: the result of `npn.attach`; another handle of the same model may go on.

        Raises:
            ConfigurationError: it belongs to another model.
        """
        if self._model is not None and self._model() is not getattr(plastic, "model", None):
            raise ConfigurationError(
                f"this Growth has seen {self._steps} losses of another model, and would judge this one by them: "
                "make an npn.Growth for each model. To go on where it was, with a copy of that model, call "
                "growth.load_state_dict(growth.state_dict()) first"
            )

    def state_dict(self) -> dict[str, Any]:
        """The progress of growth, as plain values, without the options."""
        return {
            "steps": self._steps,
            "stale": self._stale,
            "best": self._best,
            "bar": self._loss_at_last_growth,
            "waited": dict(self._waited),
            "over": self._over,
            "history": [asdict(event) for event in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` saved.

        Args:
            state: the result of `state_dict`.

        Raises:
            CheckpointError: the state does not belong to a Growth; nothing was loaded.
        """
        complete_state(state, self.state_dict(), "a Growth", "growth")
        history = [GrowthEvent(**event) for event in state["history"]]
        self._steps, self._stale = int(state["steps"]), int(state["stale"])
        self._best, self._loss_at_last_growth = float(state["best"]), float(state["bar"])
        self._waited, self._over = dict(state["waited"]), bool(state["over"])
        self.history, self._model = history, None  # a checkpoint goes on with a model of its own

    def _start(self, loss: Callable[[], Tensor] | None) -> dict[str, Any]:
        """Further arguments of `grow`, as far as they are not its defaults."""
        check_start(self.grace, self.init, self.warmup, loss)
        given = {"init": self.init, "warmup": self.warmup, "loss": loss if self.init == "select" else None}
        return {name: value for name, value in given.items() if value not in ("zero", 0, None)}

    def _groups(self, plastic: Growable[Any]) -> list[GrowableGroup]:
        """The groups that may grow."""
        names = names_of(plastic)
        chosen = match_patterns(dict.fromkeys(self.only, True), names, "only")
        paces = match_patterns(self.units, names, "units")
        grows = [group for group in plastic.groups if getattr(group, "grows", True)]
        return [group for group in grows if group.name in chosen and group.name in paces]

    def _chosen(
        self, plastic: Growable[Any], limits: Mapping[str, int], closed: Mapping[str, int], waited: Mapping[str, int]
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Rule (a): group -> units to add, and group -> closed units to open again; groups without any are left out."""
        paces = match_patterns(self.units, names_of(plastic), "units")
        added, reopened = dict[str, int](), dict[str, int]()
        for group in self._groups(plastic):
            name, pace, limit, multiple = group.name, paces[group.name], limit_of(group, limits), multiple_of(group)
            counts = group.size, closed[name], waited[name]
            old, new = units_to_open(*counts, units=pace, limit=limit, revive=self.revive)
            if self.init == "pair" and isinstance(pace, float) and new % 2:
                new += int(group.size + new < limit)
            if old:
                reopened[name] = old
            if new:
                added[name] = -(-new // multiple) * multiple
        return added, reopened

    def _is_full(self, plastic: Growable[Any], limits: Mapping[str, int]) -> bool:
        """Whether rule (b) ends growth."""
        if self.max_params is not None and sum(weight.numel() for weight in plastic.weights()) >= self.max_params:
            return True
        if self.connections:
            return False
        groups = self._groups(plastic)
        return all(group.size - len(closed_units(group)) >= limit_of(group, limits) for group in groups)
