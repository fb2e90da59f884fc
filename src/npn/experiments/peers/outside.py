"""Torch-Pruning beside the others: its own group-norm pruner, sparse training and surgery (DepGraph)."""

import importlib.util
from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn

import npn
from npn.errors import ConfigurationError
from npn.experiments.engine.procedure import Procedure
from npn.experiments.peers.procedures import SHRINK

PACKAGE = "torch_pruning"
STEPS = 1000  # in which the pruner goes from all channels to none; it is stopped where the budget is met


def pruner(model: nn.Module, example: Tensor, last: str, strength: float) -> Any:
    """Make Torch-Pruning's pruner by group norms over all layers but the last, global, with its own normalisation.

    Args:
        model: not attached.
        example: inputs.
        last: path of the layer that keeps its outputs.
        strength: coefficient of the regulariser.

    References:
        Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023.
    """
    import torch_pruning

    return torch_pruning.pruner.GroupNormPruner(
        model,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        reg=strength,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=[model.get_submodule(last)],
    )


def problem(model: nn.Module, example: Tensor, last: str) -> str | None:
    """Why Torch-Pruning cannot prune a model; None if its first step passes.

    Args:
        model: changed in place.
        example, last: see `pruner`.
    """
    try:
        pruner(model, example, last, 0.0).step()
        model.eval()(example)
    except Exception as error:
        return f"fails on this network ({type(error).__name__}: {error})"
    return None


def pruned(model: nn.Module, example: Tensor, last: str, weights: float) -> nn.Module:
    """Prune a model with Torch-Pruning until its weights fit into a budget.

    Args:
        model: changed in place.
        example: inputs.
        last: path of the layer that keeps its outputs.
        weights: the most weights, without biases.

    Raises:
        ConfigurationError: the pruner stops before that.
    """
    model.eval()
    steps = pruner(model, example, last, 0.0)
    for _ in range(STEPS):
        left = npn.count_params(model, biases=False)
        if left <= weights:
            return model.train()
        steps.step()
    raise ConfigurationError(
        f"Torch-Pruning leaves {left:,} weights, expected at most {weights:,.0f}; raise the budget"
    )


@final
class GroupSparsity(Procedure):
    """Torch-Pruning's sparse training: its regulariser is added to the gradients while shrinking.

    Args:
        regularize: changes the gradients of a model.
    """

    def __init__(self, regularize: Callable[[nn.Module], object]) -> None:
        self.regularize = regularize

    def backward(
        self, plastic: npn.Plasticity, stage: npn.Stage, closure: Callable[[], Tensor], scale: float | Any
    ) -> Tensor:
        """Add the regulariser to the gradients."""
        loss = plastic.backward(closure, scale=scale)
        if stage.name == SHRINK:
            self.regularize(plastic.model)
        return loss


def installed() -> bool:
    """Whether Torch-Pruning can be imported."""
    return importlib.util.find_spec(PACKAGE) is not None
