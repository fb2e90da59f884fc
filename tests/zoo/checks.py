"""What must hold for every model: masked == compacted == exported, growth changes nothing, training goes on alike."""

import copy
import functools
import math
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import npn
from npn._utils.inputs import output_tensors, split_inputs


def call(model: nn.Module, inputs: Any) -> list[Tensor]:
    """All tensors that the model returns."""
    args, kwargs = split_inputs(inputs)
    return output_tensors(model(*args, **kwargs))


def elsewhere(model: nn.Module, x: Tensor) -> list[Callable[[Tensor], Tensor]]:
    """The model copied, pickled, traced to TorchScript and exported."""
    return [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.jit.trace(model, x),
        torch.export.export(model, (x,)).module(),
    ]


def warm_up(model: nn.Module, inputs: Any, steps: int = 3) -> None:
    """Running statistics that are neither 0 nor 1."""
    model.train()
    with torch.no_grad():
        for _ in range(steps):
            call(model, inputs)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_var is not None:
                module.running_mean.add_(torch.randn_like(module.running_mean))
                module.running_var.mul_(0.5 + torch.rand_like(module.running_var))


def close_half(plastic: npn.Plasticity) -> None:
    """Close every second unit of each group, never the same end."""
    for i, group in enumerate(plastic.groups):
        plastic.close(group, range(i % 2, group.size, 2))


def widened(tensor: Tensor) -> Tensor:
    """In double precision, real or complex."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.double))


def assert_close(a: list[Tensor], b: list[Tensor], tolerance: float, what: str) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape, f"{what}: {tuple(x.shape)} and {tuple(y.shape)}"
        x, y = x.detach(), y.detach()
        scale = max(1.0, float(x.abs().max())) if x.numel() else 1.0
        error = float((x - y).abs().max()) if x.numel() else 0.0
        assert error <= tolerance * scale, f"{what}: off by {error:.2e} at scale {scale:.2e}"


def check_shrink(plastic: npn.Plasticity, inputs: Any, tolerance: float = 1e-5, alive: bool = True) -> None:
    """Close half: the exported and the compacted network equal the masked one. Leaves the network compact.

    Args:
        alive: closing these units is expected to change the output.
    """
    model = plastic.model.eval()
    before = call(model, inputs)
    close_half(plastic)
    masked = call(model, inputs)
    assert not alive or any(not torch.allclose(x, y, atol=1e-7) for x, y in zip(before, masked, strict=True)), (
        "closing did nothing"
    )
    small = plastic.export()
    assert_close(masked, call(small, inputs), tolerance, "exported")
    closed = {g.name: len(range(i % 2, g.size, 2)) // g.multiple * g.multiple for i, g in enumerate(plastic.groups)}
    expected = {g.name: g.size - closed[g.name] for g in plastic.groups}  # of an incomplete set the units stay, closed
    report = plastic.compact()
    assert {g.name: g.size for g in plastic.groups} == expected
    assert report.params[1] < report.params[0]
    assert_close(masked, call(model, inputs), tolerance, "compacted")


def check_grow(plastic: npn.Plasticity, inputs: Any, tolerance: float = 1e-5, init: str = "pair") -> None:
    """Add units everywhere: the function is as before. Of a single unit and of a third one the fan-out is zero."""
    model = plastic.model.eval()
    before = call(model, inputs)
    sizes = {g.name: g.size for g in plastic.groups}
    more = {g.name: 1 + i % 3 for i, g in enumerate(plastic.groups)}
    plastic.grow(more, init=init)
    whole = {g.name: -(-more[g.name] // g.multiple) * g.multiple for g in plastic.groups}
    assert {g.name: g.size for g in plastic.groups} == {n: s + whole[n] for n, s in sizes.items()}
    assert_close(before, call(model, inputs), tolerance, "grown")


def train(plastic: npn.Plasticity, inputs: Any, optimizer: Optimizer, steps: int = 2) -> None:
    model = plastic.model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        plastic.backward(lambda: sum((t - 0.3).pow(2).mean() for t in call(model, inputs) if t.requires_grad))
        optimizer.step()


def check_training(
    plastic: npn.Plasticity, inputs: Any, make: Callable[[Any], Optimizer], tolerance: float = 1e-8
) -> None:
    """Compact, then train == train with closed gates, then compact: weights, statistics and optimizer state."""
    first, second = copy.deepcopy(plastic), copy.deepcopy(plastic)
    optimizers = []
    for twin in (first, second):
        assert twin.k == math.inf
        optimizers.append(make(twin.weights()))
        twin.track(optimizers[-1])
        train(twin, inputs, optimizers[-1])
        close_half(twin)
    first.compact()
    for twin, optimizer in zip((first, second), optimizers, strict=True):
        train(twin, inputs, optimizer)
    second.compact()
    a, b = first.model.state_dict(), second.model.state_dict()
    assert list(a) == list(b)
    for name in a:
        assert_close([widened(a[name])], [widened(b[name])], tolerance, name)
    names = [name for name, _ in first.model.named_parameters()]
    for name, p, q in zip(names, first.weights(), second.weights(), strict=True):
        x, y = optimizers[0].state.get(p, {}), optimizers[1].state.get(q, {})
        assert set(x) == set(y), name
        for key in x:
            if isinstance(x[key], Tensor):
                assert_close([widened(x[key])], [widened(y[key])], tolerance, f"{key} of {name}")


def check_resizes(attached: Callable[[], tuple[npn.Plasticity, Any]], grows: bool = True) -> None:
    """Masked is compact is exported, growth is silent, and training goes on alike, each on a model of its own."""
    check_shrink(*attached())
    if grows:
        check_grow(*attached())
    check_training(*attached(), functools.partial(torch.optim.Adam, lr=1e-2))


def as_double(inputs: Any) -> Any:
    """The same inputs, floating ones in float64."""
    return torch.utils._pytree.tree_map(
        lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs
    )
