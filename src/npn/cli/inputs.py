"""The `--input` options of a command: what they say, and whether the model can be called with them."""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from npn._utils.inputs import model_dtype, split_inputs
from npn._utils.models import evaluating
from npn.cli.user_code import make_model
from npn.errors import ConfigurationError
from npn.tracing.capture.lines import raising_line

HELP = (
    'Shape of an input, "2,3,32,32"; of integers: "2,16:long"; by name: "ids:2,16:long", inside of a dict: '
    '"batch.ids:2,16:long". Once per argument.'
)


def make_both(factory: str, texts: Sequence[str]) -> tuple[nn.Module, Any]:
    """Make a model and example inputs of zeros in its dtype, with which it can be called.

    Args:
        factory: see `make_model`.
        texts: see `make_inputs`.

    Raises:
        ConfigurationError: see `make_model`, `make_inputs` and `check_call`.
    """
    make_inputs(texts)  # so that a mistake in them is told before the model is made
    model = make_model(factory)
    inputs = make_inputs(texts, model_dtype(model))
    check_call(model, inputs, texts)
    return model, inputs


def make_inputs(texts: Sequence[str], dtype: torch.dtype = torch.float) -> Any:
    """Make example inputs of zeros.

    Args:
        texts: one for each input: `2,3,32,32`, `2,16:long`, `ids:2,16:long` or `ids:long:2,16`; a dot in the name leads
            into a dict, as in `batch.ids:2,16`.
        dtype: of inputs whose text has none.

    Returns:
        A tuple, or a dict if the inputs have names.

    Raises:
        ConfigurationError: a text is something else, or only some inputs have names.

    Example:
        >>> [x.shape for x in make_inputs(["2,3", "2,4:long"])]
        [torch.Size([2, 3]), torch.Size([2, 4])]
        >>> make_inputs(["batch.ids:1,2:long"])
        {'batch': {'ids': tensor([[0, 0]])}}
    """
    parsed = [_parsed(text, dtype) for text in texts]
    names = [name for name, _ in parsed]
    if not any(names):
        return tuple(value for _, value in parsed)
    inside_others = any(str(a).startswith(f"{b}.") for a in names for b in names)
    if not all(names) or len(set(names)) < len(names) or inside_others:
        raise ConfigurationError(
            f"give each --input a name of its own, or none of them a name, got {', '.join(map(repr, texts))}"
        )
    made: dict[str, Any] = {}
    for name, value in parsed:
        *heads, last = str(name).split(".")
        inside = made
        for head in heads:
            inside = inside.setdefault(head, {})
        inside[last] = value
    return made


def _parsed(text: str, kind: torch.dtype) -> tuple[str | None, Tensor]:
    """Name and zeros of one input, of this kind if the text names none."""
    name, sizes = None, None
    for i, part in enumerate(text.split(":")):
        named = getattr(torch, part, None)
        if sizes is None and part.replace(",", "").isdigit() and all(int(size or 0) for size in part.split(",")):
            sizes = [int(size) for size in part.split(",")]
        elif isinstance(named, torch.dtype):
            kind = named
        elif i == 0 and all(piece.isidentifier() for piece in part.split(".")):
            name = part
        else:
            sizes = None
            break
    if sizes is None:
        raise ConfigurationError(
            f'expected an input like "2,3,32,32" or "2,16:long", or with a name "ids:2,16:long", got {text!r}'
        )
    return name, torch.zeros(sizes, dtype=kind)


def check_call(model: nn.Module, inputs: Any, texts: Sequence[str]) -> None:
    """Call a model once, in eval mode, and raise if it cannot be called with its inputs.

    Args:
        model: the model.
        inputs: from `make_inputs`.
        texts: what the inputs were made from.

    Raises:
        ConfigurationError: naming the layer that fails, what it got, and what to give instead.
    """
    args, kwargs = split_inputs(inputs)
    path: list[tuple[str, nn.Module, str]] = [("", model, "")]
    try:
        with evaluating(model), torch.no_grad(), _noting(model, path):
            model(*args, **kwargs)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        given = " ".join(f"--input {text}" for text in texts)
        why = _advice(model, error, reason, *path[-1])
        raise ConfigurationError(f"the model cannot be called with {given}: {why}") from error


def _advice(model: nn.Module, error: Exception, reason: str, name: str, layer: nn.Module, got: str) -> str:
    """What went wrong, where, and what to give instead."""
    takes = ", ".join(
        ("*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else "")
        + name
        + ("" if p.default is p.empty else f"={p.default}")
        for name, p in inspect.signature(model.forward).parameters.items()
    )
    if layer is model and isinstance(error, TypeError) and "argument" in reason and "forward()" in reason:
        each = f"give one --input for each argument of forward({takes})"
        return f"{reason}; {each}, in this order or by name, as --input name:2,16"
    leaf = name and not list(layer.children())
    where = f"{name} is {layer} and got {got}" if leaf else f"it fails at {raising_line(error)}"
    if any(words in reason for words in ("dtype", "scalar type", "Input type")):
        instead = 'give what is looked up in a table as integers, "2,16:long", and everything else without a type'
    else:
        instead = f"give the shapes that forward({takes}) takes, with the batch first"
    return f"{where}: {reason}; {instead}"


@contextlib.contextmanager
def _noting(model: nn.Module, path: list[tuple[str, nn.Module, str]]) -> Iterator[None]:
    """Inside, the modules whose forward pass has begun and not ended are in `path`, with what they got."""

    def enter(name: str) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            shapes = [str(tuple(x.shape)) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            path.append((name, module, ", ".join(shapes)))

        return note

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        path.pop()

    handles: list[Any] = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
