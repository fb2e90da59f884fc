"""`Plasticity`: a model's gates, and all that is done through them."""

import copy
import math
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from npn import distributed, state, step, surgery
from npn.call import MaskedCall, computed
from npn.costing import CostModel
from npn.errors import ConfigurationError
from npn.feeding import effective, open_sizes
from npn.functional import GateFunction, keep_probability
from npn.gate import CLOSED, OPEN, Gate, Sharpness, UnitGroup, checked_grace
from npn.masks import Readers
from npn.penalty import CostTerm, Penalty
from npn.resizing import ResizeReport, resize
from npn.tracing import Frozen, Structure, grown
from npn.tracking import check_optimizers, forget, union, watch


class Plasticity:
    """A model's gates, and all that is done through them. Made by `attach`."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        structure: Structure,
        estimator: str,
        function: GateFunction,
        penalty: CostTerm | None,
        masks: str,
    ) -> None:
        self._model = model
        self.hook = MaskedCall(self)
        self.example_inputs = example_inputs
        self.structure = structure
        self.estimator = estimator
        self.masks = masks
        self.sharpness = Sharpness(function=function)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.groups = [UnitGroup(g.name, Gate(g.size, self.sharpness, device), g) for g in structure.parts]
        self.names = [group.name for group in self.groups]  # those that vanish with a branch stay known
        self.penalty: CostTerm = Penalty(cost="params", weight=1e-6) if penalty is None else penalty
        self.optimizers: list[Optimizer] = []
        self.last_checkpoint: str | None = None
        self.generator = torch.Generator(device).manual_seed(torch.initial_seed())
        self.followers: weakref.WeakValueDictionary[int, distributed.Follower] = weakref.WeakValueDictionary()
        self._readers: Readers | None = None
        self._cost: CostModel | None = None
        self.grace_left = 0
        self.shared_probability: Tensor | None = None
        self._full = self.costs.at  # of the structure at attach
        self.hook.register(model)
        self.penalty.bind(self)
        watch(self)

    # -- what the gates are

    @property
    def model(self) -> nn.Module:
        """The model, with its own weights even after a call of it was interrupted."""
        self.hook.recover()
        return self._model

    @property
    def k(self) -> float:
        """Sharpness: `math.inf` trains a plain network, 0 < k < inf makes it plastic, 0 is dropout."""
        return self.sharpness.k

    @k.setter
    def k(self, value: float) -> None:
        if not value >= 0:
            raise ConfigurationError(f"the sharpness k must be a number >= 0, got {value}")
        old, self.sharpness.k = self.sharpness, float(value)
        if 0 < value < math.inf:
            if self.resting:  # after a stage without k, keep probabilities are what they were
                with torch.no_grad():
                    for group in self.groups:
                        group.gate.logits.mul_(old.scale / value)
            self.sharpness.scale = float(value)
        self.resting = not 0 < value < math.inf

    resting = True  # k is not finite, or 0: logits keep the scale of the last k that was

    @property
    def function(self) -> GateFunction:
        """The gate function g."""
        return self.sharpness.function

    @property
    def frozen(self) -> list[Frozen]:
        """Dimensions that keep their size, with reasons."""
        return list(self.structure.frozen)

    def group(self, name: "str | UnitGroup") -> UnitGroup:
        """The group of that name."""
        for group in self.groups:
            if group is name or group.name == name:
                return group
        raise ConfigurationError(f"no group {name!r}; the model has: {', '.join(g.name for g in self.groups)}")

    def sizes(self) -> dict[str, int]:
        """Units of each group that take part: open by the deterministic mask, or held open; of columns, those of such
        units.

        A group whose units are all inside closed branches has none open.
        """
        return open_sizes(self.structure, self._closed())

    def _closed(self) -> dict[str, list[int]]:
        return {group.name: group.gate.closed.tolist() for group in self.groups}

    def weights(self) -> list[nn.Parameter]:
        """Every parameter of the model; no gate among them."""
        return list(self.model.parameters())

    def logits(self) -> list[nn.Parameter]:
        """The gates' parameters, one tensor per group."""
        return [group.gate.logits for group in self.groups]

    def close(self, group: "str | UnitGroup", units: Sequence[int] | Tensor) -> None:
        """Close units: pi = 0.05 while k is finite, absent at k = inf. `compact` removes them unless they reopen.

        The last unit of a group stays open, with a warning.
        """
        self._set(group, units, CLOSED)
        found = self.group(group)
        if not bool((found.gate.logits > 0).any()):
            of_branches = found.traced is self.structure.branches
            why = "one branch is always kept" if of_branches else "a layer without units would cut the network in two"
            last = int(found.gate.logits.argmax())
            warnings.warn(f"every unit of {found.name!r} is closed; unit {last} stays open, since {why}", stacklevel=2)

    def open(self, group: "str | UnitGroup", units: Sequence[int] | Tensor, *, grace: int = 0) -> None:
        """Open units: pi = 0.95 while k is finite; for `grace` calls of `backward` they are held open, unpenalised."""
        self._set(group, units, OPEN, checked_grace(grace))
        self.grace_left = max(self.grace_left, grace)

    def _set(self, name: "str | UnitGroup", units: Sequence[int] | Tensor, probability: float, grace: int = 0) -> None:
        group = self.group(name)
        try:
            index = group.gate.indices(units)
        except ConfigurationError as error:
            raise ConfigurationError(f"group {group.name!r}: {error}") from error
        group.gate.set(index, probability, grace)
        surgery.forget_momentum(self.optimizers, group.gate.logits, index)

    # -- training

    def track(self, *optimizers: Optimizer) -> None:
        """Optimizers whose state follows every resize.

        Raises:
            OptimizerError: a parameter is in two of them, or gates are subject to weight decay.
        """
        known = union(self.optimizers, optimizers)
        check_optimizers(known, self)
        self.optimizers = known

    def untrack(self, *optimizers: Optimizer) -> None:
        """Forget optimizers that do not step any more, say since another took their place for the next stage."""
        gone = union([], optimizers)
        self.optimizers = [optimizer for optimizer in self.optimizers if optimizer not in gone]
        forget(gone)

    def backward(self, closure: Callable[[], Tensor], *, scale: float | Any = 1.0) -> Tensor:
        """Set every gradient of E_z[loss] + penalty, for weights and gates.

        The closure is called once or twice, as the estimator wants, under masks drawn from the gates; gradients are
        added to what is in `.grad` (zero them first, or accumulate). At k = inf it is `closure().backward()`. A second
        call of "arm", "disarm" and "rloo" is without autograd, and no call but the first changes buffers of the model;
        those of other modules that the closure calls, it does.

        Args:
            closure: returns the scalar loss of the model; no `.backward()` inside.
            scale: factor on loss and penalty: `1 / n` when accumulating n steps, or a `torch.amp.GradScaler` (which,
                used inside the closure instead, would leave the penalty unscaled).

        Returns:
            The detached loss, unscaled, without the penalty.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite (checked on the CPU only, where it is free).
            ConfigurationError: the closure does not return a scalar.

        References:
            Li and Ji, "Neural Plasticity Networks", IJCNN 2021, eq. 12 and Algorithm 1.
        """
        factor = scale.scale(torch.ones((), device=self.readers.device)) if hasattr(scale, "scale") else scale
        return step.backward(self, closure, factor)

    @property
    def readers(self) -> Readers:
        """The weights that read gated units; made anew after a resize, a replaced parameter or a move to a device."""
        if self._readers is not None and self._readers.stale:
            self._readers.remove()
            self._readers = None
        if self._readers is None:
            surgery.check_shapes(self.model, self.structure)
            with torch.inference_mode(False):  # what is made here is used in training, whoever asks for it first
                self.follow_device()
                self._readers = Readers(self.model, self.structure)
        return self._readers

    def follow_device(self) -> None:
        """The gates live where the model's parameters do."""
        device = next(self.model.parameters()).device
        if self.groups[0].gate.logits.device == device:
            return
        for group in self.groups:
            group.gate.to(device)
        self.generator = torch.Generator(device).manual_seed(self.generator.initial_seed())
        self._cost = None
        self.hook.reset()

    def calling(self) -> Any:
        """Context in which the model's call hook stands aside."""
        self.hook.recover()
        return self.hook.aside()

    def draw(self, *batch: int) -> Tensor:
        """u ~ U(0, 1), shape (*batch, units), from the gates' own generator; other numbers on each process."""
        first = self.groups[0].gate.logits
        generator = distributed.own(self.generator)
        return torch.rand(*batch, self.readers.units, generator=generator, device=first.device, dtype=first.dtype)

    def flat_logits(self) -> Tensor:
        """All logits in one tensor."""
        return torch.cat([group.gate.logits for group in self.groups])

    def flat_probability(self) -> Tensor:
        """All keep probabilities in one tensor, differentiable; during a step they are computed once."""
        if self.shared_probability is not None:
            return self.shared_probability
        return keep_probability(self.flat_logits(), self.k, self.function)

    def held(self) -> Tensor:
        """bool (units,): held open during a grace period."""
        return torch.cat([group.gate.grace for group in self.groups]) > 0

    def closed_masks(self) -> Tensor | None:
        """The deterministic mask over all units, or None where all are open. Cached between changes of the gates."""
        return self.hook.closed_mask()

    # -- size

    @property
    def costs(self) -> CostModel:
        """The cost of the present structure."""
        if self._cost is None:
            names = [group.name for group in self.groups]
            device = self.groups[0].gate.logits.device
            with torch.inference_mode(False):
                self._cost = CostModel(self.model, self.structure, names, device)
        return self._cost

    def expected_cost(self, kind: str, /, weights: Mapping[str, float] | None = None) -> Tensor:
        """E[cost(z)] of the network under its gates, differentiable; units in grace cost nothing more or less."""
        probability = self.flat_probability()
        if self.grace_left:
            probability = torch.where(self.held(), torch.ones_like(probability), probability)
        return self.costs.expected(kind, effective(probability, self.readers.feeder), weights)

    def full_cost(self, kind: str, /) -> float:
        """Cost of the model at attach, every gate open."""
        return self._full(kind, {})

    def minimum_cost(self, kind: str, /) -> float:
        """Cost with one unit left in every group, and the branch that is then the cheapest."""
        return self.costs.least(kind)

    def compact(self, below: float = 1e-3) -> ResizeReport:
        """Physically remove units that have stayed closed.

        A unit goes when its keep probability is under `below` (at k = inf: when it is closed), or when `close` shut it
        and it has not reopened. Every group keeps at least one unit: its likeliest. A branch that goes takes the groups
        with it that lived wholly inside, and does not come back.

        Raises:
            ResizeError, OptimizerError, DistributedError: nothing has changed.
        """
        for group in self.groups:
            group.gate.notice_reopened()
        gone = {group.name: group.gate.gone(below).nonzero().reshape(-1).tolist() for group in self.groups}
        removed = {name: units for name, units in gone.items() if units}
        distributed.agree("what compact removes", removed)
        return resize(self, surgery.plan_removal(self.structure, removed))

    def grow(self, more: Mapping[str, int], *, grace: int = 0) -> ResizeReport:
        """Add units: fan-in initialised, zero fan-out, so the function is as before.

        Args:
            more: group name -> units to add.
            grace: calls of `backward` for which the new units are held open and unpenalised.

        Raises:
            ResizeError, OptimizerError, ConfigurationError, DistributedError: nothing has changed.
        """
        checked_grace(grace)
        wanted = {self.group(name).name: number for name, number in more.items()}
        for name, number in wanted.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                raise ConfigurationError(f"{name!r} can grow by a whole number >= 0 of units, got {number!r}")
            if not self.group(name).grows:
                raise ConfigurationError(f"{name!r} {self.group(name).fixed}")
        wanted = {name: number for name, number in wanted.items() if number}
        distributed.agree("what grow adds", wanted)
        if not wanted:
            return resize(self, surgery.plan_removal(self.structure, {}))
        with self.calling(), surgery.full_length(self.model):
            larger = grown(self.model, self.example_inputs, self.structure, wanted)
        report = resize(self, surgery.plan_growth(self.structure, larger))
        distributed.broadcast(self.weights())  # each process has drawn other new rows
        for name, units in report.added.items():
            self.group(name).gate.grace[list(units)] = grace
        self.grace_left = max(self.grace_left, grace)
        return report

    def adopt(self, structure: Structure, sizes: Mapping[str, int]) -> None:
        """Take over the structure of a checkpoint, with new gates of these sizes, before their state is loaded."""
        for group in (group for group in self.groups if group.name in sizes):
            for tensor in group.gate.tensors:
                tensor.grad = None
                surgery.set_data(tensor, tensor.new_zeros(sizes[group.name]))
        self.restructured(structure)

    def restructured(self, structure: Structure) -> None:
        """The model has been resized to this structure."""
        if self._readers is not None:
            self._readers.remove()
            self._readers = None
        self.structure = structure
        parts = {part.name: part for part in structure.parts}
        self.groups[:] = [group for group in self.groups if group.name in parts]  # others went with a branch
        for group in self.groups:
            group.traced = parts[group.name]
        self._cost = None
        self.hook.reset()
        for follower in list(self.followers.values()):
            follower.renew()

    # -- leaving

    def export(self) -> nn.Module:
        """A plain copy of the model without its closed units and without a trace of npn."""
        clone = copy.deepcopy(self.model, {id(self): None} | computed(self.model))
        self.hook.unregister(clone)
        surgery.apply_plan(clone, surgery.plan_removal(self.structure, self._closed()))
        surgery.bake(clone)
        return clone

    def detach(self) -> nn.Module:
        """Take the gates off; the model is as it was, closed units still there."""
        self.readers.remove()
        self.hook.unregister(self.model)
        surgery.bake(self.model)
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Gates, sharpness, penalty and generator; the weights are in `model.state_dict()`."""
        return state.collect(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; the groups must have the same names and sizes.

        Raises:
            ConfigurationError: they have not; nothing was loaded.
        """
        state.restore(self, state_dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Plasticity":
        """A copy with its own model; optimizers stay with the original."""
        new = object.__new__(type(self))
        memo[id(self)] = new
        skip = {"optimizers", "followers", "_readers", "generator", "_full", "shared_probability"}
        for name, value in vars(self).items():
            if name not in skip:
                setattr(new, name, copy.deepcopy(value, memo))
        new.optimizers, new._readers, new._full, new.shared_probability = [], None, self._full, None
        new.followers = weakref.WeakValueDictionary()
        new.generator = torch.Generator(self.generator.device)
        new.generator.set_state(self.generator.get_state())
        return new
