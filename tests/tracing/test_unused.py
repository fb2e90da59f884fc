"""Integers that the forward pass does not compute with are not tried as ones that follow a size."""

import types

import pytest
import torch
from torch import nn

from npn.tracing import trace
from npn.tracing.rehearsal import rehearsal
from npn.tracing.rehearsal.rehearsal import Rehearsal
from npn.tracing.rehearsal.unused import Unusable, taken_away


class Reader(nn.Module):
    """Computes with some of its integers, in several ways, and keeps others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
        self.viewed, self.compared, self.scaled, self.named, self.kept = 8, 8, 8, 8, 8
        self.sizes = (8, 8)
        self.config = types.SimpleNamespace(width=8, depth=8)
        self.table = {"rate": 8, "heads": 8}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x).view(-1, self.viewed) / self.scaled**0.5
        if self.compared == 8 and f"{self.named}" and self.config.width + self.sizes[1] + self.table["heads"]:
            h = h.relu()
        return self.b(h)


NAMES = ["viewed", "compared", "scaled", "named", "kept", "sizes[0]", "sizes[1]", "config.width", "config.depth",
         "table[rate]", "table[heads]"]  # fmt: skip


def test_what_is_read_is_found_whatever_it_is_read_for_and_the_model_is_as_before() -> None:
    model, x = Reader(), torch.randn(2, 3)
    before = {name: value for name, value in vars(model).items() if not name.startswith("_")}
    found = Rehearsal(model, x, trace(model, x), 30.0).used(NAMES)
    assert found == set(NAMES) - {"kept", "sizes[0]", "config.depth", "table[rate]"}
    assert all(getattr(model, name) is value for name, value in before.items())


def test_names_are_looked_at_once() -> None:
    model, x = Reader(), torch.randn(2, 3)
    tries = Rehearsal(model, x, trace(model, x), 30.0)
    first = tries.used(["viewed", "kept"])
    tries._works_without = pytest.fail  # type: ignore[assignment]
    assert tries.used(["kept", "viewed"]) == first == {"viewed"}


def test_nothing_is_said_of_code_that_does_not_run() -> None:
    model, x = Reader(), torch.randn(2, 3)
    tries = Rehearsal(model, torch.randn(2, 5), trace(model, x), 30.0)
    assert tries.used(["viewed", "kept"]) == {"viewed", "kept"}


@pytest.mark.parametrize("use", [str, repr, bool, hash, int, float, "{}".format, lambda v: v == 8, lambda v: v > 8,
                                 lambda v: v * 2, lambda v: range(v), lambda v: torch.zeros(v)])  # fmt: skip
def test_every_use_raises_but_to_ask_for_none(use) -> None:
    assert Unusable() is not None
    with pytest.raises((TypeError, RuntimeError)):
        use(Unusable())


def test_what_was_taken_away_comes_back_after_an_error() -> None:
    model = Reader()
    config = model.config
    with pytest.raises(TypeError), taken_away(model, NAMES):
        model(torch.randn(2, 3))
    assert model.config is config and model.kept == 8 and model.sizes == (8, 8)


class Stuck(nn.Module):
    """Heads that cannot go one by one, and a config with many numbers of their size."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
        self.config = {f"number{i}": 8 for i in range(numbers)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).view(-1, 8))


def test_numbers_that_nothing_reads_cost_no_runs(monkeypatch) -> None:
    counts = []
    for numbers in (1, 40):
        runs = list[object]()
        real = rehearsal.outputs_at
        with monkeypatch.context() as patch:
            patch.setattr(rehearsal, "outputs_at", lambda *args, real=real, runs=runs: runs.append(0) or real(*args))
            structure = trace(Stuck(numbers), torch.randn(2, 3))
        assert not structure.groups
        counts.append(len(runs))
    assert counts[1] <= counts[0] + 2, counts
