"""What a forward pass writes into attributes is put back after a trace, inside of other containers too."""

import dataclasses
from collections import OrderedDict, deque
from types import SimpleNamespace

import torch
from torch import Tensor, nn

import npn


@dataclasses.dataclass(frozen=True)
class Kept:
    seen: list[Tensor]


class Writing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)
        self.log = {"h": list[Tensor](), "rounds": [{"n": 0}]}
        self.last, self.ordered = deque([torch.zeros(1)], maxlen=2), OrderedDict(a=1)
        self.space, self.kept = SimpleNamespace(h=None, all=[]), Kept([])
        self.counts = {"calls": torch.zeros(1)}

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        self.log["h"].append(h)
        self.log["rounds"][0]["n"] += 1
        self.last.append(h)
        self.ordered["b"] = h
        self.ordered.move_to_end("a")
        self.space.h = h
        self.space.all.append(h)
        self.kept.seen.append(h)
        self.counts["calls"] += 1
        return self.second(h)


def test_everything_is_as_it_was() -> None:
    model = Writing()
    log, space, seen, counts = model.log["h"], model.space, model.kept.seen, model.counts["calls"]
    npn.attach(model, torch.randn(3, 4))
    assert model.log == {"h": [], "rounds": [{"n": 0}]} and model.log["h"] is log
    assert list(model.last) == [torch.zeros(1)] and model.last.maxlen == 2
    assert model.ordered == OrderedDict(a=1)
    assert model.space is space and space.h is None and space.all == []
    assert model.kept.seen is seen and seen == []
    assert model.counts["calls"] is counts and float(counts) == 0.0


class Frozen(OrderedDict):
    """A config that refuses changes, as those of diffusers."""

    def _refused(self, *_: object) -> None:
        raise TypeError("this config cannot be changed")

    __delitem__ = clear = pop = update = setdefault = _refused  # type: ignore[assignment]


def test_a_dict_may_refuse_changes() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    model.config = config = Frozen(width=8)
    plastic = npn.attach(model, torch.randn(3, 4))
    plastic.close("0", [1])
    plastic.compact()
    assert model.config is config and config == {"width": 8} and plastic.export().config == {"width": 8}


class Positions:
    """A helper that is no module, with a cache (Z-Image's rotary positions)."""

    def __init__(self) -> None:
        self.table: Tensor | None = None
        self.last: list[Tensor] = []

    def __call__(self, h: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.full((1,), 0.5)
        self.last.append(h)
        return h * self.table


class Helped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.positions = nn.Linear(4, 8), nn.Linear(8, 2), Positions()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.positions(self.first(x)))


def test_a_helper_that_is_no_module_is_as_it_was() -> None:
    model, x = Helped(), torch.randn(3, 4)
    plastic = npn.attach(model, x)
    assert plastic.sizes() == {"first": 8}
    assert model.positions.table is None and model.positions.last == []
