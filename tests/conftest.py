"""Tiny models whose groups, readers and masks are written down by hand: what every engine test compares with."""

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn

from .traces import traced_once

torch.set_num_threads(1)

SHARED = {  # files that use one fixture of the session, or one fork server
    "moons": ("test_moons.py", "test_runner.py"),
    "processes": ("test_distributed.py", "test_distributed_differences.py", "test_several.py", "test_accelerate.py"),
}
BY_MODEL = ("test_zoo.py", "test_exports.py", "test_adversaries.py")  # the first parameter names what they share


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadscope` keeps on one process what shares a trace, a trained run or a fork server, made once there."""
    if config.getoption("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path, _, test = nodeid.partition("::")
            file = path.rpartition("/")[2]
            if file in BY_MODEL:
                return test.partition("[")[2].partition("]")[0].partition("-")[0]
            return next((name for name, files in SHARED.items() if file in files), path)

    return Scheduling(config, log)


class Residual(nn.Module):
    """A stream of 4 units that sits on both axes of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head(h + torch.tanh(self.mix(h)))


class Recurrent(nn.Module):
    """An LSTM between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.lstm, self.head = nn.Linear(3, 3), nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.stem(x))[0][:, -1])


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def four() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)
    )  # fmt: skip


def dropping() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 2)
    )


def conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(),
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip


def depthwise() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def traces_are_shared() -> Iterator[None]:
    """For tests of what comes after the trace."""
    with traced_once():
        yield


@dataclass(frozen=True)
class Tiny:
    """One model: how to build it, its data, and by hand which weight columns read each unit.

    Attributes:
        readers: parameter name -> axis -> group name behind each column (in order, each unit `repeat` columns).
    """

    make: Callable[[], nn.Module]
    x: tuple[int, ...]
    readers: dict[str, dict[int, tuple[str, int]]]

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.make()

    def data(self, seed: int = 1) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.x, generator=generator)
        return x, torch.randint(0, 2, (self.x[0],), generator=generator)

    def factors(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameter name -> what multiplies it, by hand."""
        found: dict[str, Tensor] = {}
        with torch.device("meta"):  # shapes only, without a draw
            shapes = {name: p.shape for name, p in self.make().named_parameters()}
        for name, axes in self.readers.items():
            for axis, (group, repeat) in axes.items():
                mask = masks[group].float().repeat_interleave(repeat)
                view = [-1 if a == axis else 1 for a in range(len(shapes[name]))]
                found[name] = found.get(name, torch.ones(())) * mask.view(view)
        return found

    def masked_copy(self, model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
        """A plain copy whose reading weights are multiplied by hand."""
        new = self.model()
        new.load_state_dict(model.state_dict())
        new.train(model.training)
        with torch.no_grad():
            for name, factor in self.factors(masks).items():
                new.get_parameter(name).mul_(factor)
        return new

    def attach(self, seed: int = 0, **options: object) -> tuple[nn.Module, "npn.Plasticity"]:
        """A model and its handle; traced once per kind of model, attached each time."""
        model = self.model(seed)
        with traced_once():
            return model, npn.attach(model, self.data()[0], **options)


TINY = {
    "mlp": Tiny(mlp, (6, 3), {"2.weight": {1: ("0", 1)}, "4.weight": {1: ("2", 1)}}),
    "four": Tiny(four, (6, 3), {"3.weight": {1: ("0", 1)}, "5.weight": {1: ("3", 1)}}),
    "dropping": Tiny(dropping, (6, 3), {"4.weight": {1: ("0", 1)}, "6.weight": {1: ("4", 1)}}),
    "conv": Tiny(conv, (5, 2, 4, 4), {"3.weight": {1: ("0", 1)}, "7.weight": {1: ("3", 4)}}),
    "residual": Tiny(Residual, (6, 3), {"mix.weight": {1: ("stem", 1)}, "head.weight": {1: ("stem", 1)}}),
    "recurrent": Tiny(
        Recurrent, (5, 3, 3),
        {"lstm.weight_ih_l0": {1: ("stem", 1)}, "lstm.weight_hh_l0": {1: ("lstm", 1)}, "head.weight": {1: ("lstm", 1)}},
    ),
    "depthwise": Tiny(depthwise, (4, 2, 5, 5), {"6.weight": {1: ("0", 1)}, "10.weight": {1: ("6", 1)}}),
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny() -> dict[str, Tiny]:
    return TINY


def masks_of(plastic: "npn.Plasticity", flat: Tensor) -> dict[str, Tensor]:
    return dict(zip([g.name for g in plastic.groups], flat.split([g.size for g in plastic.groups]), strict=True))


def all_masks(n: int) -> Iterator[Tensor]:
    for bits in itertools.product((0.0, 1.0), repeat=n):
        yield torch.tensor(bits)


def enumerate_model(spec: Tiny, model: nn.Module, plastic: "npn.Plasticity") -> SimpleNamespace:
    """Loss, mask gradient and weight gradients of a plain model under every mask, without any npn code in the way."""
    x, y = spec.data()
    n = sum(g.size for g in plastic.groups)
    state = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    plain = spec.model()
    losses, slopes, grads, masks = [], [], [], list(all_masks(n))
    for flat in masks:
        z = flat.clone().requires_grad_()
        weights = {name: p.clone().requires_grad_() for name, p in state.items()}
        factors = spec.factors(masks_of(plastic, z))
        values = {name: w * factors[name] if name in factors else w for name, w in weights.items()}
        out = torch.func.functional_call(plain, values | {k: v.clone() for k, v in buffers.items()}, (x,))
        loss = F.cross_entropy(out, y)
        found = torch.autograd.grad(loss, [z, *weights.values()])
        losses.append(loss.detach())
        slopes.append(found[0])
        grads.append(dict(zip(weights, found[1:], strict=True)))
    return SimpleNamespace(masks=masks, losses=torch.stack(losses), slopes=torch.stack(slopes), grads=grads)


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    return SimpleNamespace(
        masks_of=masks_of, all_masks=all_masks, enumerate_model=enumerate_model, same=same_state, clone=copy.deepcopy
    )


@pytest.fixture(scope="session")
def four(tiny: dict[str, Tiny], tools: SimpleNamespace) -> Any:
    """The model of four gates under every mask."""
    model, plastic = tiny["four"].attach()
    return tools.enumerate_model(tiny["four"], model, plastic)


def same_state(a: nn.Module, b: nn.Module) -> bool:
    """Parameters and buffers equal bit for bit, under the same names."""
    x, y = a.state_dict(), b.state_dict()
    return list(x) == list(y) and all(torch.equal(x[k], y[k]) for k in x)
