"""Consumer-side masks: during a call, a closed gate zeroes the weights that read its unit.

A closed unit is then exactly an absent one, whatever layers lie between it and the weights that read it, and the cost
is one multiplication per weight instead of one per activation. Masks are applied by (parameter, axis) instead of by
module, because fused kernels, tied weights and recurrent layers read the same parameter.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from npn._utils.collectives import size, sum_
from npn._utils.fsdp import reshard
from npn._utils.shards import is_shard, local, replicas
from npn.errors import ConfigurationError
from npn.masking.guards import gradients_stay, values_stay
from npn.masking.norms import OpenNorms
from npn.masking.refusals import DETACHED, UNDER_MASKED, UNUSED
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
        self._table: MaskTable | None = None
        self._dense: dict[str, Tensor] = {}
        self.restructure(model, structure)

    def restructure(self, model: nn.Module, structure: Structure) -> None:
        """Use another structure from now on.

        Args:
            model: the model.
            structure: its structure.
        """
        self.remove()
        self.model, self.structure = model, structure

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

    def remove(self) -> None:
        """Remove the gradient hooks from the parameters and drop the table."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._table = None
        self.swapped = False  # whether the parameters hold masked copies now
        self._masks: list[list[Tensor]] | None = None  # factors of each weight, while its gradients are masked
        self._outside: list[list[Tensor]] | None = None  # those of the last call outside a step
        self._leaf: Tensor | None = None  # the mask of a step whose gates move the statistics of norms
        self._unmasked = False
        self._mask: Tensor | None = None  # the mask of the last step,
        self._factors: list[list[Tensor]] = []  # its factors of each stack,
        self._arrived: list[Tensor | None] | None = None  # and the gradient of each masked weight, if they are wanted
        self._saved: list[Tensor] = []  # the weights of shards, while masks are in their place
        self._stacks: list[Tensor] = []  # memory of the masked copies of steps: new memory costs more than multiplying

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
        for i, parameter in enumerate(() if self.sharded else self._parameters):
            if parameter.requires_grad and i not in self._handles:
                self._handles[i] = parameter.register_hook(self._hook(i))

    @property
    def _parameters(self) -> list[Tensor]:
        return self._table.parameters if self._table is not None else []

    @contextlib.contextmanager
    def applied(self, mask: Tensor, collect: bool = False) -> Iterator[None]:
        """Replace the weights by masked copies inside the context, and mask their gradients as they arrive.

        Args:
            mask: (units,), 0 where closed.
            collect: whether to accumulate dL/dz as well, see `mask_gradient`.

        Raises:
            ConfigurationError: a weight was changed in place inside the context, where the change is lost.
        """
        table = self.table
        with torch.inference_mode(False), torch.no_grad():
            self._mask, self._factors = mask, table.factors(mask)
            self._stacks = self._stacks or [stack.empty(table.device) for stack in table.stacks]
            masks = table.unstacked(self._factors)
        self._arrived = [None] * len(table.parameters) if collect else None
        lent = [(p, p.grad) for p in table.parameters if collect and not p.requires_grad]
        earlier = [p.grad for p in table.parameters] if self.sharded else None
        try:
            for parameter in table.parameters if earlier is not None else ():
                parameter.grad = None
            self._swap_in(self._factors, self._stacks)
            self._masks = masks
            for parameter, _ in lent:  # a frozen parameter needs a gradient here, from which dL/dz follows
                parameter.requires_grad_(True)
                parameter.grad = None
            self._watch()
            with torch.inference_mode(False):
                self._leaf = mask.detach().clone().requires_grad_(collect) if self._norms.norms else None
            stay = values_stay(table.names, table.parameters, "plastic.backward")
            with self._norms.under(mask if self._leaf is None else self._leaf), stay:
                yield
        finally:
            self._masks = None
            self._swap_out()
            if earlier is not None:
                self._take_gradients(earlier, masks)
            for parameter, grad in lent:
                parameter.requires_grad_(False)
                parameter.grad = grad

    def _take_gradients(self, earlier: list[Tensor | None], masks: list[list[Tensor]]) -> None:
        """Mask the gradients of a pass, which `fully_shard` has given to the shards, and add them to earlier ones."""
        for i, (parameter, before) in enumerate(zip(self._parameters, earlier, strict=True)):
            if parameter.grad is not None:
                part = local(parameter.grad)
                if self._arrived is not None:
                    self._arrived[i] = part / replicas(parameter)  # all processes are summed over later
                for factor in masks[i]:
                    part.mul_(factor)
                if before is not None:
                    local(before).add_(part)
            if before is not None:
                parameter.grad = before

    def mask_gradient(self) -> Tensor:
        """dL/dz of the last `applied(collect=True)`: weight times gradient, summed over the weights that read a unit.

        Returns:
            float32 (gates,).
        """
        assert self._arrived is not None and self._mask is not None
        if self.sharded and self._arrived and all(gradient is None for gradient in self._arrived):
            raise ConfigurationError(
                "no gradient has arrived at the shards, from which dL/dz follows; leave "
                "set_requires_gradient_sync(True) on in plastic.backward"
            )
        table, arrived, self._arrived = self.table, self._arrived, None
        if (
            arrived
            and all(gradient is None for gradient in arrived)
            and (self._leaf is None or self._leaf.grad is None)
        ):
            raise ConfigurationError(UNUSED)
        with torch.no_grad():
            parts = zip(table.members(table.values), table.members(arrived), self._stacks, strict=True)
            for (stack, values), (_, gradients), out in parts:  # the masked copies are no longer read
                stack.product(out, values, gradients)
            gradient, leaf, self._leaf = table.gradient(self._stacks, self._factors, self._mask), self._leaf, None
            if leaf is not None and leaf.grad is not None:
                gradient[: table.units] += leaf.grad[: table.units] / (size() if self.sharded else 1)
            if self.sharded:  # each process has the gradients of its rows, which are means over all processes
                sum_(gradient)
            return gradient

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

    def mask_call(self, mask: Tensor) -> Any:
        """Replace the weights by masked copies for a call outside a training step.

        The call may be differentiated after the weights are restored: autograd saves the masked copies.

        Args:
            mask: (units,), the deterministic mask.

        Returns:
            The argument of `unmask_call`.
        """
        if self.sharded and torch.is_grad_enabled():
            raise ConfigurationError(
                "units are closed, and the backward pass of a sharded model would gather weights without masks; call "
                "it under torch.no_grad(), inside plastic.backward, or after plastic.compact()"
            )
        table = self.table
        with torch.inference_mode(False), torch.no_grad():
            factors = table.factors(mask)
            stacks, self._masks = [stack.empty(table.device) for stack in table.stacks], table.unstacked(factors)
            self._swap_in(factors, stacks)
        entered = contextlib.ExitStack()
        try:
            self._watch()
            grad = torch.is_grad_enabled()
            if grad:  # before the norms, which notice what is entered later
                hooks = torch.autograd.graph.saved_tensors_hooks
                entered.enter_context(hooks(lambda t: t.detach() if t.is_leaf else t, lambda t: t))
            entered.enter_context(self._norms.under(mask, self.model))
        except BaseException:
            with contextlib.suppress(RuntimeError):
                self.unmask_call((entered, False))
            raise
        return entered, grad

    def unmask_call(self, saved: Any) -> None:
        """Undo `mask_call`; gradients that arrive later are still masked.

        Args:
            saved: the result of `mask_call`.
        """
        entered, grad = saved
        try:
            entered.close()
        finally:
            self._outside, self._masks = self._masks if grad else self._outside, None
            self._swap_out()

    def forget_call(self) -> None:
        """Stop masking gradients of an earlier call outside a training step."""
        self._outside = None

    @contextlib.contextmanager
    def unmasked(self) -> Iterator[None]:
        """Leave gradients unmasked inside the context, also those that a call outside a step would mask."""
        self._unmasked = True
        try:
            yield
        finally:
            self._unmasked = False

    @contextlib.contextmanager
    def not_collecting(self) -> Iterator[None]:
        """Exclude gradients computed inside the context from dL/dz; they are still masked."""
        arrived, self._arrived = self._arrived, None
        try:
            yield
        finally:
            self._arrived = arrived

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

    def _swap_in(self, factors: list[list[Tensor]], stacks: list[Tensor]) -> None:
        """Replace the weights' data by masked copies, which are written into `stacks`."""
        table = self.table
        with torch.inference_mode(False), torch.no_grad():
            for (stack, values), out, each in zip(table.members(table.values), stacks, factors, strict=True):
                (stack.mask_in_place if self.sharded else stack.masked)(out, values, each)
        if self.sharded:
            self.swapped, self._saved = True, stacks
            return
        copies = (copy for stack in stacks for copy in stack.unbind())
        self.swapped = True
        for parameter, masked in zip(table.parameters, copies, strict=True):
            parameter.data = masked
        _clear_caches()

    def _swap_out(self) -> None:
        """Restore the weights' own data."""
        if self._table is not None and self.swapped and self.sharded:
            reshard(self.model)  # what was gathered under masks
            with torch.inference_mode(False), torch.no_grad():
                for (_, values), out in zip(self._table.members(self._table.values), self._saved, strict=True):
                    torch._foreach_copy_(values, out.unbind())
        elif self._table is not None and self.swapped:
            for parameter, value in zip(self._table.parameters, self._table.values, strict=True):
                parameter.data = value
        self.swapped, self._saved = False, []
        _clear_caches()

    def _hook(self, i: int) -> Any:
        """The gradient hook of one weight: keep its gradient for dL/dz, and mask it."""

        name, axes = self.table.names[i], len(self.table.axes[i])

        def mask_gradient(gradient: Tensor) -> Tensor | None:
            masks = self._masks if self._masks is not None else self._outside
            if masks is None or self._unmasked:
                return None
            if self._arrived is not None:
                before = self._arrived[i]  # a reentrant checkpoint delivers the gradient of a weight in several parts
                self._arrived[i] = gradient if before is None else before + gradient
            for number, factor in enumerate(masks[i]):
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
