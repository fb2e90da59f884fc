"""What a network costs at a mask, and what each unit adds to that."""

from collections.abc import Callable

import torch
from torch import Tensor

from npn.gates.costing import CostModel
from npn.plasticity import Plasticity


def cost_function(plastic: Plasticity, kind: str) -> Callable[[Tensor], Tensor]:
    """The cost of the present structure as a function of the mask over all gates, float64 on the CPU, differentiable.

    It is linear in each single gate: its derivative at a mask is exactly what closing or opening that gate changes.

    Args:
        plastic: the handle of the model.
        kind: "params" or "macs".
    """
    with torch.inference_mode(False):
        costs = CostModel(plastic.model, plastic.structure, torch.device("cpu"))
    return lambda mask: costs.expected(kind, mask)


def value_and_slope(cost: Callable[[Tensor], Tensor], mask: Tensor) -> tuple[float, Tensor]:
    """Cost at a mask, and its derivative in each gate, float64 (gates,) on the CPU."""
    with torch.inference_mode(False), torch.enable_grad():
        gates = mask.detach().to("cpu", torch.float64, copy=True).requires_grad_()
        value = cost(gates)
        (slope,) = torch.autograd.grad(value, gates)
    return value.item(), slope


def marginal_cost(plastic: Plasticity, kind: str, mask: Tensor) -> Tensor:
    """What each unit adds to the cost at a mask, float64 (gates,) on the CPU, the other units as in the mask."""
    return value_and_slope(cost_function(plastic, kind), mask)[1]
