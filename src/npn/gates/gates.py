"""All gates of a model as one vector: sharpness, logits, random draws and the deterministic mask."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from npn._utils.collectives import per_rank_generator
from npn._utils.copies import deep_copy
from npn._utils.rng import restore_generator
from npn._utils.validation import is_number
from npn._utils.warning import warn
from npn.errors import ConfigurationError
from npn.functional import GateFunction, function_name, keep_probability
from npn.gates.decision import Decision, check_undecided
from npn.gates.gate import OPEN, Gate, Sharpness
from npn.gates.group import UnitGroup
from npn.gates.saved import check_state
from npn.gates.weight_gates import WeightGates
from npn.structure import Branches, Columns, Group, Structure
from npn.surgery import Extra, forget_momentum


class Gates:
    """Gates of all groups, branches, columns and single weights of a model, numbered through in this order.

    Args:
        structure: everything that has gates.
        function: the gate function g.
        device: device of the logits.

    Attributes:
        sharpness: k and g, shared by all gates.
        groups: one entry per part.
        weights: one entry per parameter with a gate for each of its weights.
        names: names of all groups at attach, including groups that vanished with a branch since.
        generator: generator that draws the masks.
        grace_left: calls of `age` until no unit is held open.
        decision: what decides which units stay; None: the logits do.
        carried: further tensors that are resized along.
        warming_left: calls of `warm` until every unit learns in full.
        same_draws: whether all processes draw the same masks, as they must if each has a part of every weight.
    """

    def __init__(self, structure: Structure, function: GateFunction, device: torch.device) -> None:
        self.sharpness = Sharpness(function=function)
        self.groups = [UnitGroup(p.name, Gate(p.size, self.sharpness, device), p) for p in structure.parts]
        shapes = structure.physical() if structure.unstructured else {}
        self.weights = [WeightGates(name, shapes[name], self.sharpness, device) for name in structure.unstructured]
        self.names = [group.name for group in self.groups]
        self.generator = torch.Generator(device).manual_seed(torch.initial_seed())
        self.grace_left = self.warming_left = 0
        self.same_draws = False
        self.decision: Decision | None = None
        self.carried: list[Extra] = []
        self._resting = True  # whether k is 0 or inf, where the logits keep the scale of the last finite k
        self._key: tuple[Any, ...] | None = None  # identifies what the cached mask was computed from,
        self._seen: Tensor | None = None  # and the logits' values
        self._mask: Tensor | None = None

    # -- sharpness

    @property
    def k(self) -> float:
        """Sharpness, from 0 to `math.inf`; a new finite k rescales the logits if k was 0 or inf before.

        Raises:
            ConfigurationError: on assignment of a negative number or NaN.
        """
        return self.sharpness.k

    @k.setter
    def k(self, value: float) -> None:
        if not is_number(value) or not value >= 0:  # also refuses NaN
            raise ConfigurationError(f"the sharpness k must be a number >= 0, got {value!r}")
        if value != math.inf:
            check_undecided(self.decision, f"k stays inf, got {value}")
        finite = 0 < value < math.inf
        if finite:
            if self._resting:  # restore the keep probabilities of the last finite k
                with torch.no_grad():
                    for gate in self.each:
                        gate.logits.mul_(self.sharpness.scale / value)
            self.sharpness.scale = float(value)
        self.sharpness.k, self._resting = float(value), not finite

    @property
    def function(self) -> GateFunction:
        """The gate function g."""
        return self.sharpness.function

    # -- as one vector

    def __len__(self) -> int:
        return sum(gate.logits.numel() for gate in self.each)

    @property
    def each(self) -> list[Gate]:
        """The gates of every group, then those of every parameter with single-weight gates."""
        return [*(group.gate for group in self.groups), *self.weights]

    @property
    def unstructured(self) -> dict[str, WeightGates]:
        """The gates of single weights, by the name of the parameter."""
        return {gate.name: gate for gate in self.weights}

    @property
    def device(self) -> torch.device:
        """Device of the logits."""
        return self.each[0].logits.device

    @property
    def all_names(self) -> list[str]:
        """Names of the groups, then of the parameters with single-weight gates, as in `each`."""
        return [*(group.name for group in self.groups), *(gate.name for gate in self.weights)]

    def pieces(self, values: Tensor) -> list[Tensor]:
        """Split values of all gates, (gates,), into those of `each`."""
        return list(values.split([gate.logits.numel() for gate in self.each]))

    def group(self, name: str | UnitGroup) -> UnitGroup:
        """Look up a group by name.

        Args:
            name: name of the group, or the group itself.

        Raises:
            ConfigurationError: there is no such group.
        """
        for group in self.groups:
            if group is name or group.name == name:
                return group
        raise ConfigurationError(f"no group {name!r}; the model has: {', '.join(g.name for g in self.groups)}")

    def logits(self) -> Tensor:
        """All logits phi, (gates,), differentiable."""
        return torch.cat([gate.logits.flatten() for gate in self.each])

    def keep_probability(self, logits: Tensor | None = None) -> Tensor:
        """All keep probabilities pi = g(k phi), (gates,), differentiable in `logits()`; 0 for removed weights."""
        pi = keep_probability(self.logits() if logits is None else logits, self.k, self.function)
        return pi if not self.weights else pi.masked_fill(self._removed(), 0)

    def _removed(self) -> Tensor:
        """Whether each gate is that of a removed weight, bool (gates,)."""
        units = [torch.zeros_like(group.gate.shut) for group in self.groups]
        return torch.cat([*units, *(gate.removed.view(-1) for gate in self.weights)])

    def held(self) -> Tensor | None:
        """Whether each gate is held open in a grace period, bool (gates,); None if none is."""
        return torch.cat([gate.grace.flatten() for gate in self.each]) > 0 if self.grace_left else None

    def draw(self, batch: int | None = None) -> Tensor:
        """Draw u ~ U(0, 1) from the gates' own generator; every process draws different numbers, unless `same_draws`.

        Args:
            batch: number of examples for one draw per example; None for one draw.

        Returns:
            (gates,) or (batch, gates).
        """
        first = self.each[0].logits
        generator = self.generator if self.same_draws else per_rank_generator(self.generator)
        shape = (len(self),) if batch is None else (batch, len(self))
        return torch.rand(shape, generator=generator, device=first.device, dtype=first.dtype)

    def deterministic_mask(self) -> Tensor | None:
        """1[pi > 1/2] over all gates and 1 where held open, (gates,); None if all are open.

        Where a method decides, this is its real-valued mask for evaluation.

        Computed anew after changes only. Since fused optimizers write to logits without counting versions, their values
        are compared on the CPU; elsewhere only k = inf is known to leave them unchanged.
        """
        if self.decision is not None:
            self.decide()
            return self.decision.evaluation_mask()
        gates, on_cpu = self.each, self.device.type == "cpu"
        key = (self.k, *((id(tensor), tensor._version) for gate in gates for tensor in gate.deciding))
        logits = self.logits().detach() if on_cpu else None
        same = self.k == math.inf if logits is None or self._seen is None else torch.equal(logits, self._seen)
        if key != self._key or not same:
            mask = torch.cat([gate.present.view(-1) for gate in gates])
            self._mask = None if bool(mask.all()) else mask.to(gates[0].logits.dtype)
            self._key, self._seen = key, logits
        return self._mask

    def closed(self) -> dict[str, list[int]]:
        """Group name -> numbers of the units that do not take part."""
        self.decide()
        return {group.name: group.gate.closed.tolist() for group in self.groups}

    def add_gradient(self, gradient: Tensor) -> None:
        """Add to the gradients of the logits; skip groups whose logits do not require grad.

        Args:
            gradient: (gates,), of all logits; those of removed weights get none. New gradients are views of it.
        """
        gates, more = self.each, list[tuple[Tensor, Tensor]]()
        gradient = gradient.to(gates[0].logits.dtype)  # a float64 model gives a float64 gradient
        for gate, part in zip(gates, self.pieces(gradient), strict=True):
            if isinstance(gate, WeightGates):
                part = part.view_as(gate.logits).masked_fill(gate.removed, 0)
            if gate.logits.grad is not None and gate.logits.requires_grad:
                more.append((gate.logits.grad, part))
            elif gate.logits.requires_grad:
                gate.logits.grad = part
        if more:
            torch._foreach_add_(*map(list, zip(*more, strict=True)))

    @torch.no_grad()
    def decide(self, least: float = -math.inf) -> None:
        """Open what the method keeps, if its score is `least` or more, and close the rest; nothing without a method."""
        if self.decision is None:
            return
        for gate in self.each if self.grace_left else ():  # a method holds nothing open
            gate.grace.zero_()
        self.grace_left = 0
        for gate, keep in zip(self.each, self.pieces(self.decision.kept_gates(least)), strict=True):
            gate.logits.copy_(torch.where(keep, 1.0, -1.0).view_as(gate.logits))
            if isinstance(gate, WeightGates):
                gate.removed &= ~keep.view_as(gate.removed)

    def age(self) -> None:
        """Count one training step of every grace period."""
        if self.grace_left > 0:
            self.grace_left -= 1
            for gate in self.each:
                gate.grace.sub_(1).clamp_(min=0)

    def warm(self) -> None:
        """Count one optimizer step of every warm-up."""
        if self.warming_left > 0:
            self.warming_left -= 1
            for group in self.groups:
                group.gate.warming.sub_(1).clamp_(min=0)

    def shares(self) -> Tensor:
        """t / n for units in the t-th of n steps of their warm-up, 1 for all others, (units,)."""
        left = torch.cat([group.gate.warming for group in self.groups])
        steps = torch.cat([group.gate.warmup for group in self.groups])
        return 1 - left / steps.clamp(min=1)

    # -- changes

    def to(self, device: torch.device) -> None:
        """Move all gates to a device; the generator restarts there from its seed.

        Args:
            device: the device.
        """
        if self.device != device:
            for gate in self.each:
                gate.to(device)
            for extra in self.carried:
                extra.tensor.data = extra.tensor.data.to(device)
            self.generator = torch.Generator(device).manual_seed(self.generator.initial_seed())
            self._key = None

    def set(
        self,
        name: str | UnitGroup,
        units: Sequence[int] | Tensor,
        probability: float,
        optimizers: Sequence[Optimizer] = (),
        grace: int = 0,
    ) -> None:
        """Give units a keep probability by hand; the momentum of their logits is cleared.

        Where every unit of the group is closed afterwards, its likeliest one stays open, with a warning.

        Args:
            name: of the group, or the group.
            units: numbers, or a mask over all units.
            probability: keep probability.
            optimizers: that may hold the logits.
            grace: calls of `age` for which the units are held open.

        Raises:
            ConfigurationError: there is no such group or unit, or a method decides which units stay.
        """
        check_undecided(self.decision, "they are not opened or closed by hand")
        gate, called, traced = self._named(name)
        try:
            index = gate.indices(units)
        except ConfigurationError as error:
            raise ConfigurationError(f"group {called!r}: {error}") from error
        gate.set(index, probability, grace)
        chosen = torch.zeros_like(gate.shut).view(-1).index_fill_(0, index, True).view_as(gate.shut)
        forget_momentum(optimizers, gate.logits, chosen)
        self.grace_left = max(self.grace_left, grace)
        if not bool(gate.open_by_rule.any()):
            of_branches = isinstance(traced, Branches)
            why = "one branch is always kept" if of_branches else "a layer without units would cut the network in two"
            last = int(gate.logits.argmax())
            warn(f"every unit of {called!r} is closed; unit {last} stays open, since {why}")

    def _named(self, name: str | UnitGroup) -> tuple[Gate, str, Group | Branches | Columns | None]:
        """The gates of a group, or of a parameter with single-weight gates; their name, and where the group lies."""
        for gate in self.weights:
            if gate.name == name:
                return gate, gate.name, None
        try:
            group = self.group(name)
        except ConfigurationError as error:
            also = f"; single weights of: {', '.join(self.unstructured)}" if self.weights else ""
            raise ConfigurationError(f"{error}{also}") from None
        return group.gate, group.name, group.traced

    def extras(self, grace: int = 0) -> list[Extra]:
        """The gates' tensors and what is carried along, for a resize; new units and weights start open.

        Args:
            grace: calls of `age` for which new weights are held open; `hold_open` does that for new units.
        """
        found = list(self.carried)
        for group in self.groups:
            logits, *others = group.gate.tensors
            found.append(Extra(logits, group.name, self.sharpness.logit(OPEN)))
            found += [Extra(tensor, group.name, 0) for tensor in others]
        for gate in self.weights:
            new = (self.sharpness.logit(OPEN), grace, 0, 0)
            found += [Extra(t, gate.name, value, True) for t, value in zip(gate.tensors, new, strict=True)]
        return found

    def hold_open(self, units: Mapping[str, Sequence[int]], grace: int, warmup: int = 0) -> None:
        """Hold new units open and unpenalised for a while, and let their weights learn slowly at first.

        Args:
            units: group name -> numbers of the units.
            grace: calls of `age`.
            warmup: calls of `warm`.
        """
        for name, numbers in units.items():
            gate = self.group(name).gate
            gate.grace[list(numbers)] = gate.grace[list(numbers)].clamp(min=grace)
            if warmup:
                gate.warming[list(numbers)] = gate.warmup[list(numbers)] = warmup
        if units:
            self.grace_left, self.warming_left = max(self.grace_left, grace), max(self.warming_left, warmup)

    def restructure(self, structure: Structure) -> None:
        """Adopt the structure of the resized model; the gates' tensors have been resized already.

        Args:
            structure: the new structure.
        """
        parts = {part.name: part for part in structure.parts}
        self.groups[:] = [group for group in self.groups if group.name in parts]  # the others vanished with a branch
        for group in self.groups:
            group.traced = parts[group.name]
        self.weights[:] = [gate for gate in self.weights if gate.name in structure.unstructured]
        self.carried = [extra for extra in self.carried if extra.name in parts or extra.name in structure.unstructured]
        if self.decision is not None:
            self.decision.restructured()
        self._key = None

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Logits, flags, sharpness and generator, as plain values and tensors."""
        single = {"weights": {gate.name: gate.state_dict() for gate in self.weights}} if self.weights else {}
        return single | {
            "function": function_name(self.function),
            "k": self.k,
            "scale": self.sharpness.scale,
            "resting": self._resting,
            "gates": {group.name: group.gate.state_dict() for group in self.groups},
            "generator": self.generator.get_state(),
        }

    def check_state_dict(self, state: Mapping[str, Any], also: Sequence[str] = ()) -> None:
        """Raise `ConfigurationError` unless a state belongs to gates with the same names, sizes and function.

        Args:
            state: the result of `state_dict`.
            also: further keys that it must have.
        """
        check_state(self.state_dict(), state, also)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved; that of other gates raises `ConfigurationError`, and nothing is loaded."""
        self.check_state_dict(state)
        self.sharpness.k, self.sharpness.scale, self._resting = state["k"], state["scale"], state["resting"]
        for group in self.groups:
            group.gate.load_state_dict(state["gates"][group.name])
        for gate in self.weights:
            gate.load_state_dict(state["weights"][gate.name])
        self.grace_left = max(int(gate.grace.max()) for gate in self.each)
        self.warming_left = max((int(group.gate.warming.max()) for group in self.groups), default=0)
        restore_generator(self.generator, state["generator"].cpu())
        self._key = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Gates":
        new = deep_copy(self, memo, {"_key": None, "_mask": None, "generator": torch.Generator(self.generator.device)})
        new.generator.set_state(self.generator.get_state())
        return new
