"""What follows a step of an optimizer: the warm-up of new units, and removed weights that stay zero."""

import functools
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from npn._utils.layout import along
from npn._utils.models import model_tensors
from npn.gates import Gates
from npn.masking import MaskedWeights
from npn.structure import gate_of_entries
from npn.surgery import held_by


class AfterStep:
    """Scales what a step has done to new units, by t / n in the t-th of n, and takes it back of removed weights.

    An entry w, moved by a step to w', is set to w + (t / n) (w' - w), which is exact for any optimizer; a factor of the
    gradient would cancel out in Adam. Where an entry belongs to two new units, the smaller share counts. The gates keep
    t and n for each unit; the steps of the first optimizer that holds weights count.

    Single weights that `compact` has removed have neither momentum nor gradient, but an update that mixes entries, as
    Muon's, moves them all the same; they are set to zero again.

    Args:
        gates: of the model.
        weights: of the model.
    """

    def __init__(self, gates: Gates, weights: MaskedWeights) -> None:
        self.gates, self.weights = gates, weights
        self._handles: dict[int, list[Any]] = {}
        self._counts: weakref.ref[Optimizer] | None = None
        self._before: dict[int, list[tuple[nn.Parameter, Tensor, Tensor]]] = {}
        self._places: list[tuple[nn.Parameter, list[tuple[int, Tensor]]]] = []
        self._placed: tuple[object, torch.device] | None = None  # what the places belong to

    def watch(self, optimizers: Sequence[Optimizer]) -> None:
        """Follow the steps of these optimizers, and of no others.

        Args:
            optimizers: all tracked ones.
        """
        known = {id(optimizer) for optimizer in optimizers}
        for gone in self._handles.keys() - known:
            for handle in self._handles.pop(gone):
                handle.remove()
        for optimizer in optimizers:
            if id(optimizer) not in self._handles:
                self._handles[id(optimizer)] = [
                    optimizer.register_step_pre_hook(self._remember),
                    optimizer.register_step_post_hook(self._correct),
                ]
        own = {id(parameter) for parameter in self.weights.model.parameters()}
        first = next((optimizer for optimizer in optimizers if own & held_by(optimizer)), None)
        self._counts = None if first is None else weakref.ref(first)

    def _remember(self, optimizer: Optimizer, *_: Any) -> None:
        """Before a step: count it, and keep the values of weights with new entries."""
        if not self.gates.warming_left:
            return
        if self._counts is not None and self._counts() is optimizer:
            self.gates.warm()
        held = held_by(optimizer)
        with torch.no_grad():
            self._before[id(optimizer)] = [
                (parameter, parameter.detach().clone(), share) for parameter, share in self._shares(held)
            ]

    def _correct(self, optimizer: Optimizer, *_: Any) -> None:
        """After a step: take back a part of the changes of new entries, and all those of removed weights."""
        with torch.no_grad():
            if self.gates.weights:
                held, tensors = held_by(optimizer), self.weights.table.named
                for gate in self.gates.weights:
                    parameter = tensors[gate.name]
                    if id(parameter) in held:
                        parameter.masked_fill_(gate.removed.to(parameter.device), 0)
            for parameter, before, share in self._before.pop(id(optimizer), ()):
                parameter.copy_(torch.lerp(before, parameter.detach(), share))

    def _shares(self, held: set[int]) -> list[tuple[nn.Parameter, Tensor]]:
        """Weight -> factor of its change, broadcastable, for weights with units that `held` lists."""
        if not self.gates.warming_left:
            return []
        structure, device = self.weights.structure, self.weights.device
        if self._placed is None or self._placed[0] is not structure or self._placed[1] != device:
            self._places, self._placed = self._find(device), (structure, device)
        shares = torch.cat([self.gates.shares().to(device), torch.ones(1, device=device)])
        found = []
        for parameter, axes in self._places:
            if id(parameter) in held:
                views = [along(shares[unit], axis, parameter.dim()) for axis, unit in axes]
                share = functools.reduce(torch.minimum, views).to(parameter.dtype)
                found.append((parameter, share.expand_as(parameter)))
        return found

    def _find(self, device: torch.device) -> list[tuple[nn.Parameter, list[tuple[int, Tensor]]]]:
        """Weight -> for each axis with units, the unit of each position; the number of units where there is none."""
        structure, tensors = self.weights.structure, model_tensors(self.weights.model)
        owners = gate_of_entries(structure, lambda slot: True)
        for columns in structure.columns:
            if columns.key in owners:
                owners[columns.key] = owners[columns.key][columns.kept]
        places: dict[str, list[tuple[int, Tensor]]] = {}
        for (name, axis), owner in owners.items():
            places.setdefault(name, []).append((axis, owner.to(device)))
        return [(p, axes) for name, axes in places.items() if isinstance(p := tensors[name], nn.Parameter)]
