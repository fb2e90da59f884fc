"""Refit the weights that read closed units, so that layers compute on data what they computed before."""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from npn._importance.gradients import EMPTY, BatchLoss
from npn._utils import cpu
from npn._utils.collectives import mean
from npn._utils.rng import RandomState, devices_of
from npn.errors import ConfigurationError, NonFiniteLossError
from npn.plasticity import Plasticity
from npn.structure import Group
from npn.tracing.capture.environment import preserved

CHANNELS: dict[type[nn.Module], tuple[int, int]] = {  # axis of the input's channels, axis of the weight that reads them
    nn.Linear: (-1, 1),
    nn.Conv1d: (-2, 1),
    nn.Conv2d: (-3, 1),
    nn.Conv3d: (-4, 1),
    nn.ConvTranspose1d: (-2, 0),
    nn.ConvTranspose2d: (-3, 0),
    nn.ConvTranspose3d: (-4, 0),
}
RIDGE = 1e-3  # of the mean square of the open inputs


def refit_readers(plastic: Plasticity, stay: Tensor, batches: Iterable[Any], loss: BatchLoss) -> None:
    """Let what is about to close be computed from what stays, as far as a linear map does: least squares on data.

    With x_S the inputs of a layer that stay and x_R those that close, in positions and examples alike,

        M, c = argmin E ||x_R - M x_S - c||^2 + ridge ||M||^2,    W_S <- W_S + W_R M,    b <- b + W_R c,

    c = 0 for layers without a bias and transposed convolutions. Layers are linear or convolutions without groups, each
    with a weight of its own; others stay as they are, and so do readers of units that a norm is taken of. Padding is
    zero where c is not, so that borders are approximate.

    Args:
        plastic: the handle of the model, with all units open; its weights change, buffers and random states do not.
        stay: bool (gates,).
        batches, loss: see `npn.importance`; the loss is called without gradients.

    Raises:
        ConfigurationError: `batches` is empty.
        NonFiniteLossError: the inputs of a layer are NaN or infinite; nothing has changed.
    """
    layers = readers(plastic, stay)
    for path, moment in second_moments(plastic.model, list(layers), batches, loss).items():
        refit_layer(plastic.model.get_submodule(path), layers[path], moment)


def readers(plastic: Plasticity, stay: Tensor) -> dict[str, Tensor]:
    """Find the layers that can be refitted and read a unit that closes.

    Args:
        plastic: the handle of the model.
        stay: bool (gates,).

    Returns:
        Path of the layer -> which of its inputs stay, bool (inputs,).
    """
    modules = dict(plastic.model.named_modules())
    owners = Counter(id(p) for module in modules.values() for p in module.parameters(recurse=False))
    found: dict[str, Tensor] = {}
    for group, units in zip(plastic.groups, stay.cpu().split([group.size for group in plastic.groups]), strict=True):
        normed = isinstance(group.traced, Group) and group.traced.normed
        for slot in group.slots if not (normed or bool(units.all())) else ():
            path, _, name = slot.tensor.rpartition(".")
            layer: Any = modules[path]
            if not slot.reads or not slot.plain or name != "weight" or not _alone(layer, slot.axis, owners):
                continue
            open_ = found.setdefault(path, cpu.ones(layer.weight.shape[slot.axis], dtype=torch.bool))
            open_[slot.index[~units]] = False
    return found


def _alone(layer: Any, axis: int, owners: Mapping[int, int]) -> bool:
    """Whether the layer reads channels along this axis of a weight, all of them, and shares neither weight nor bias."""
    if CHANNELS.get(type(layer), (0, -1))[1] != axis or getattr(layer, "groups", 1) != 1:
        return False
    return all(owners[id(p)] == 1 for p in (layer.weight, layer.bias) if p is not None)


def second_moments(model: nn.Module, paths: list[str], batches: Iterable[Any], loss: BatchLoss) -> dict[str, Tensor]:
    """Mean of x̂ x̂ᵀ over positions and examples, x̂ the inputs of a layer and a one: float32 (inputs + 1, inputs + 1).

    Args:
        model: to run.
        paths: of the layers; those that no call reaches are left out of the result.
        batches, loss: see `npn.importance`.

    Raises:
        ConfigurationError: `batches` is empty.
        NonFiniteLossError: the inputs of a layer are NaN or infinite.
    """
    sums: dict[str, Tensor] = {}

    def add(path: str, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        x = x.detach().movedim(CHANNELS[type(layer)][0], -1)
        x = x.reshape(-1, x.shape[-1]).float()  # a linear layer takes a vector as well
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        sums[path] = sums[path] + x.mT @ x if path in sums else x.mT @ x

    hooks = [
        model.get_submodule(path).register_forward_pre_hook(partial(add, path), with_kwargs=True) for path in paths
    ]
    before, number = RandomState.now(devices_of(model)), 0  # batches so far
    try:
        with preserved(model), before.repeated(model), torch.no_grad():
            for batch in batches:
                loss(model, batch)
                number += 1
    finally:
        for hook in hooks:
            hook.remove()
    if not number:
        raise ConfigurationError(EMPTY)
    for path, total in sums.items():
        if not bool(torch.isfinite(total).all()):
            raise NonFiniteLossError(f"the inputs of {path} are not finite on the batches; check them")
    return {path: mean(total / total[-1, -1]) for path, total in sums.items()}


def refit_layer(layer: Any, stay: Tensor, moment: Tensor) -> None:
    """Give the layer the weights and the bias with which the inputs that stay stand in for the others.

    Args:
        layer: with a weight, and a bias or None.
        stay: bool (inputs,).
        moment: see `second_moments`.
    """
    axis, moment, count = CHANNELS[type(layer)][1], moment.cpu().double(), len(stay)
    constant = layer.bias is not None and axis == 1
    known, gone = torch.cat([stay, cpu.tensor([constant])]).nonzero()[:, 0], (~stay).nonzero()[:, 0]
    ridge = (RIDGE * moment.diagonal()[:count][stay].mean()).clamp(min=torch.finfo(torch.float32).tiny)
    square = moment[known[:, None], known] + (known < count).double().diag() * ridge
    solved = torch.linalg.solve(square, moment[known[:, None], gone])  # (inputs that stay and 1, inputs that close)
    with torch.no_grad():
        weight = layer.weight.movedim(axis, -1)
        more = (weight[..., gone.to(weight.device)].cpu().double() @ solved.mT).to(weight)
        weight[..., stay.to(weight.device)] += more[..., : int(stay.sum())]
        if constant:
            layer.bias += more[..., -1].reshape(len(layer.bias), -1).sum(1)
