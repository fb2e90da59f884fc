"""The line of the user's code that made a node of a graph, or in which an error was raised."""

import itertools
import os
import traceback
from pathlib import Path
from typing import Any

import torch
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from npn.tracing.deadline import Deadline

TORCH = str(Path(torch.__file__).parent)
OWN = str(Path(__file__).parent)
_UNKNOWN = "unknown line"
_STAND_INS = str(Path(__file__).with_name("packed.py"))
_TRACER = (os.path.join(TORCH, "fx"), os.path.join(TORCH, "_"), os.path.join(TORCH, "__init__.py"))  # no layers


def record_lines(deadline: Deadline) -> None:
    """Give each node that the running trace of this thread makes from here on the line of code that asks for it.

    PyTorch's own record describes the whole stack of calls for each node, which takes a quarter of a trace.

    Args:
        deadline: checked at each node.
    """
    mode: Any = get_proxy_mode()
    make, count = mode.tracer.create_node, itertools.count(1)

    def create_node(*args: Any, **kwargs: Any) -> Node:
        node: Node = make(*args, **kwargs)
        line, node.meta["own"] = _calling_line()
        node.meta["line"] = line
        deadline.check(f"{next(count):,} operations recorded", node.name, line)
        return node

    mode.tracer.create_node = create_node  # of this one tracer, which ends with the trace


def source_line(node: Node) -> str:
    """`file:line` of the user's code that made this node.

    Args:
        node: of a graph whose lines were recorded.
    """
    line: str = node.meta.get("line", _UNKNOWN)
    return line


def _calling_line() -> tuple[str, bool]:
    """The innermost call of a `forward` outside of PyTorch; where there is none, of one of its layers.

    And whether a stand-in for one of PyTorch's operators makes the node.
    """
    layer, own = _UNKNOWN, False
    for frame, line in traceback.walk_stack(None):
        file = frame.f_code.co_filename
        own = own or file == _STAND_INS
        if frame.f_code.co_name != "forward":
            continue
        if TORCH not in file and "<eval_with_key>" not in file:
            return f"{os.path.basename(file)}:{line}", own
        if layer == _UNKNOWN and not file.startswith(_TRACER):
            layer = f"{os.path.basename(file)}:{line}"
    return layer, own


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
