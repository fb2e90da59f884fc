"""`Method`: decides which units stay, in place of trained Bernoulli gates; every method is a subclass."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from npn._utils.collectives import average_, per_rank_generator
from npn._utils.patterns import match_patterns
from npn._utils.validation import HANDLE, complete_state, instance, is_number, shown
from npn.errors import CheckpointError, ConfigurationError
from npn.gates import UnitGroup, WeightGates
from npn.masking.messages import DETACHED
from npn.methods.passes import by_batch, by_example
from npn.plasticity import Plasticity
from npn.step import check_closure, loss_factor
from npn.structure import inside_branches, output_axis
from npn.surgery import Extra, Plan, ResizeReport, replace_data

PerGroup = float | Mapping[str, float]  # one value for all, or one for each group


class Method(ABC):
    """A way to decide which units stay, on the groups, masks, surgery and optimizers of a `Plasticity`.

    The weights that read unit j are multiplied by the training mask z_j in `backward`, and by the evaluation mask in
    every other call of the model. Masks are real-valued. The gradient dL/dz_j is exact: weight times gradient, summed
    over the weights that read the unit.

    Args:
        plastic: the handle of the model, at k = inf.
        follows: the method that this one takes over from.

    Attributes:
        plastic: the argument.
        whole_units: whether the method decides about whole units only, not about single weights.

    Raises:
        ConfigurationError: k is finite, another method decides already, units are closed, single weights have gates
            that the method does not know, or units under norms have gates.
    """

    whole_units = False
    folds = True  # see `npn.gates.Decision`
    saved: tuple[str, ...] = ()  # names of attributes with plain values that belong to the state

    def __init__(self, plastic: Plasticity, *, follows: "Method | None" = None) -> None:
        instance("plastic", plastic, Plasticity, HANDLE)
        name = type(self).__name__
        if plastic.masked_weights.detached:
            raise ConfigurationError(DETACHED)
        if plastic.k != math.inf:
            raise ConfigurationError(f"{name} needs k = inf, where no gate is random, got k = {plastic.k:g}")
        if plastic.gates.decision is not follows:
            other = type(plastic.gates.decision).__name__
            raise ConfigurationError(f"{other} decides already which units stay; attach the model anew for {name}")
        each = zip(plastic.gates.each, plastic.gates.all_names, strict=True)
        shut = [] if follows is not None else [called for gate, called in each if not bool(gate.present.all())]
        if shut:
            raise ConfigurationError(
                f"units or weights of {', '.join(shut)} are closed, and {name} would open them, since it decides anew "
                "what stays; call plastic.compact() before, which removes closed units, or open them"
            )
        if self.whole_units and plastic.gates.weights:
            raise ConfigurationError(
                f"{name} decides about whole units, but single weights of {plastic.gates.weights[0].name} have gates; "
                "attach without unstructured="
            )
        if plastic.structure.streams:
            raise ConfigurationError(
                f"units under norms have gates, and norms do not follow the masks of {name}; attach with streams=False"
            )
        plastic.masked_weights.need_whole(name)
        self.plastic = plastic
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._axes = {gate.name: self._output_axis(gate.name) for gate in plastic.gates.weights}
        plastic.gates.to(plastic.masked_weights.device)

    # -- what a method defines

    @abstractmethod
    def chosen(self) -> tuple[Tensor, Tensor]:
        """Which units the rule keeps, bool (gates,), and a score (gates,); the best unit of a group stays anyway."""

    def training_mask(self, batch: int | None = None) -> Tensor | None:
        """Draw the mask of one training step, differentiable in `parameters()`.

        Args:
            batch: number of examples for one mask per example; None for one mask.

        Returns:
            (gates,) or (batch, gates); None if every unit takes part.
        """
        return None

    def evaluation_mask(self) -> Tensor:
        """The mask of calls outside training steps, (gates,); 1 for the units that stay if a method has no other."""
        return self.kept_gates().float()

    def penalty(self) -> Tensor:
        """The price that `backward` adds to the loss, (), differentiable."""
        return torch.zeros((), dtype=torch.float32, device=self.plastic.gates.device)

    def after_step(self) -> None:
        """Clamp, project or change the topology; call it after the optimizers' steps."""
        self.plastic.gates.decide()

    def register(self, model: nn.Module) -> None:  # noqa: B027 - masks are enough for most methods
        """See `npn.gates.Decision`."""

    def unregister(self, model: nn.Module) -> None:  # noqa: B027
        """See `npn.gates.Decision`."""

    def finish(self, exported: nn.Module, plan: Plan) -> None:  # noqa: B027
        """See `npn.gates.Decision`."""

    def restructured(self) -> None:  # noqa: B027
        """See `npn.gates.Decision`."""

    # -- what all methods share

    def parameters(self) -> list[nn.Parameter]:
        """The method's own parameters, for the optimizer of the gates; may be empty."""
        found = [tensors[name] for tensors in self._tensors.values() for name in self.names]
        return [tensor for tensor in found if isinstance(tensor, nn.Parameter)]

    @property
    def groups(self) -> list[UnitGroup]:
        """All groups of units, in the order of the masks; the gates of single weights follow them."""
        return self.plastic.groups

    @property
    def names(self) -> list[str]:
        """Names of the groups, then of the parameters whose single weights have gates."""
        return self.plastic.gates.all_names

    def single_weights(self) -> dict[str, Tensor]:
        """Name -> parameter, for the parameters whose single weights have gates."""
        found = self.plastic.masked_weights.table.named
        return {gate.name: found[gate.name] for gate in self.plastic.gates.weights}

    @torch.no_grad()
    def kept_gates(self, least: float = -math.inf) -> Tensor:
        """What stays, bool (gates,): what the rule keeps, and the best of each group.

        Args:
            least: what has a lower score does not stay.
        """
        gates = self.plastic.gates
        gates.to(self.plastic.masked_weights.device)
        keep, score = self.chosen()
        pairs = zip(gates.pieces(keep & (score >= least)), gates.pieces(score), strict=True)
        return torch.cat([each.index_fill(0, value.argmax(), True) for each, value in pairs])

    def kept(self) -> dict[str, Tensor]:
        """Which units of a group stay, and which single weights of a parameter: name -> bool, (size,) or its shape."""
        gates = self.plastic.gates
        pieces = zip(self.names, gates.each, gates.pieces(self.kept_gates()), strict=True)
        return {name: piece.view_as(gate.logits) for name, gate, piece in pieces}

    def backward(self, closure: Callable[[], Tensor], *, scale: float | Any = 1.0) -> Tensor:
        """Set the gradients of loss and penalty, for the weights and the method's parameters.

        Args:
            closure: returns the scalar loss of the model; does not call `.backward()`.
            scale: factor on loss and penalty, or a `torch.amp.GradScaler`.

        Returns:
            The detached loss, (), without scale and penalty.

        Raises:
            NonFiniteLossError, ConfigurationError: see `npn.Plasticity.backward`.
        """
        weights = self.plastic.masked_weights
        self.plastic.gates.to(weights.device)
        check_closure(closure)
        scale = loss_factor(scale, weights.device)
        one = by_example if self.plastic.masks == "example" else by_batch
        with weights.step():
            loss = one(self.plastic, self.training_mask, closure, scale)
        with torch.enable_grad():
            price = self.penalty()
            if price.requires_grad:
                (price * scale).backward()
        self.priced()
        learned = [p.grad for p in self.parameters() if p.grad is not None]
        average_([*learned, *self.plastic.penalty.shared_tensors()])
        return loss

    def priced(self) -> None:  # noqa: B027 - most methods have a fixed price
        """Called in each step after the penalty's gradient."""

    def compact(self) -> ResizeReport:
        """Physically remove the units that do not stay; tracked optimizers follow. See `npn.Plasticity.compact`."""
        return self.plastic.compact()

    def remove_below(self, score: float) -> ResizeReport:
        """Physically remove units of a low score even if the rule keeps them, as to meet a size; see `compact`.

        Args:
            score: units with less than this go, as the second result of `chosen` gives it; the best of a group stays.

        Raises:
            ConfigurationError: it is no number.
        """
        if not is_number(score) or math.isnan(score):
            raise ConfigurationError(f"score must be a number, got {shown(score)}")
        return self.plastic.compact(score=score)

    def export(self, of: nn.Module | None = None) -> nn.Module:
        """Make a plain copy of the model in which the evaluation mask is part of the weights.

        Args:
            of: a copy given to `plastic.follow`, to be exported in place of the model.
        """
        return self.plastic.export(of)

    def state_dict(self) -> dict[str, Any]:
        """The method's tensors, as copies, by name and group, and the plain values that belong to its state."""
        names = self.names
        copies = {
            name: {each: tensors[each].detach().clone() for each in names} for name, tensors in self._tensors.items()
        }
        values = {name: copy.copy(getattr(self, name)) for name in self.saved}
        return {"method": type(self).__name__, "tensors": copies} | values

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` saved, in its sizes; load the model with `npn.load` in the same call.

        Args:
            state: the result of `state_dict`.

        Raises:
            CheckpointError: the state belongs to another method; nothing was loaded.
        """
        complete_state(state, ("method", "tensors", *self.saved), f"a {type(self).__name__}", "method")
        if state["method"] != type(self).__name__ or set(state["tensors"]) != set(self._tensors):
            raise CheckpointError(
                f"expected a state of {type(self).__name__}, got one of {state['method']}; build the method as the "
                "saved one was"
            )
        names, with_branch = set(self.names), inside_branches(self.plastic.structure)  # lost when a branch is
        for name, tensors in state["tensors"].items():
            if not names - with_branch <= set(tensors) <= names:
                raise CheckpointError(
                    f"expected {name} of {', '.join(self.names)}, got it of {', '.join(tensors)}; build the "
                    "method on the saved one's model"
                )
        for name, tensors in state["tensors"].items():
            for group, value in tensors.items():
                mine = self._tensors[name][group]
                if mine.shape != value.shape:
                    replace_data(mine, torch.empty_like(value, device=mine.device))()
                mine.data.copy_(value)
        for name in self.saved:
            setattr(self, name, type(getattr(self, name))(state[name]))

    # -- for subclasses

    def _begin(
        self,
        learned: Mapping[str, tuple[Tensor, PerGroup]] | None = None,
        fixed: Mapping[str, tuple[Tensor, PerGroup]] | None = None,
    ) -> None:
        """Begin to decide; the last line of a method's `__init__`, since nothing has changed before it.

        Args:
            learned, fixed: name -> (values (gates,), value of units added later, for all or by group): parameters and
                other tensors, one per group, which every resize carries along.
        """
        gates, names = self.plastic.gates, self.names
        for kind, tensors in ((nn.Parameter, learned or {}), (torch.clone, fixed or {})):
            for name, (values, new) in tensors.items():
                pieces = zip(gates.each, gates.pieces(values.to(gates.device)), strict=True)
                made = [kind(piece.clone().view_as(gate.logits)) for gate, piece in pieces]
                self._tensors[name] = dict(zip(names, made, strict=True))
                single = [isinstance(gate, WeightGates) for gate in gates.each]
                every = zip(made, names, single, strict=True)
                later = new if isinstance(new, Mapping) else dict.fromkeys(names, new)
                gates.carried += [Extra(tensor, each, later[each], own) for tensor, each, own in every]
        gates.decision = self
        self.register(self.plastic.model)

    def _joined(self, name: str) -> Tensor:
        """A tensor of all units and single weights, (gates,), differentiable."""
        return torch.cat([self._tensors[name][each].reshape(-1) for each in self.names])

    def _rows(self, name: str, values: Tensor) -> Tensor:
        """Values of a parameter as (outputs, weights that produce each); of a group as they are, (size,).

        Args:
            name: of the group or parameter.
            values: in its shape.
        """
        return values.transpose(0, self._axes[name]).flatten(1) if values.dim() > 1 else values

    def _from_rows(self, name: str, rows: Tensor) -> Tensor:
        """The inverse of `_rows`."""
        if rows.dim() == 1:
            return rows
        axis, shape = self._axes[name], list(self.plastic.unstructured[name].logits.shape)
        shape[0], shape[axis] = shape[axis], shape[0]
        return rows.reshape(shape).transpose(0, axis)

    def _output_axis(self, name: str) -> int:
        """The axis of a parameter along which its outputs lie; where no unit tells, it is known by the layer."""
        axis = output_axis(self.plastic.structure, name)
        owner = self.plastic.model.get_submodule(name.rpartition(".")[0])
        return int(isinstance(owner, (_ConvTransposeNd, nn.Embedding, nn.EmbeddingBag))) if axis is None else axis

    def _per_group(
        self, value: float | Mapping[str, float], option: str, check: Callable[[str, float], object]
    ) -> dict[str, float]:
        """Group name -> one value for all, or the value of the first pattern that matches the group's name.

        Args:
            value: a number, or name pattern -> number.
            option: its name.
            check: called with the name and each number; raises if that cannot be.

        Raises:
            ConfigurationError: a pattern matches no group, or no pattern matches a group.
        """
        for each in value.values() if isinstance(value, Mapping) else [value]:
            check(option, each)
        names = self.names
        found = match_patterns(value, names, option) if isinstance(value, Mapping) else dict.fromkeys(names, value)
        missing = [name for name in names if name not in found]
        if missing:
            raise ConfigurationError(
                f'{option}: no pattern matches {", ".join(map(repr, missing))}; add "*" as the last'
            )
        return {name: float(found[name]) for name in names}

    def _units(self, value: PerGroup) -> Tensor:
        """(gates,): one value for all, or the value of each unit's group."""
        found = value if isinstance(value, Mapping) else dict.fromkeys(self.names, value)
        gates = self.plastic.gates
        pieces = [
            torch.full_like(g.logits.detach().reshape(-1), found[name])
            for name, g in zip(self.names, gates.each, strict=True)
        ]
        return torch.cat(pieces).to(gates.device)

    def _normal(self, batch: int | None) -> Tensor:
        """Standard normal numbers of the gates' generator, (gates,) or (batch, gates); each process has its own."""
        gates = self.plastic.gates
        generator = per_rank_generator(gates.generator)
        shape = (len(gates),) if batch is None else (batch, len(gates))
        return torch.randn(shape, generator=generator, dtype=torch.float32, device=gates.device)
