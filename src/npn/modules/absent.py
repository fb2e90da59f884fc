"""The scalar zero that stands in the place of a removed branch."""

from torch import fx, nn


def absent() -> fx.GraphModule:
    """What is left of a removed branch: a module that returns a scalar zero, whatever it is called with.

    `shortcut(x) + 0` broadcasts, so the code around it stays as it is. There is nothing of npn in it, so an exported
    model can be copied, pickled and exported where npn is not installed.

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
    """Whether a module is what `absent` returned, or a copy of it."""
    return isinstance(module, fx.GraphModule) and [str(n.target) for n in module.graph.nodes] == _NODES


_NODES = ["input", "*rest", "**options", "new_zeros", "output"]


def absent_paths(model: nn.Module) -> list[str]:
    """Paths of the branches that have gone."""
    return [path for path, module in model.named_modules() if is_absent(module)]
