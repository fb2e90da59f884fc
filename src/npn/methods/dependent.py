"""Dependent Beta-Bernoulli dropout: gates that look at the input, on top of trained Beta-Bernoulli gates."""

import math
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from npn import functional
from npn._utils import cpu
from npn._utils.collectives import per_rank_generator
from npn._utils.validation import complete_state, finite, positive, whole_number
from npn.errors import ConfigurationError
from npn.methods.beta_bernoulli import START_B, BetaBernoulli
from npn.methods.method import Method
from npn.modules import InputGate, gated_layer, input_dim
from npn.plasticity import Plasticity
from npn.structure import Group, Slot, Structure
from npn.surgery import Plan

SMALLEST = 1e-3  # gates at most this are 0 in evaluation
EPSILON, FORGETTING = 1e-3, 0.01  # of the BatchNorm
PRIOR = math.sqrt(5)  # deviation of the shifts


@final
class DependentBetaBernoulli(Method):
    """Beta-Bernoulli dropout whose gates also depend on the input; it takes over from a trained `BetaBernoulli`.

    For each example ``h = BatchNorm(xbar)``, where xbar is the mean of a unit over positions, without gradient, in
    the input of the layer that reads it. In training ``phi = clip(h + s e, 0, 1)`` with ``e ~ N(0, 1)`` shared by the
    batch, and the unit is multiplied by ``z_bb sigmoid((logit(phi) + logit(u)) / temperature)``, one u per example.
    The price is ``1/examples sum_j KL(N(beta_j, s_j^2) || N(0, 5))`` of the shifts beta of BatchNorm.

    In evaluation the gate is ``E[pi] clip(h, 0, 1)`` with running statistics, 0 where at most 1e-3. The parameters of
    the Beta-Bernoulli gates are frozen, and they decide which units stay.

    **The export is not a plain network**: it keeps a small gating module in front of each layer that reads gated
    units, in plain PyTorch (a `torch.fx.GraphModule` in place of the layer, with the layer's parameter names). It costs
    one mean per unit and one product per activation; units whose gate is 0 for an input are not skipped.

    Deviations from the authors' code: the gates sit on the input of the layer that reads a unit, after BatchNorm,
    nonlinearity and pooling; phi is clipped at 1e-6 in training, since float32 has no 1 - 1e-10; the divergence keeps
    its constant -1/2.

    Args:
        plastic: the handle of the model, on which a `BetaBernoulli` decides.
        examples: N, number of training examples.
        shift: initial beta; 1 as in the authors' PyTorch code, 10 in their TensorFlow code.
        temperature: of the relaxed gates.

    Raises:
        ConfigurationError: no `BetaBernoulli` decides, an argument is outside its range, or a group of units is not
            read by exactly one linear or convolution layer.

    Example:
        >>> import npn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(16, 4)
        >>> plastic = npn.attach(model, x)
        >>> _ = npn.methods.BetaBernoulli(plastic, examples=16)  # to be trained first
        >>> method = npn.methods.DependentBetaBernoulli(plastic, examples=16)
        >>> loss = method.backward(lambda: model(x).square().mean())
        >>> [name for name, _ in method.export()[2].named_buffers()]
        ['columns', 'counts', 'scale', 'shift', 'least']

    References:
        Lee et al., "Adaptive Network Sparsification with Dependent Variational Beta-Bernoulli Dropout",
        arXiv:1805.10896, Section 4.2.
    """

    whole_units = True
    folds = False  # the gates look at the input

    def __init__(self, plastic: Plasticity, *, examples: int, shift: float = 1.0, temperature: float = 0.1) -> None:
        before = plastic.gates.decision
        if not isinstance(before, BetaBernoulli):
            came = "no method" if before is None else type(before).__name__
            raise ConfigurationError(
                f"DependentBetaBernoulli takes over from a trained BetaBernoulli, but {came} decides; make and train "
                "npn.methods.BetaBernoulli(plastic, ...) first"
            )
        super().__init__(plastic, follows=before)
        self.base = before
        self.examples = whole_number("examples", examples, 1, "training examples")
        self.temperature = positive("temperature", temperature)
        shift = finite("shift", shift)
        readers = [_reader(plastic.model, part)[0].tensor for part in plastic.structure.parts]
        twice = [tensor for tensor in readers if readers.count(tensor) > 1]
        if twice:
            raise ConfigurationError(
                f"{twice[0]} reads units of several groups, and can have dependent gates for one; leave out the others "
                "with skip= when attaching"
            )
        self._learning = False
        self._places: dict[str, InputGate] = {}
        self._places_of: Structure | None = None
        one = cpu.ones(len(plastic.gates), dtype=torch.float32)
        zero = torch.zeros_like(one)
        learned = {"gain": (one, 1.0), "shift": (shift * one, shift), "deviation": (START_B * one, START_B)}
        self._begin(learned, fixed={"mean": (zero, 0.0), "variance": (one, 1.0)})

    def backward(self, closure: Callable[[], Tensor], *, scale: float | Any = 1.0) -> Tensor:
        """See `Method.backward`; calls of the model outside of it have the gates of evaluation."""
        self._learning = True
        try:
            return super().backward(closure, scale=scale)
        finally:
            self._learning = False

    @torch.no_grad()
    def training_mask(self, batch: int | None = None) -> Tensor:
        """The Beta-Bernoulli gates, which learn no more."""
        return self.base.training_mask(batch)

    def evaluation_mask(self) -> Tensor:
        """The part of the evaluation gates that does not depend on the input, E[pi] or 0."""
        return self.base.evaluation_mask()

    def chosen(self) -> tuple[Tensor, Tensor]:
        """What the Beta-Bernoulli gates keep."""
        return self.base.chosen()

    def penalty(self) -> Tensor:
        """``sum_j KL(N(beta_j, s_j^2) || N(0, 5)) / examples``."""
        deviation = F.softplus(self._joined("deviation"))
        return functional.gaussian_kl(self._joined("shift"), deviation, PRIOR).sum() / self.examples

    def register(self, model: nn.Module) -> None:
        """Put a hook on each layer that reads gated units."""
        for part in self.plastic.structure.parts:
            layer = _reader(model, part)[1]
            layer.register_forward_pre_hook(_Hook(self, part.name), with_kwargs=True)

    def unregister(self, model: nn.Module) -> None:
        """Remove the hooks, from a deep copy as well."""
        for module in model.modules():
            for number, hook in list(module._forward_pre_hooks.items()):
                if isinstance(hook, _Hook):
                    module._forward_pre_hooks.pop(number)
                    module._forward_pre_hooks_with_kwargs.pop(number, None)

    def finish(self, exported: nn.Module, plan: Plan) -> None:
        """Replace each layer that reads gated units by one with its gates."""
        probability = self._by_name(self.evaluation_mask())
        for part in plan.after.parts:
            kept = plan.units.get(part.name, cpu.arange(part.size)).to(self.plastic.gates.device)
            tensors = {name: tensors[part.name].detach()[kept] for name, tensors in self._tensors.items()}
            scale = tensors["gain"] / torch.sqrt(tensors["variance"] + EPSILON)
            slot, layer = _reader(exported, part)
            place = _place(part, slot, layer, plan.after, kept.device)
            path, _, leaf = slot.tensor.rpartition(".")[0].rpartition(".")
            shift = tensors["shift"] - tensors["mean"] * scale
            gated = gated_layer(layer, place, scale, shift, SMALLEST / probability[part.name][kept])
            setattr(exported.get_submodule(path), leaf, gated)

    def state_dict(self) -> dict[str, Any]:
        """The tensors of both methods."""
        return super().state_dict() | {"base": self.base.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` saved."""
        complete_state(state, ("method", "tensors", "base"), "a DependentBetaBernoulli", "method")
        super().load_state_dict(state)
        self.base.load_state_dict(state["base"])

    def gated(self, group: str, layer: nn.Module, x: Tensor) -> Tensor:
        """The input of a layer times the dependent gates of the units that it reads.

        Args:
            group: name of the group.
            layer: the layer.
            x: its input.
        """
        structure = self.plastic.structure
        if self._places_of is not structure:
            self._places, self._places_of = {}, structure
        if group not in self._places or self._places[group].columns.device != x.device:
            part = next(part for part in structure.parts if part.name == group)
            with _disable_current_modes():  # kept for later calls, so no fake tensors when multiply-adds are counted
                self._places[group] = _place(part, _reader(self.plastic.model, part)[0], layer, structure, x.device)
        place, mine = self._places[group], {name: tensors[group] for name, tensors in self._tensors.items()}
        mean = place.mean(x.detach()).float()
        options = mine["mean"], mine["variance"], mine["gain"], mine["shift"], self._learning, FORGETTING, EPSILON
        if not self._learning:
            with torch.no_grad():
                gate = F.batch_norm(mean, *options).clamp(0, 1)
                return place.times(x, gate * (gate > SMALLEST / self._by_name(self.evaluation_mask())[group]))
        generator = per_rank_generator(self.plastic.gates.generator)
        noise = torch.randn(mean.shape[1], generator=generator, dtype=torch.float32, device=x.device)
        phi = F.batch_norm(mean, *options) + F.softplus(mine["deviation"]) * noise
        uniform = torch.rand(mean.shape, generator=generator, dtype=torch.float32, device=x.device)
        return place.times(x, functional.relaxed_bernoulli(phi, uniform, self.temperature))

    def _by_name(self, values: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self.plastic.gates.pieces(values), strict=True))


class _Hook:
    """Forward pre-hook of a layer that reads gated units.

    Attributes:
        aside: if True the hook does nothing, for tracing.
    """

    def __init__(self, method: DependentBetaBernoulli, group: str) -> None:
        self.method, self.group, self.aside = method, group, False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Gate the input among the layer's arguments."""
        if self.aside:
            return None
        x = self.method.gated(self.group, module, args[0] if args else kwargs["input"])
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "input": x})


def _reader(model: nn.Module, part: object) -> tuple[Slot, nn.Module]:
    """The one layer that reads the units of a group.

    Raises:
        ConfigurationError: there is not exactly one, or it is no linear or plain convolution layer.
    """
    name = getattr(part, "name", "")
    slots = [slot for slot in part.slots if slot.reads] if isinstance(part, Group) else []
    layers = [model.get_submodule(slot.tensor.rpartition(".")[0]) for slot in slots]
    if len(slots) != 1 or not slots[0].tensor.endswith("weight") or input_dim(layers[0]) is None:
        read = ", ".join(slot.tensor for slot in slots) or "no weight of a layer"
        raise ConfigurationError(
            f"a dependent gate sits on the input of the one linear or convolution layer that reads a unit, but "
            f"{name!r} is read by {read}; leave it out with skip= when attaching"
        )
    return slots[0], layers[0]


def _place(part: object, slot: Slot, layer: nn.Module, structure: Structure, device: torch.device) -> InputGate:
    """Where the units of a group lie in the input of the layer that reads them."""
    assert isinstance(part, Group)
    columns = cpu.full((structure.shapes[slot.tensor][slot.axis],), part.size)
    columns[slot.index] = cpu.arange(part.size)[:, None]
    dim = input_dim(layer)
    assert dim is not None
    return InputGate(columns.to(device), part.size, dim).to(device)
