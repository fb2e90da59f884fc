"""Sizes that the code reads from a config follow a resize, in a copy of the module's own: `self.config.num_heads`."""

import copy
import functools
from dataclasses import make_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn

from ..zoo.checks import check_resizes
from .asking import sizes

SIZES = [(name, int, size) for name, size in (("heads", 3), ("groups", 3), ("width", 12), ("layers", 3))]
Frozen = make_dataclass("Frozen", SIZES, frozen=True)
Slots = make_dataclass("Slots", SIZES, slots=True)


class Attention(nn.Module):
    """Queries, keys and values in one layer; the sizes come from the config."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.each = config, 4
        heads, groups = read(config, "heads"), read(config, "groups")
        self.qkv = nn.Linear(12, (heads + 2 * groups) * self.each)
        self.proj = nn.Linear(heads * self.each, 12)

    def forward(self, x: Tensor) -> Tensor:
        heads, groups = read(self.config, "heads"), read(self.config, "groups")
        parts = self.qkv(x).split([heads * self.each, groups * self.each, groups * self.each], -1)
        q, k, v = (part.unflatten(-1, (-1, self.each)).transpose(1, 2) for part in parts)
        k, v = (t.repeat_interleave(heads // groups, 1) for t in (k, v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Model(nn.Module):
    """Every layer keeps the same config."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Attention(config) for _ in range(2))
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def read(config: Any, name: str) -> int:
    return config[name] if isinstance(config, dict) else getattr(config, name)


CONFIGS = {
    "frozen dataclass": Frozen,
    "slots": Slots,
    "namespace": lambda: SimpleNamespace(heads=3, groups=3, width=12, layers=3, rate=0.1),
    "dict": lambda: {"heads": 3, "groups": 3, "width": 12, "layers": 3, "name": "small"},
    "grouped queries": lambda: Frozen(heads=6),
}


def attached(name: str) -> tuple[npn.Plasticity, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    return npn.attach(Model(CONFIGS[name]()).double(), x), x


@pytest.mark.parametrize("name", ["frozen dataclass", "dict", "grouped queries"])
def test_heads_come_and_go_with_the_config(name: str) -> None:
    assert sizes(attached(name)[0].structure) == {"layers.0.qkv": 3, "layers.1.qkv": 3}
    check_resizes(functools.partial(attached, name))


@pytest.mark.parametrize("name", CONFIGS)
def test_each_layer_has_its_own_copy(name: str) -> None:
    plastic = attached(name)[0]
    model = plastic.model
    shared = model.config
    as_it_was = copy.deepcopy(shared)
    plastic.close("layers.0.qkv", [1])
    plastic.compact()
    assert model.config is shared is model.layers[1].config
    assert shared == as_it_was
    assert read(model.layers[0].config, "groups") == 2
    assert read(model.layers[0].config, "layers") == 3


@pytest.mark.parametrize("name", CONFIGS)
def test_checkpoints_hold_what_follows(name: str, tmp_path: Path) -> None:
    plastic, x = attached(name)
    plastic.close("layers.1.qkv", [0, 2])
    plastic.compact()
    npn.save(tmp_path / "small.npn", plastic)
    small = npn.load(tmp_path / "small.npn", attached(name)[0])
    torch.testing.assert_close(small.model(x), plastic.model(x))
    npn.save(tmp_path / "plain.npn", plastic.export())
    fresh = Model(CONFIGS[name]()).double()
    torch.testing.assert_close(npn.load(tmp_path / "plain.npn", fresh)(x), plastic.model(x))
    assert fresh.config is fresh.layers[0].config
    assert read(fresh.config, "groups") == 3


def test_the_report_names_the_entry() -> None:
    model = Model(CONFIGS["namespace"]())
    assert npn.inspect(model, torch.randn(2, 5, 12)).groups[0].follows == (
        "layers.0.config.heads",
        "layers.0.config.groups",
    )


def test_what_several_modules_count_in_is_not_loaded(tmp_path: Path) -> None:
    models = [Model(SimpleNamespace(heads=3, groups=3, seen=0)) for _ in range(2)]
    models[0].config.seen = 7
    npn.save(tmp_path / "plain.npn", models[0])
    npn.load(tmp_path / "plain.npn", models[1])
    assert models[1].config.seen == 0
    assert models[1].layers[0].config is models[1].config
