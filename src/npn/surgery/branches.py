"""Remove branches from a model, and their parameters from its optimizers."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from npn.errors import OptimizerError
from npn.surgery.edits import Edit, forget_parameters, replace_by_absent


def removal_edits(model: nn.Module, paths: Sequence[str], optimizers: Sequence[Optimizer]) -> list[Edit]:
    """Replace submodules by `absent`, and remove their parameters from the optimizers.

    Args:
        model: the model.
        paths: paths of the submodules.
        optimizers: optimizers that may hold their parameters.

    Returns:
        Edits for `npn.surgery.carry_out`.

    Raises:
        OptimizerError: an optimizer keeps state that does not belong to single parameters.
    """
    gone = [p for path in paths for p in model.get_submodule(path).parameters()]
    return [replace_by_absent(model, path) for path in paths] + forget_edits(optimizers, gone)


def forget_edits(optimizers: Sequence[Optimizer], gone: Collection[Tensor]) -> list[Edit]:
    """Remove parameters from the optimizers' groups and state; a group may become empty.

    Args:
        optimizers: optimizers that may hold the parameters.
        gone: the parameters.

    Returns:
        Edits for `npn.surgery.carry_out`.

    Raises:
        OptimizerError: see `removal_edits`.
    """
    ids = {id(p) for p in gone}
    edits: list[Edit] = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if not any(id(p) in ids for p in group["params"]):
                continue
            if isinstance(optimizer, torch.optim.LBFGS) and optimizer.state:
                raise OptimizerError(
                    "LBFGS keeps one flat history of all its parameters, from which a branch cannot be taken; use an "
                    "optimizer with elementwise state, or clear its state before resizing"
                )
            edits.append(forget_parameters(optimizer, group["params"], ids))
    return edits
