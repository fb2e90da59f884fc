"""The module that replaces a removed branch; it returns a scalar zero."""

from torch import fx, nn


def absent() -> fx.GraphModule:
    """Make the module that replaces a removed branch; it returns a scalar zero whatever its arguments.

    `shortcut(x) + 0` broadcasts, so the surrounding code stays as it is. The module does not depend on npn, so an
    exported model can be copied, pickled and exported where npn is not installed.

    Returns:
        A `torch.fx.GraphModule` without parameters.

    Example:
        >>> import torch
        >>> absent()(torch.ones(2, 3))
        tensor(0.)
    """
    graph = fx.Graph()
    first = graph.placeholder("input")
    graph.placeholder("*rest")
    graph.placeholder("**options")
    graph.output(graph.call_method("new_zeros", (first, ())))
    return fx.GraphModule(nn.Module(), graph, "Absent")


def is_absent(module: nn.Module) -> bool:
    """Whether `absent` made a module, or the module is a copy of one.

    Args:
        module: any module.
    """
    return isinstance(module, fx.GraphModule) and [str(n.target) for n in module.graph.nodes] == _NODES


_NODES = ["input", "*rest", "**options", "new_zeros", "output"]


def absent_paths(model: nn.Module) -> list[str]:
    """Paths of the branches that have been removed.

    Args:
        model: any module.
    """
    return [path for path, module in model.named_modules() if is_absent(module)]
