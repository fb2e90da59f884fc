"""`Plasticity`: the handle of a model with gates; it trains, resizes and exports the model."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from npn import candidates, connections, description, following, optimizer_steps, resizing, surgery
from npn._utils.copies import deep_copy
from npn._utils.inputs import model_dtype, moved_with
from npn._utils.validation import whole_number
from npn.after_step import AfterStep
from npn.counting import count_params
from npn.following import AnyModule, Follower
from npn.functional import GateFunction
from npn.functional.table import check_estimator
from npn.gates import CLOSED, OPEN, Gates, Pricing, UnitGroup, WeightGates
from npn.masking import MaskedCall, MaskedWeights
from npn.modules import materialize_selects
from npn.optimizers import tracked
from npn.penalty import CostTerm, Penalty
from npn.step import Evaluate, Step
from npn.structure import Frozen, Structure, open_sizes
from npn.surgery import ResizeReport

Loss = Callable[[], Tensor]


class Plasticity:
    """The handle of a model with gates; made by `npn.attach`, which describes the arguments.

    Attributes:
        structure: the units of the model and their positions.
        gates: all gates as one vector.
        masked_weights: the weights that read gated units.
        example_inputs: inputs with which the model is traced when it grows.
        penalty, pricing: the price of size, and the cost of the model under its gates.
        masks: "batch" or "example".
        optimizers: optimizers whose state follows every resize.
        followers: wrappers whose `renew` is called after every resize, and the copies given to `follow`.
        last_checkpoint: path of the file that `npn.save` wrote last.

    Example:
        >>> import npn, torch
        >>> from torch.nn import functional as F
        >>> x, y = torch.randn(64, 4), torch.randint(2, (64,))
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plastic = npn.attach(model, x[:1])
        >>> plastic.k = 7.0
        >>> loss = plastic.backward(lambda: F.cross_entropy(model(x), y))
        >>> plastic.close("0", [2, 5])
        >>> plastic.compact().changes
        {'0': (8, 6)}
        >>> plastic
        Plasticity(k=7, params=44 of 58 at attach, groups={'0': 6}, penalty=Penalty(cost='params', weight=1e-06))
    """

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
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._model, self.structure, self.example_inputs = model, structure, example_inputs
        self.masks, self.estimator = masks, estimator
        self.gates = Gates(structure, function, device)
        self.masked_weights = MaskedWeights(model, structure)
        self.penalty: CostTerm = Penalty(cost="params", weight=1e-6) if penalty is None else penalty
        self.optimizers: list[Optimizer] = []
        self.followers: weakref.WeakValueDictionary[int, Follower] = weakref.WeakValueDictionary()
        self.last_checkpoint: str | None = None
        self.pricing = Pricing(model, structure, self.gates)
        self._params_at_attach, self._dtype_at_attach = count_params(model), model_dtype(model)
        self._call = MaskedCall(self.gates, self.masked_weights)
        self._after_step = AfterStep(self.gates, self.masked_weights)
        self._call.register(model)
        self.penalty.bind(self)
        optimizer_steps.watch(self.masked_weights)

    @property
    def model(self) -> nn.Module:
        """The model, with its own weights restored if a call was interrupted."""
        self._call.recover()
        return self._model

    @property
    def k(self) -> float:
        """Sharpness: `math.inf` trains a plain network, 0 < k < inf makes it plastic, 0 is dropout."""
        return self.gates.k

    @k.setter
    def k(self, value: float) -> None:
        self.gates.k = value

    @property
    def estimator(self) -> str:
        """Name of the estimator of the gates' gradient, one of `npn.functional.table.ESTIMATORS`."""
        return self._estimator

    @estimator.setter
    def estimator(self, name: str) -> None:
        check_estimator(name, per_example=self.masks == "example")
        self._estimator = name

    @property
    def function(self) -> GateFunction:
        """The gate function g."""
        return self.gates.function

    @property
    def groups(self) -> list[UnitGroup]:
        """Everything that has gates: groups of units, branches, input columns."""
        return self.gates.groups

    @property
    def unstructured(self) -> dict[str, WeightGates]:
        """The gates of single weights, by the name of the parameter."""
        return self.gates.unstructured

    @property
    def names(self) -> list[str]:
        """Names of all groups at attach, including groups that vanished with a branch since."""
        return self.gates.names

    @property
    def frozen(self) -> list[Frozen]:
        """Dimensions that keep their size, with reasons."""
        return list(self.structure.frozen)

    def group(self, name: str | UnitGroup) -> UnitGroup:
        """Look up a group by its name; an unknown one raises `ConfigurationError`."""
        return self.gates.group(name)

    def sizes(self) -> dict[str, int]:
        """Units of each group that take part: open, or held open; columns with their unit, none in closed branches."""
        return open_sizes(self.structure, self.gates.closed())

    def weights(self) -> list[nn.Parameter]:
        """Every parameter of the model, without the gates' logits."""
        return list(self.model.parameters())

    def logits(self) -> list[nn.Parameter]:
        """The logits of the gates, one parameter per group, then one per parameter with single-weight gates."""
        return [gate.logits for gate in self.gates.each]

    def __repr__(self) -> str:
        return description.line(self, count_params(self._model), self._params_at_attach)

    def _repr_html_(self) -> str:
        return description.html(self, self._params_at_attach)

    def close(self, group: str | UnitGroup, units: Sequence[int] | Tensor) -> None:
        """Close units: pi = 0.05 at finite k, absent at k = inf. `compact` removes them unless they reopen.

        The last unit of a group stays open, with a warning.

        Args:
            group: the group or its name, or the name of a parameter with gates on its single weights.
            units: numbers of the units, or a mask over all units; of weights, positions in the flattened parameter.

        Raises:
            ConfigurationError: there is no such group or unit.
        """
        self.gates.set(group, units, CLOSED, self.optimizers)

    def open(self, group: str | UnitGroup, units: Sequence[int] | Tensor, *, grace: int = 0) -> None:
        """Open units: pi = 0.95 at finite k.

        Args:
            group: as for `close`.
            units: as for `close`.
            grace: calls of `backward` for which the units are held open, unpenalised.

        Raises:
            ConfigurationError: there is no such group or unit, or `grace` is not a whole number >= 0.
        """
        self.gates.set(group, units, OPEN, self.optimizers, whole_number("grace", grace, 0, "calls of backward"))

    def track(self, *optimizers: Optimizer) -> None:
        """Register optimizers whose state follows every resize; repeated calls add up.

        Args:
            optimizers: optimizers of weights and gates.

        Raises:
            OptimizerError: a parameter is in two, gates decay, or no resize can move an optimizer's state.
        """
        self.optimizers = tracked(self.optimizers, optimizers, self.model, self.gates)
        self._after_step.watch(self.optimizers)

    def untrack(self, *optimizers: Optimizer) -> None:
        """Forget tracked optimizers that no longer step, for example after the next stage has replaced them."""
        self.optimizers = optimizer_steps.forgotten(self.optimizers, optimizers)
        self._after_step.watch(self.optimizers)

    def backward(self, closure: Loss, *, scale: float | Any = 1.0) -> Tensor:
        """Set the gradients of E_z[loss] + penalty, for weights and gates.

        The closure is called once or twice, depending on the estimator, under masks drawn from the gates. Gradients are
        added to `.grad`: zero them first, or accumulate. At k = inf this is `closure().backward()`. A second call
        leaves the model's buffers unchanged, not other modules'; for "arm", "disarm", "rloo" it is without autograd.

        Args:
            closure: returns the scalar loss of the model; does not call `.backward()`.
            scale: factor on loss and penalty: `1 / n` when accumulating n steps, or a `torch.amp.GradScaler` (which,
                used inside the closure instead, would leave the penalty unscaled).

        Returns:
            The detached loss, (), without scale and penalty.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite (checked on the CPU only, without synchronisation).
            ConfigurationError: the closure does not return a scalar, or its loss has no gradient.

        References:
            Li and Ji, "Neural Plasticity Networks", IJCNN 2021, eq. 12 and Algorithm 1.
        """
        return self._step().backward(closure, scale)

    def step_with(self, evaluate: Evaluate, scale: float | Tensor = 1.0) -> Tensor:
        """`backward` with a forward and backward pass that a training framework runs; see `npn.step.Step.step_with`."""
        return self._step().step_with(evaluate, scale)

    def _step(self) -> Step:
        inputs = self.gates, self.masked_weights, self.model, self.estimator, self.penalty, self.pricing
        return Step(*inputs, per_example=self.masks == "example", last_checkpoint=self.last_checkpoint)

    def expected_cost(self, kind: str, /, weights: Mapping[str, float] | None = None) -> Tensor:
        """E[cost(z)] of the network under its gates; units in grace count as open and have no gradient.

        Args:
            kind: "params", "weights", "macs", "units" or "layerwise", see `npn.penalty.CostTerm`.
            weights: group name -> factor, for "layerwise".

        Returns:
            Scalar, differentiable in the logits.
        """
        self.gates.to(self.masked_weights.device)
        self.gates.decide()  # where a method decides, its cost is that of what stays now
        return self.pricing.expected(kind, self.gates.keep_probability(), weights)

    def full_cost(self, kind: str, /) -> float:
        """Cost of the model at attach, with every gate open; `kind` as for `expected_cost`."""
        return self.pricing.full(kind)

    def minimum_cost(self, kind: str, /) -> float:
        """Cost with one unit left in every group, and the branch that is then the cheapest."""
        return self.pricing.costs.least(kind)

    def compact(self, below: float = 1e-3, *, score: float = -torch.inf) -> ResizeReport:
        """Physically remove units that have stayed closed.

        A unit is removed when its keep probability is under `below` (at k = inf: when it is closed), or when `close`
        closed it and it has not reopened. Every group keeps its likeliest unit. A removed branch takes the groups that
        lie wholly inside it along, and never returns. Single weights are removed by the same rule: they are zero from
        then on, without momentum or gradient, until `open` or growth opens them. A unit goes with its last reader.

        Args:
            below, score: keep probability; with one of `npn.methods`, the score under which units go, too.

        Raises:
            ResizeError, OptimizerError, DistributedError: nothing has changed.
        """
        report = self._resize(resizing.compaction(self._call, self._subject(), below, score))
        return replace(report, weights=resizing.remove_weights(self.gates, self.masked_weights, below, self.optimizers))

    def grow(
        self, more: Mapping[str, int], *, grace: int = 0, init: str = "zero", warmup: int = 0, loss: Loss | None = None
    ) -> ResizeReport:
        """Add units so that the function is unchanged.

        Args:
            more: group name -> units to add; of a group whose units come in sets, rounded up to whole sets.
            grace: calls of `backward` for which the new units are held open, unpenalised.
            init, warmup: see `npn.Growth`. At a finite k, "pair" and "split" need a grace period: their function is
                kept only while both units of a pair are open.
            loss: for init="select", as for `backward`: the loss of a batch, of 1,000 examples or so.

        Raises:
            ResizeError, OptimizerError, ConfigurationError, DistributedError: nothing has changed.
        """
        times = candidates.check_start(grace, init, warmup, loss)
        plan = resizing.growth(self._call, self._subject(), more, times)
        start = resizing.start(self._call, plan, init, warmup)
        report = self._resize(plan, grace, start)
        if loss is not None and times > 1 and report:
            report = candidates.keep_best(report, self.masked_weights, loss, self._remove)
        self.gates.hold_open(report.added, grace, warmup)
        self.gates.hold_open(start.held, grace)
        return report

    def _remove(self, units: Mapping[str, Sequence[int]]) -> ResizeReport:
        return self._resize(resizing.removal(self._subject(), units))

    def reconnect(self, share: int | float, *, grace: int = 0) -> dict[str, int]:
        """Open the closed single weights that the last `backward` asks for most; see `npn.connections.reconnect`."""
        return connections.reconnect(self.gates, self.masked_weights, self.optimizers, share, grace)

    def _resize(self, plan: surgery.Plan, grace: int = 0, start: surgery.Start = surgery.ZERO) -> ResizeReport:
        """Carry out a plan on the model and the copies that follow it, and tell everything that knows the structure."""
        copies = following.copies_among(self.followers, self.structure)
        report = resizing.resize(self._call, plan, self.optimizers, grace, start)
        if report:
            resizing.agree(self._model, self.optimizers, report)
            following.resize(copies, plan, self.optimizers, start.copies)
            self.restructure(plan.after)
            resizing.warn_of_frozen(self._model, plan)
        return report

    def _subject(self) -> resizing.Subject:
        return resizing.Subject(self.model, self.structure, self._inputs(), self.masked_weights)

    def _inputs(self, model: nn.Module | None = None) -> Any:
        """The example inputs where the model, or a copy of it, is now, in its dtype."""
        return moved_with(self._model if model is None else model, self.example_inputs, self._dtype_at_attach)

    def restructure(self, structure: Structure) -> None:
        """Adopt the structure of a model that has been resized, and notify the followers."""
        self.structure = structure
        self.gates.restructure(structure)
        self.masked_weights.restructure(self._model, structure)
        self.pricing.restructure(self._model, structure)
        following.renew(self.followers)

    def follow(self, copied: AnyModule) -> AnyModule:
        """Keep a copy of the model in step: an average, a momentum encoder, a target network, a teacher.

        Every resize resizes the copy along: what stays keeps the copy's own values, what is new has the model's. When
        called, it runs without the units that are closed in the model. Returns the argument.

        Args:
            copied: `copy.deepcopy(plastic.model)`, or a module that holds it as `.module`, such as
                `torch.optim.swa_utils.AveragedModel(plastic.model)`.

        Raises:
            ConfigurationError: it has other names or shapes than the model, or shares parameters with it.

        Example:
            >>> import npn
            >>> plastic = npn.attach(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4))
            >>> average = plastic.follow(torch.optim.swa_utils.AveragedModel(plastic.model))
            >>> plastic.grow({"0": 2}).changes, average.module[0].weight.shape
            ({'0': (8, 10)}, torch.Size([10, 4]))
        """
        following.follow(self.followers, self.gates, self.masked_weights, copied)
        return copied

    def export(self, of: nn.Module | None = None) -> nn.Module:
        """Make a plain copy of the model, without its closed units and without any dependence on npn.

        Args:
            of: a copy given to `follow`, to be exported in place of the model.

        Raises:
            ConfigurationError: an attribute of the model cannot be copied, or `of` does not follow it.
            ResizeError: closed units have to stay under a norm, which would count them.
        """
        call = self._call if of is None else following.followed(self.followers, of)
        with torch.inference_mode(False):  # or the copy could not be trained
            return resizing.plain_copy(call, self.structure, self._inputs(call.weights.model))

    def detach(self) -> nn.Module:
        """Remove the gates and return the model, with closed units; under masks, raise `ConfigurationError`."""
        self._call.own_weights()
        following.stop(self.followers)
        self.masked_weights.remove()
        self.masked_weights.detached = True
        self._after_step.watch(())
        self._call.unregister(self._model)
        materialize_selects(self._model)
        return self._model

    def state_dict(self) -> dict[str, Any]:
        """Gates, sharpness, penalty and generator; the weights are in `model.state_dict()`."""
        return self.gates.state_dict() | {"penalty": self.penalty.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved; other groups raise `ConfigurationError`, and nothing is loaded."""
        self.gates.check_state_dict(state_dict, also=("penalty",))
        self.penalty.load_state_dict(state_dict["penalty"])
        self.gates.load_state_dict(state_dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Plasticity":
        """Copy the handle with its own model; optimizers and followers stay with the original."""
        followers = weakref.WeakValueDictionary[int, Follower]()
        fresh: dict[str, Any] = {"optimizers": [], "followers": followers, "pricing": None, "_after_step": None}
        new = deep_copy(self, memo, fresh)
        new._after_step = AfterStep(new.gates, new.masked_weights)
        new.pricing = Pricing(new._model, new.structure, new.gates, full=self.pricing)
        optimizer_steps.watch(new.masked_weights)
        return new
