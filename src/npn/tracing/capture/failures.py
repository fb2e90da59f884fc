"""Explain why a forward pass cannot be traced: the user's line, what PyTorch does there, and the way out."""

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from npn.errors import PlasticityError, TraceError
from npn.structure import Frozen
from npn.tracing.capture.known_values import needs_values
from npn.tracing.capture.lines import OWN, TORCH, raising_line

_PART = "or trace only the part of the model that lies before or after it: npn.attach(model.backbone, ...)"
_NO_CODE = ("module.py", "_contextlib.py", "eval_frame.py")  # torch's frames between a call and the code it calls
_USUAL = ("it is the model's output", "it reads an input of fixed size")  # true of every model
_HINTS = {  # what a TypeError of the call says -> what to do
    "unexpected keyword argument": (
        "example_inputs that are a dict are keyword arguments: give (batch,) where forward takes one dict"
    ),
    "positional argument": (
        "example_inputs that are a tuple or list are the positional arguments of forward: of a batch (x, y) with its "
        "targets give x"
    ),
}
_OPS = {  # ATen op -> (what user code calls, what to do instead)
    "nonzero": ("nonzero(), x[mask] or torch.where(mask)", "multiply by the mask, use torch.where(mask, a, b)"),
    "masked_select": ("masked_select", "multiply by the mask, use torch.where(mask, a, b)"),
    "_unique2": ("unique", "compute it outside of the model, pass it as an input"),
    "repeat_interleave": ("repeat_interleave with a tensor of counts", "compute it outside of the model"),
}


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn exceptions of the forward pass inside the context into a `TraceError`; those of npn are left as they are.

    Raises:
        TraceError: it tells what happens, at which line, and what to do.
    """
    try:
        yield
    except PlasticityError:
        raise
    except Exception as error:
        raise TraceError(_explain(error)) from error


def _explain(error: Exception) -> str:
    """What happens, at which line, and what to do."""
    name, line = type(error).__name__, raising_line(error)
    if "DynamicOutputShape" in name:
        op = str(error).removeprefix("aten.").split(".")[0]
        what, instead = _OPS.get(op, (op, "compute it outside of the model"))
        inside = _torchs_own(error)
        if inside is not None and op == "nonzero":
            what = f"PyTorch's own {inside} looks for the places of some values"
            instead = "call log_prob(x) instead" if "adaptive.py" in inside else "compute it outside of the model"
        return (
            f"the shape of a tensor depends on values at {line}, which a traced graph cannot follow: {what}; expected "
            f"shapes that are the same for every input: {instead}, {_PART}"
        )
    if "tensors used as indices" in str(error):
        return (
            f"an index at {line} is of a dtype that fake tensors do not index by: {error}; write x[mask.bool()] where "
            "it is a mask of uint8, x[index.long()] where it is an index"
        )
    if "mutating a non-functional tensor" in str(error):
        return (
            f"the forward pass writes at {line} into a tensor that is neither parameter nor buffer of the model, which "
            "a trace cannot follow; register it with register_buffer (persistent=False keeps it out of the state_dict)"
        )
    if not needs_values(error):
        hints = [f"; {hint}" for said, hint in _HINTS.items() if isinstance(error, TypeError) and said in str(error)]
        return f"the forward pass failed on example_inputs at {line}: {name}: {error}{''.join(hints)}"
    inside = _torchs_own(error)
    if inside is not None:
        return (
            f"PyTorch's own {inside}, called at {line}, decides by the value of a tensor, which a traced graph cannot "
            f"follow; pass it the argument that spares the decision if there is one, {_PART}"
        )
    return (
        f"the forward pass decides by the value of a tensor at {line}, which a traced graph cannot follow; "
        "expected a computation that is the same for every input: use torch.where instead of if, tensors instead of "
        ".item() and float(), move logs and checks out of forward, "
        "or attach the parts of the model before and after this line separately, as npn.attach(model.backbone, ...)"
    )


def nothing_left(frozen: Sequence[Frozen]) -> str:
    """Tell why no dimension of a model can be resized: up to five reasons, inputs and outputs of the model last.

    Args:
        frozen: all dimensions.

    Example:
        >>> nothing_left([Frozen("a[0]", "it is the model's output"), Frozen("b[0]", "mixed"), Frozen("b[1]", "mixed")])
        "b[0], b[1]: mixed; a[0]: it is the model's output"
    """
    names: dict[str, dict[str, None]] = {}  # of units of one axis there may be several entries
    for entry in frozen:
        names.setdefault(entry.reason, {})[entry.name] = None
    ordered = sorted(names, key=lambda reason: reason.startswith(_USUAL))
    told = [f"{_listed(list(names[reason]))}: {reason}" for reason in ordered[:5]]
    return "; ".join(told) or "it has no layers"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _torchs_own(error: Exception) -> str | None:
    """`function (file:line)` of PyTorch's Python code that the user's line has called and that has failed, or None."""
    found = None
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(OWN):
            continue
        if not path.is_relative_to(TORCH):
            found = None
        elif path.relative_to(TORCH).parts[0] in ("nn", "distributions") and path.name not in _NO_CODE:
            found = f"{frame.name} ({path.name}:{frame.lineno})"
    return found
