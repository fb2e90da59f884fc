"""Find calls of norms and of reductions while a model runs, and say which call of which module each one is."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._compile import _disable_dynamo as not_compiled  # torch.compiler.disable would import the compiler now
from torch.fx import Node
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

# functions whose result depends on the open units alone if closed ones are left out of a sum
NAMES = frozenset((
    "layer_norm", "rms_norm", "group_norm", "normalize", "mean", "sum", "var", "std", "norm", "linalg_vector_norm",
))  # fmt: skip
_MARK = "npn_call"


class NormCall(NamedTuple):
    """One call of a norm or a reduction in the forward pass of a module.

    Attributes:
        path: of the module in whose `forward` it is, not in that of a module inside.
        number: of calls of this kind before it in there.
        name: of the function.
        again: whether a checkpoint that began in the same `forward` will compute it again, outside of any module.
    """

    path: str
    number: int
    name: str
    again: bool = False


Answer = Callable[[NormCall, Callable[..., Any], tuple[Any, ...], Mapping[str, Any]], Any]
Left = Callable[[str, frozenset[int]], None]


class NormCalls(TorchFunctionMode):
    """Inside the context, each such call in a model's modules goes to `answer`.

    Args:
        paths: modules of the model -> their paths.
        answer: (call, function, args, kwargs) -> the result.
        left: (path of a module, numbers of its calls), when its forward pass is over.
    """

    def __init__(self, paths: Mapping[nn.Module, str], answer: Answer, left: Left | None = None) -> None:
        super().__init__()
        self.paths, self.answer, self.left = paths, answer, left
        self._threads = threading.local()
        self._handles: list[Any] = []

    @property
    def _frames(self) -> list["_Frame"]:
        """Modules whose forward pass is under way in this thread."""
        if not hasattr(self._threads, "frames"):
            self._threads.frames = []
        frames: list[_Frame] = self._threads.frames
        return frames

    def __enter__(self) -> "NormCalls":
        self._handles = [
            register_module_forward_pre_hook(self.begin),
            register_module_forward_hook(self._end, always_call=True),
        ]
        return self

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        if self._frames:  # torch runs no hooks after Ctrl-C
            self._frames.clear()
            super().__exit__(*error)  # type: ignore[no-untyped-call]

    @not_compiled
    def begin(self, module: nn.Module, args: Any = None) -> None:
        """The forward pass of a module begins; a hook, to be called for one that has begun before the context.

        The mode is on inside of forward passes alone, so that it is on where a checkpoint computes one again, too.
        """
        if not self._frames:
            super().__enter__()  # type: ignore[no-untyped-call]
        self._frames.append(_Frame(self.paths.get(module), _saving()))

    @not_compiled
    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._frames:
            return
        frame = self._frames.pop()
        if not self._frames:
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if frame.path is not None and self.left is not None and output is not None:
            self.left(frame.path, frozenset(range(frame.calls)))

    @not_compiled
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, frame = getattr(func, "__name__", ""), self._frames[-1] if self._frames else None
        if name not in NAMES or frame is None or frame.path is None:
            return func(*args, **(kwargs or {}))
        frame.calls += 1
        call = NormCall(frame.path, frame.calls - 1, name, again=_saving() != frame.saving)
        return self.answer(call, func, args, kwargs or {})


@dataclass
class _Frame:
    """One module's forward pass: its path, how autograd saves tensors where it begins, and the calls so far."""

    path: str | None
    saving: tuple[Any, ...]
    calls: int = 0


def _saving() -> tuple[Any, ...]:
    """How autograd saves tensors now: a checkpoint changes one of the two."""
    return torch.is_grad_enabled(), torch._C._autograd._top_saved_tensors_default_hooks(False)


def marking(model: nn.Module, made: Sequence[Node]) -> NormCalls:
    """A context in which the nodes of a graph that is being traced learn which call they belong to; see `call_of`.

    Args:
        model: the model.
        made: the nodes of the graph, which get more.
    """

    def answer(call: NormCall, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        before = len(made)
        result = function(*args, **kwargs)
        for node in made[before:] if not call.again else ():
            node.meta[_MARK] = call
        return result

    return NormCalls(paths_of(model), answer)


def call_of(node: Node) -> NormCall | None:
    """The call that a node belongs to, or None."""
    found: NormCall | None = node.meta.get(_MARK)
    return found


def paths_of(model: nn.Module) -> dict[nn.Module, str]:
    """Path of every module; the first of several."""
    return {module: path for path, module in model.named_modules()}
