"""Consumer-side masks: during a call, a closed gate zeroes the weights that read its unit.

A closed unit is then exactly an absent one, whatever layers lie between it and the weights that read it, and the cost
is one multiplication per weight instead of one per activation. Masks are applied by (parameter, axis) instead of by
module, because fused kernels, tied weights and recurrent layers read the same parameter.
"""

import contextlib
import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

from npn._utils.fsdp import reshard
from npn._utils.shards import is_shard
from npn.errors import ConfigurationError
from npn.masking.checkpoints import copies_kept, masked_again
from npn.masking.guards import gradients_stay, values_stay
from npn.masking.masked_pass import MaskedPass
from npn.masking.messages import CHANGED_SINCE, DETACHED, UNDER_MASKED
from npn.masking.norms import OpenNorms
from npn.masking.table import MaskTable
from npn.structure import Structure
from npn.surgery import Extra, check_shapes


class MaskedWeights:
    """The weights of a model that read gated units, and the masks applied to them.

    Args:
        model: the model.
        structure: its structure.

    Attributes:
        model, structure: the arguments.
        detached: whether the model is plain again, and the handle of no use.
        in_step: whether a training step has control of the masks; the hooks on the model's call then do nothing.
        sharded: whether `fully_shard` has split the parameters over processes. It copies from them what a pass reads,
            and adds gradients to them after it, so masks are multiplied into the parameters themselves for a pass.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        self.in_step = self.sharded = self.detached = False
        self._handles: dict[int, RemovableHandle] = {}
        self._dense: dict[str, Tensor] = {}  # see `dense_gradients`
        self.restructure(model, structure)

    def restructure(self, model: nn.Module, structure: Structure) -> None:
        """Use another structure from now on.

        Args:
            model: the model.
            structure: its structure.
        """
        self.remove()
        self.model, self.structure = model, structure

    def remove(self) -> None:
        """Remove the gradient hooks from the parameters and drop the table."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._table: MaskTable | None = None
        self._copies: list[Tensor] | None = None  # what lies in the place of the weights now; of shards, their own data
        self._now: MaskedPass | None = None  # the pass under way
        self._last_call: MaskedPass | None = None  # outside a step: its gradients may arrive later
        self._unmasked = False

    @property
    def table(self) -> MaskTable:
        """The table of masked weights, rebuilt after parameters were replaced or moved to another device."""
        if self.sharded and not self.swapped:
            reshard(self.model)
        if self._table is not None and not self.swapped and not self._table.follow():
            self.remove()
        if self._table is None:
            check_shapes(self.model, self.structure)
            if not self.sharded and any(is_shard(parameter) for parameter in self.model.parameters()):
                raise ConfigurationError(
                    "the model was sharded by fully_shard after attach; call npn.distributed.shard(plastic) after it, "
                    "and make the optimizers then"
                )
            with torch.inference_mode(False):  # training uses these tensors, even if inference creates them first
                self._table = MaskTable(self.model, self.structure)
                self._norms = OpenNorms(self.model, self.structure, self._table.device)
                self._watch()
        return self._table

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.table.device

    @property
    def swapped(self) -> bool:
        """Whether the parameters hold masked copies now."""
        return self._copies is not None

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Give a training step control of the masks inside the context; the hooks on the model's call do nothing."""
        if self.detached or (self.swapped and not self.in_step):
            raise ConfigurationError(DETACHED if self.detached else UNDER_MASKED)
        before, self.in_step = self.in_step, True
        try:
            yield
        finally:
            self.in_step = before

    def need_whole(self, what: str) -> None:
        """Raise if the parameters are split over processes.

        Args:
            what: needs whole ones, for the error message.

        Raises:
            ConfigurationError: they are.
        """
        if self.sharded:
            raise ConfigurationError(
                f"{what} needs whole weights, but fully_shard has split those of this model over the processes; do it "
                "before fully_shard, or with a copy made by plastic.export()"
            )

    def _watch(self) -> None:
        """Register a gradient hook on every parameter that requires grad and has none yet."""
        table = None if self.sharded else self._table
        for i, parameter in enumerate(() if table is None else table.parameters):
            if parameter.requires_grad and i not in self._handles:
                self._handles[i] = parameter.register_hook(self._hook(i))

    @contextlib.contextmanager
    def applied(self, mask: Tensor, collect: bool = False) -> Iterator[MaskedPass]:
        """Replace the weights by masked copies inside the context, and mask their gradients as they arrive.

        Args:
            mask: (gates,), 0 where closed.
            collect: whether to collect gradients for dL/dz as well, see `MaskedPass.mask_gradient`.

        Returns:
            A context that gives the pass.

        Raises:
            ConfigurationError: a weight was changed in place inside the context, where the change is lost.
        """
        table = self.table
        under = MaskedPass(table, mask, collect, self.sharded, norms=bool(self._norms.norms))
        with torch.inference_mode(False):
            copies = table.copies
        lent = [(p, p.grad) for p in table.parameters if collect and not p.requires_grad]
        earlier = [p.grad for p in table.parameters] if self.sharded else None
        try:
            for parameter in table.parameters if earlier is not None else ():
                parameter.grad = None
            self._swap_in(under, copies)
            self._now = under
            for parameter, _ in lent:  # a frozen parameter needs a gradient here, from which dL/dz follows
                parameter.requires_grad_(True)
                parameter.grad = None
            self._watch()
            stay = values_stay(table.names, table.parameters, "plastic.backward")
            with self._norms.under(mask if under.leaf is None else under.leaf), stay:
                yield under
        finally:
            self._now = None
            self._swap_out()
            if earlier is not None:
                under.take_gradients(earlier)
            for parameter, grad in lent:
                parameter.requires_grad_(False)
                parameter.grad = grad

    def dense_gradients(self) -> dict[str, Tensor]:
        """The last gradient of each weight with single-weight gates, before these masked it; 0 where units are closed.

        Resizes move its entries along, and those of new units are 0.

        Returns:
            name -> gradient, without weights that have had none since the model was attached, loaded or moved.
        """
        present = self.table.named
        return {
            name: gradient
            for name, gradient in self._dense.items()
            if name in present and gradient.shape == present[name].shape and gradient.device == present[name].device
        }

    def extras(self) -> list[Extra]:
        """What a resize moves along with the weights: their `dense_gradients`."""
        return [Extra(gradient, name, 0, True) for name, gradient in self.dense_gradients().items()]

    @contextlib.contextmanager
    def in_call(self, mask: Tensor) -> Iterator[None]:
        """Replace the weights by masked copies inside the context, that of a call outside a training step.

        The call may be differentiated after the weights are restored: autograd saves the masked copies, and gradients
        that arrive later are still masked.

        Args:
            mask: (gates,), the deterministic mask.

        Raises:
            ConfigurationError: the model is sharded, and the call may be differentiated.
        """
        grad = torch.is_grad_enabled()
        if self.sharded and grad:
            raise ConfigurationError(
                "units are closed, and the backward pass of a sharded model would gather weights without masks; call "
                "it under torch.no_grad(), inside plastic.backward, or after plastic.compact()"
            )
        table = self.table
        self._now = under = MaskedPass(table, mask)
        try:
            with torch.inference_mode(False):
                self._swap_in(under, table.empty())  # not those of steps: autograd keeps them
            self._watch()
            with contextlib.ExitStack() as entered:
                if grad:  # before the norms, which notice what is entered later
                    entered.enter_context(copies_kept())
                    entered.enter_context(masked_again(partial(self._again, under, mask)))
                entered.enter_context(self._norms.under(mask, self.model))
                yield
        finally:
            self._last_call, self._now = under if grad else self._last_call, None
            self._swap_out()

    @contextlib.contextmanager
    def _again(self, under: MaskedPass, mask: Tensor) -> Iterator[None]:
        """Put the masks of an earlier call on once more, for what its checkpoints compute in the backward pass."""
        if self.swapped and self._now is under:  # inside `npn.masked`
            yield
            return
        if self.swapped:
            raise ConfigurationError(UNDER_MASKED)
        if self.table is not under.table:
            raise ConfigurationError(CHANGED_SINCE)
        try:
            with _disable_current_modes():  # a selective checkpoint's takes these ops for those of the layers
                self._swap_in(under, under.table.empty())
            with self._norms.under(mask), masked_again(partial(self._again, under, mask)):  # of checkpoints inside
                yield
        finally:
            self._swap_out()

    def forget_call(self) -> None:
        """Stop masking gradients of an earlier call outside a training step."""
        self._last_call = None

    @contextlib.contextmanager
    def unmasked(self) -> Iterator[None]:
        """Leave gradients unmasked inside the context, also those that a call outside a step would mask."""
        self._unmasked = True
        try:
            yield
        finally:
            self._unmasked = False

    def not_collecting(self) -> AbstractContextManager[None]:
        """Exclude gradients computed inside the context from dL/dz; they are still masked."""
        return contextlib.nullcontext() if self._now is None else self._now.not_collecting()

    @contextlib.contextmanager
    def only_computing(self, last: bool = False) -> Iterator[None]:
        """Run the user's closure inside the context: its gradients are no part of dL/dz, and it adds none to `.grad`.

        Args:
            last: gradients of an earlier pass are there, which must not be deleted either.

        Raises:
            ConfigurationError: the closure has changed the gradients of the weights.
        """
        with gradients_stay(self.table.parameters, last), self.not_collecting():
            yield

    def _swap_in(self, under: MaskedPass, copies: list[Tensor]) -> None:
        """Replace the weights' data by the masked copies of a pass, which are written into `copies`."""
        table = under.table  # which is up to date
        with torch.inference_mode(False), torch.no_grad():
            for (stack, values), out, each in zip(table.members(table.values), copies, under.factors, strict=True):
                (stack.mask_in_place if self.sharded else stack.masked)(out, values, each)
        self._copies = copies
        if self.sharded:
            return
        masked = (copy for stack in copies for copy in stack.unbind())
        for parameter, copy_ in zip(table.parameters, masked, strict=True):
            parameter.data = copy_
        _clear_caches()

    def _swap_out(self) -> None:
        """Restore the weights' own data."""
        table, copies = self._table, self._copies
        if table is not None and copies is not None and self.sharded:
            reshard(self.model)  # what was gathered under masks
            with torch.inference_mode(False), torch.no_grad():
                for (_, values), own in zip(table.members(table.values), copies, strict=True):
                    torch._foreach_copy_(values, own.unbind())
        elif table is not None and copies is not None:
            for parameter, value in zip(table.parameters, table.values, strict=True):
                parameter.data = value
        self._copies = None
        _clear_caches()

    def _hook(self, i: int) -> Any:
        """The gradient hook of one weight: keep its gradient for dL/dz, and mask it."""
        name, axes = self.table.names[i], len(self.table.axes[i])

        def mask_gradient(gradient: Tensor) -> Tensor | None:
            under = self._last_call if self._now is None else self._now
            if under is None or self._unmasked:
                return None
            under.collect(i, gradient)
            for number, factor in enumerate(under.masks[i]):
                if number == axes:  # the gates of single weights come last
                    self._dense[name] = gradient.detach()
                gradient = gradient * factor
            return gradient

        return mask_gradient

    def __deepcopy__(self, memo: dict[int, Any]) -> "MaskedWeights":
        new = object.__new__(type(self))
        memo[id(self)] = new  # before copying the model, whose hooks refer to this object
        if self._table is not None and self.swapped and not self.sharded:  # copy the weights, not what masks them
            for parameter, value in zip(self._table.parameters, self._table.values, strict=True):
                own = memo.setdefault(id(parameter), nn.Parameter(parameter.detach(), parameter.requires_grad))
                own.data = value.clone()  # of the copy, if that of the model has begun with this parameter
        new.__init__(copy.deepcopy(self.model, memo), copy.deepcopy(self.structure, memo))  # type: ignore[misc]
        new.detached = self.detached
        return new


def _clear_caches() -> None:
    """Forget casts of the weights (autocast), and what parametrizations made of them, under another mask."""
    torch.clear_autocast_cache()
    parametrize._cache.clear()
