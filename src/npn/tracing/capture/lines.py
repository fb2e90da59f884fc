"""The op of a node of a graph, and the line of the user's code that made it or in which an error was raised."""

import dis
import inspect
import os
import traceback
from pathlib import Path

import torch
from torch.fx import Node

TORCH = str(Path(torch.__file__).parent)
OWN = str(Path(__file__).parents[1])  # all of tracing
_UNKNOWN = "unknown line"
_RAISE = dis.opmap["RAISE_VARARGS"]
_PACKED = str(Path(__file__).with_name("packed.py"))
_NO_LAYERS = (os.path.join(TORCH, "_"), os.path.join(TORCH, "__init__.py"))


def op_name(node: Node) -> str:
    """The name of a node's op without its overload, as "add" of `aten::add.Tensor`.

    Args:
        node: a node of a traced graph.
    """
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[1] if schema is not None else getattr(node.target, "__name__", str(node.target))


def source_line(node: Node) -> str:
    """`file:line` of the user's code that made this node.

    Args:
        node: of a graph whose lines were recorded.
    """
    line: str = node.meta.get("line", _UNKNOWN)
    return line


def calling_line() -> tuple[str, bool]:
    """The innermost call of a `forward` outside of PyTorch; where there is none, of one of its layers.

    And whether a stand-in for one of PyTorch's operators makes the node.
    """
    layer, own, frame = _UNKNOWN, False, inspect.currentframe()
    while frame is not None:  # traceback.walk_stack looks up the line of every frame
        file = frame.f_code.co_filename
        own = own or file == _PACKED
        if frame.f_code.co_name == "forward":
            if TORCH not in file and "<eval_with_key>" not in file:
                return f"{os.path.basename(file)}:{frame.f_lineno}", own
            if layer == _UNKNOWN and not file.startswith(_NO_LAYERS):
                layer = f"{os.path.basename(file)}:{frame.f_lineno}"
        frame = frame.f_back
    return layer, own


def asking_line() -> str:
    """The innermost line of code that is neither PyTorch's nor a trace's: of a helper, not of its caller."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith((TORCH, OWN)):
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def is_users_own(error: BaseException) -> bool:
    """Whether an assertion or a `raise` outside of PyTorch has raised an error, and not an op that failed.

    Args:
        error: with its traceback.
    """
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None or frame.tb_frame.f_code.co_filename.startswith(TORCH):
        return False
    return frame.tb_frame.f_code.co_code[frame.tb_lasti] == _RAISE


def raising_line(error: BaseException) -> str:
    """`file:line` of the user's code in which an error was raised.

    Args:
        error: with its traceback.
    """
    frames = traceback.extract_tb(error.__traceback__)
    rest = [f for f in frames if not f.filename.startswith(OWN)]
    own = [f for f in rest if TORCH not in f.filename]
    layers = [f for f in rest if f.filename.startswith(os.path.join(TORCH, "nn"))]
    if own or not layers:
        own = own or list(frames)
        return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else _UNKNOWN
    public = [f for f in layers if not f.name.startswith("_")] or layers
    return f"{Path(public[-1].filename).name}:{public[-1].lineno} ({public[-1].name})"
