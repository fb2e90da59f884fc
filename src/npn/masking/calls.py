"""Hooks on the attached model's own call: outside training steps, closed units are absent from `model(x)` too."""

import contextlib
import copy
import sys
import threading
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo as not_compiled  # torch.compiler.disable would import the compiler now
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from npn._utils.validation import instance
from npn.errors import ConfigurationError, PlasticityError
from npn.gates import Gates
from npn.masking.guards import values_stay
from npn.masking.messages import EXPORTED, STALE, THREADS, UNDER_MASKED
from npn.masking.weights import MaskedWeights
from npn.structure import Structure


class MaskedCall:
    """Forward hooks of an attached model that apply the deterministic mask outside training steps.

    Args:
        gates: the model's gates.
        weights: the model's masked weights; the hooks do nothing while a training step controls them.

    Attributes:
        gates, weights: the arguments.
        entered: whether a call with masked weights is under way.
        copied: whether these are the hooks of a deep copy.
    """

    def __init__(self, gates: Gates, weights: MaskedWeights) -> None:
        self.gates, self.weights = gates, weights
        self.entered, self.copied = False, False
        self._inner = 0  # depth of calls of the model inside its own call
        self._held = False  # whether `held` keeps the masks on
        self._lock = threading.Lock()  # of entering
        self._masks = contextlib.ExitStack()  # around the call under way
        self._caller: tuple[int, FrameType] | None = None  # thread and frame of the call under way
        self._ids: tuple[int, int, int, int] = (0, 0, 0, 0)  # of the hooks
        # wrappers that have called the model -> its structure then
        self._wrappers: weakref.WeakKeyDictionary[nn.Module, Structure] = weakref.WeakKeyDictionary()

    def register(self, model: nn.Module) -> None:
        """Register the hooks on a model.

        Args:
            model: the attached model.
        """
        before = model.register_forward_pre_hook(self.before)
        after = model.register_forward_hook(self.after, always_call=True)
        saving = model.register_state_dict_pre_hook(self.own_weights)
        loading = model.register_load_state_dict_pre_hook(self.own_weights)
        self._ids = (before.id, after.id, saving.id, loading.id)
        if self.gates.decision is not None:
            self.gates.decision.register(model)

    def surround(self, model: nn.Module) -> None:
        """Run the first of all hooks before a model's call and the last after it, `fully_shard`'s in between.

        Args:
            model: on which `register` was called.
        """
        before, after, *_ = self._ids
        model._forward_pre_hooks.move_to_end(before, last=False)  # type: ignore[attr-defined]
        model._forward_hooks.move_to_end(after)  # type: ignore[attr-defined]

    def unregister(self, model: nn.Module) -> None:
        """Remove the hooks from a model or from a deep copy of it.

        Args:
            model: the model.
        """
        if self.gates.decision is not None:
            self.gates.decision.unregister(model)
        before, after, saving, loading = self._ids
        for hooks, key in (
            (model._forward_pre_hooks, before),
            (model._forward_hooks, after),
            (model._state_dict_pre_hooks, saving),
            (model._load_state_dict_pre_hooks, loading),
        ):
            hooks.pop(key, None)
        model._forward_hooks_always_called.pop(after, None)
        model._forward_pre_hooks_with_kwargs.pop(before, None)
        model._forward_hooks_with_kwargs.pop(after, None)

    def before(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook: mask the weights.

        Args:
            module: the model.
            args: its positional arguments, not used.

        Raises:
            ConfigurationError: the model is traced for export, or called by a wrapper that a resize has outdated.
        """
        if not torch.compiler.is_compiling():  # compiled code would break there
            self._check_wrapper()
        if self.weights.in_step or self._held:
            return
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise ConfigurationError(EXPORTED)
        if self.entered:
            self.recover()
        if self.entered:
            self._nest()
        else:
            self._enter()

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook, called after errors too: restore the weights.

        Args:
            module: the model.
            args: its positional arguments, not used.
            output: its output, not used.
        """
        if self.entered and not self._held:
            self._end()

    def own_weights(self, *_: Any) -> None:
        """Restore the weights after an interrupted call, and raise `ConfigurationError` while masks are in use.

        It is the hook before `state_dict` and `load_state_dict`, too: they copy the weights, not what masks them, and
        many loops save the model after Ctrl-C.
        """
        self.recover()
        if self.weights.swapped:
            raise ConfigurationError(UNDER_MASKED)

    def _check_wrapper(self) -> None:
        """Raise if a wrapper is to train the model, and has hooks on the parameters of before a resize."""
        wrapper = getattr(DistributedDataParallel, "_active_ddp_module", None)
        if wrapper is None:
            return
        before = self._wrappers.setdefault(wrapper, self.weights.structure)
        if torch.is_grad_enabled() and before is not self.weights.structure:
            raise ConfigurationError(STALE)

    def mask(self) -> Tensor | None:
        """The deterministic mask, on the device of the weights; None if every unit is open."""
        self.gates.to(self.weights.device)
        return self.gates.deterministic_mask()

    @not_compiled
    def recover(self) -> None:
        """Restore the weights after a call that was interrupted: torch runs forward hooks after an Exception only."""
        if self.entered and self._caller is not None:
            thread, frame = self._caller
            if thread == threading.get_ident() and frame not in _stack():
                self._inner = 0
                self._leave()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the weights masked inside, whichever part of the model is called; see `npn.masked`."""
        if self.weights.in_step or self._held:
            yield
            return
        self.recover()
        self._enter()
        self._held, self._caller = True, None  # a call that fails inside ends nothing
        try:
            table = self.weights.table
            with values_stay(table.names, table.parameters, "npn.masked") if self.entered else contextlib.nullcontext():
                yield
        finally:
            self._held = False
            if self.entered:
                self._leave()

    @not_compiled
    def _nest(self) -> None:
        """Count a call of the model inside its own call."""
        if self._caller is None or self._caller[0] != threading.get_ident():
            raise ConfigurationError(THREADS)
        self._inner += 1

    @not_compiled
    def _enter(self) -> None:
        """Mask the weights for a call."""
        with self._lock:
            if self.entered:
                raise ConfigurationError(THREADS)
            self._mask_weights()

    def _mask_weights(self) -> None:
        if torch.is_grad_enabled():
            self.weights.forget_call()
        with torch.inference_mode(False), torch.no_grad():  # training uses the tensors cached here
            transformed = torch._C._functorch.peek_interpreter_stack() is not None  # the weights have no memory then
            mask = self.gates.deterministic_mask() if transformed else self.mask()
        if mask is None:
            return
        if transformed:
            raise ConfigurationError(
                "units are closed, and torch.func transforms cannot run a model under masks; call plastic.compact() "
                "first, or transform plastic.export()"
            )
        self._masks.enter_context(self.weights.in_call(mask))
        self._caller = (threading.get_ident(), next(f for f in _stack() if not _passing(f)))
        self.entered = True

    @not_compiled
    def _end(self) -> None:
        """Restore the weights at the end of the outermost call; that of a thread that was refused ends nothing."""
        if self._caller is None or self._caller[0] != threading.get_ident():
            return
        if self._inner:
            self._inner -= 1
        else:
            self._leave()

    def _leave(self) -> None:
        """Restore the weights after a call."""
        self.entered, self._caller = False, None
        self._masks.close()

    def __reduce__(self) -> Any:
        raise PlasticityError(
            "a model with gates cannot be pickled; use plastic.export() for a plain copy, npn.save(path, plastic) for "
            "a checkpoint, or model.state_dict() for its weights without the gates"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "MaskedCall":
        new = object.__new__(type(self))
        memo[id(self)] = new
        vars(new).update(vars(self))
        new._wrappers = weakref.WeakKeyDictionary()
        new._masks, new._caller, new._held, new._lock = contextlib.ExitStack(), None, False, threading.Lock()
        new.entered, new._inner, new.copied = False, 0, True
        new.gates, new.weights = copy.deepcopy(self.gates, memo), copy.deepcopy(self.weights, memo)
        return new


def attached_parts(model: nn.Module) -> dict[str, MaskedCall]:
    """Find the modules inside a model that have gates already.

    Args:
        model: any module.

    Returns:
        Path -> hooks of the module's call; the model itself has the path "".

    Raises:
        ConfigurationError: it is no module.
    """
    instance("model", model, nn.Module, "a torch.nn.Module")
    return {
        name: owner
        for name, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(owner := getattr(hook, "__self__", None), MaskedCall)
    }


def has_closed_units(model: nn.Module) -> bool:
    """Whether units of a module, or of one inside of it, are closed, which its weights do not tell.

    Args:
        model: any module.
    """
    return any(call.mask() is not None for call in attached_parts(model).values())


def detached_leftovers(model: nn.Module) -> dict[int, Tensor]:
    """Copy the non-leaf tensors that forward passes have left in modules, since `copy.deepcopy` refuses them.

    Args:
        model: any module.

    Returns:
        `id` of each tensor -> detached copy, for the memo of `copy.deepcopy`.
    """
    left = tree_leaves([list(vars(module).values()) for module in model.modules()])
    return {id(value): value.detach().clone() for value in left if isinstance(value, Tensor) and not value.is_leaf}


def _stack() -> Iterator[FrameType]:
    """The frames of this thread, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _passing(frame: FrameType) -> bool:
    """Whether a frame belongs to these hooks or to the compiler, and so ends before the model's call does."""
    file = frame.f_code.co_filename
    return file in (__file__, not_compiled.__code__.co_filename) or "_dynamo" in file
