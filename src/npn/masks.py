"""Consumer-side masks: a closed gate zeroes the weights that read its unit, for the length of a call.

A closed unit is then exactly an absent one, whatever lies between it and its readers, and the price is one product per
weight instead of one per activation. Masks are applied by (parameter, axis), not by module: fused kernels, tied weights
and recurrent layers read the same parameter.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from npn.errors import ConfigurationError
from npn.feeding import chain, effective, feeders
from npn.tracing import Structure
from npn.tracing.capture import model_tensors


class Readers:
    """The weights that read gated units.

    Args:
        model: the model.
        structure: its units; gates are numbered through all groups, branches and columns, in this order. The gate of
            a branch multiplies whole parameters: its axis is None.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        tensors = model_tensors(model)
        self.units = sum(part.size for part in structure.parts)
        single = {part.key for part in structure.columns}
        columns: dict[str, dict[int | None, Tensor]] = {}
        start = 0
        for group in structure.groups:
            for slot in group.slots:
                if slot.reads and slot.key not in single:
                    size = tensors[slot.tensor].shape[slot.axis]
                    owner = columns.setdefault(slot.tensor, {}).setdefault(slot.axis, torch.full((size,), self.units))
                    owner[slot.index] = torch.arange(start, start + group.size)[:, None]
            start += group.size
        for scales in structure.branches.scales if structure.branches is not None else ():
            for name in scales:
                columns.setdefault(name, {})[None] = torch.tensor([start])
            start += 1
        for part in structure.columns:
            columns.setdefault(part.tensor, {})[part.axis] = torch.arange(start, start + part.size)
            start += part.size
        self.names = list(columns)
        self.parameters: list[Tensor] = [tensors[name] for name in columns]
        self._homes = [_home(model, name) for name in columns]
        self.axes = [list(axes) for axes in columns.values()]
        self.device = self.parameters[0].device if self.parameters else torch.device("cpu")
        pieces = [owner for axes in columns.values() for owner in axes.values()]
        self.sizes = [len(piece) for piece in pieces]
        self.index = torch.cat([*pieces, torch.zeros(0, dtype=torch.long)]).to(self.device)
        self.feeder = feeders(structure)
        if self.feeder is not None:
            self.feeder = self.feeder.to(self.device)
        self._mask: Tensor | None = None
        self._masks: list[list[Tensor]] | None = None
        self._values: list[Tensor] = []
        self._collected: list[list[Tensor] | None] | None = None
        self._outside: list[list[Tensor]] | None = None
        self._unmasked = False
        self._handles: dict[int, RemovableHandle] = {}
        # fresh memory for every masked copy costs more than the product itself
        self._copies: list[Tensor] = []
        self._scratch: Tensor | None = None
        self._watch()

    @property
    def stale(self) -> bool:
        """Whether parameters were replaced, or moved to another device, since these readers were made."""
        return any(
            home.get(leaf) is not p or p.device != self.device
            for (home, leaf), p in zip(self._homes, self.parameters, strict=True)
        )

    def remove(self) -> None:
        """Take the gradient hooks off the parameters."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def _watch(self) -> None:
        """Hook every parameter that has a gradient, those thawed since the last call included."""
        for i, parameter in enumerate(self.parameters):
            if parameter.requires_grad and i not in self._handles:
                self._handles[i] = parameter.register_hook(self._hook(i))

    def expand(self, mask: Tensor) -> list[list[Tensor]]:
        """From a mask over all units (units,) to one factor per reading axis, shaped to broadcast on the weight."""
        padded = torch.cat([effective(mask, self.feeder), mask.new_ones(1)])
        pieces = iter(padded[self.index].split(self.sizes))
        factors = []
        for parameter, axes in zip(self.parameters, self.axes, strict=True):
            shapes = [[-1 if a == axis else 1 for a in range(parameter.dim())] for axis in axes]
            factors.append([next(pieces).view(shape).to(parameter.dtype) for shape in shapes])
        return factors

    @contextlib.contextmanager
    def applied(self, mask: Tensor, collect: bool = False) -> Iterator[None]:
        """Weights read through `mask` inside; gradients of the weights are masked as they arrive.

        Args:
            mask: (units,), zero where closed.
            collect: also gather dL/dz, see `mask_gradient`.
        """
        with torch.inference_mode(False), torch.no_grad():
            masks = self.expand(mask)
            self._swap_in(masks, reuse=True)
        self._mask, self._masks = mask, masks
        self._collected = [None] * len(self.parameters) if collect else None
        lent = [(p, p.grad) for p in self.parameters if collect and not p.requires_grad]
        for parameter, _ in lent:  # frozen, but dL/dz comes with its gradient
            parameter.requires_grad_(True)
            parameter.grad = None
        self._watch()
        versions = [parameter._version for parameter in self.parameters]
        try:
            yield
            self._check_untouched(versions)
        finally:
            self._masks = None
            self._swap_out()
            for parameter, grad in lent:
                parameter.requires_grad_(False)
                parameter.grad = grad

    def _check_untouched(self, versions: list[int]) -> None:
        """A change of what is lent for a call would be lost with it."""
        for name, parameter, version in zip(self.names, self.parameters, versions, strict=True):
            if parameter._version != version:
                raise ConfigurationError(
                    f"{name} was changed inside plastic.backward, where it is a masked copy; the change is lost. Step "
                    "optimizers, and normalise or clip weights in place, after plastic.backward"
                )

    def mask_gradient(self) -> Tensor:
        """dL/dz (units,) of the last `applied(collect=True)`: sum over its readers of weight times gradient."""
        assert self._collected is not None and self._mask is not None
        pieces: list[Tensor] = []
        for i, sums in enumerate(self._collected):
            start = len(pieces)
            if sums is None:
                pieces += [torch.zeros(self.sizes[start + j], device=self.device) for j in range(len(self.axes[i]))]
            else:
                pieces += sums
        self._collected = None
        total = torch.zeros(self.units + 1, device=self.device)
        if pieces:
            total.index_add_(0, self.index, torch.cat(pieces))
        return chain(total[:-1], self._mask, self.feeder)

    def enter_outside(self, masks: list[list[Tensor]]) -> Any:
        """Swap deterministic masks in for a call outside `Plasticity.backward`; returns what `leave_outside` takes.

        The call may be differentiated later, after the weights are back: what autograd saves is the masked copy.
        """
        with torch.inference_mode(False), torch.no_grad():
            self._swap_in(masks)
        self._masks = masks
        self._watch()
        if not torch.is_grad_enabled():
            return None
        saved = torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach() if t.is_leaf else t, lambda t: t)
        saved.__enter__()
        return saved

    def leave_outside(self, saved: Any) -> None:
        """Undo `enter_outside`; gradients that arrive later are still masked."""
        if saved is not None:
            saved.__exit__(None, None, None)
            self._outside = self._masks
        self._masks = None
        self._swap_out()

    def forget_outside(self) -> None:
        """Gradients are no longer those of a call outside `backward`."""
        self._outside = None

    @contextlib.contextmanager
    def unmasked(self) -> Iterator[None]:
        """Gradients inside belong to a call without masks, whatever an earlier one outside `backward` left."""
        self._unmasked = True
        try:
            yield
        finally:
            self._unmasked = False

    @contextlib.contextmanager
    def not_collecting(self) -> Iterator[None]:
        """What the closure itself differentiates inside is masked, but is no part of dL/dz."""
        collected, self._collected = self._collected, None
        try:
            yield
        finally:
            self._collected = collected

    def _swap_in(self, masks: list[list[Tensor]], reuse: bool = False) -> None:
        values = [parameter.data for parameter in self.parameters]
        if reuse:
            if not all(c.dtype == v.dtype for c, v in zip(self._copies, values, strict=False)) or not self._copies:
                self._copies = [torch.empty_like(v) for v in values]
            masked = [_masked_into(c, v, f) for c, v, f in zip(self._copies, values, masks, strict=True)]
        else:
            masked = [functools.reduce(torch.mul, factors, v) for v, factors in zip(values, masks, strict=True)]
        self._values = values
        for parameter, value in zip(self.parameters, masked, strict=True):
            parameter.data = value
        torch.clear_autocast_cache()  # it may hold casts of these weights under another mask

    def _swap_out(self) -> None:
        for parameter, value in zip(self.parameters, self._values, strict=True):
            parameter.data = value
        self._values = []
        torch.clear_autocast_cache()

    def _room(self, like: Tensor) -> Tensor:
        """Memory for one product of weight and gradient."""
        if self._scratch is None or self._scratch.dtype != like.dtype:
            largest = max(parameter.numel() for parameter in self.parameters)
            self._scratch = torch.empty(largest, dtype=like.dtype, device=like.device)
        return self._scratch[: like.numel()].view(like.shape)

    def _collect(self, i: int, gradient: Tensor, factors: list[Tensor], collected: list[list[Tensor] | None]) -> None:
        """Add weight times gradient, summed for each unit, to what there is of this weight."""
        product = torch.mul(self._values[i], _conjugate(gradient), out=self._room(gradient))
        before, sums = collected[i], _mask_sums(product, factors, self.axes[i])
        # a reentrant checkpoint delivers the gradient of a weight in several parts
        collected[i] = sums if before is None else [a + b for a, b in zip(before, sums, strict=True)]

    def _hook(self, i: int) -> Any:
        def mask_gradient(gradient: Tensor) -> Tensor | None:
            masks = self._masks if self._masks is not None else self._outside
            if masks is None or self._unmasked:
                return None
            factors = masks[i]
            if self._collected is not None:
                with torch.no_grad():
                    self._collect(i, gradient, factors, self._collected)
            for factor in factors:
                gradient = gradient * factor
            return gradient

        return mask_gradient


def _home(model: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The dict in which a module keeps the tensor of that name, and its key there."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    return (module._parameters if leaf in module._parameters else module._buffers), leaf


def _masked_into(out: Tensor, value: Tensor, factors: list[Tensor]) -> Tensor:
    torch.mul(value, factors[0], out=out)
    for factor in factors[1:]:
        out.mul_(factor)
    return out


def _conjugate(gradient: Tensor) -> Tensor:
    """Of a complex weight w with gradient G, d loss / d factor is the real part of w conj(G)."""
    return gradient.conj() if gradient.is_complex() else gradient


def _mask_sums(product: Tensor, factors: list[Tensor], axes: list[int | None]) -> list[Tensor]:
    """d loss / d factor of `weight * prod(factors)` from weight times gradient: float32 (size,) for each."""
    sums = []
    product = product.real if product.is_complex() else product
    factors = [factor.real if factor.is_complex() else factor for factor in factors]
    for j, axis in enumerate(axes):
        term = product
        for other, factor in enumerate(factors):
            if other != j:
                term = term * factor
        rest = [a for a in range(term.dim()) if a != axis]
        sums.append(term.sum(rest, dtype=torch.float32).reshape(-1) if rest else term.float().reshape(-1))
    return sums
