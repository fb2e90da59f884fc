"""Steps, resizes, checkpoints and copies in any order: what holds of each alone holds after any others."""

import copy
import functools
import math
import tempfile
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from torch import Tensor, nn

import npn

from .checkpoints import everything, same
from .conftest import TINY

pytestmark = [pytest.mark.usefixtures("traces_are_shared"), pytest.mark.filterwarnings("ignore:every unit of")]
OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.02, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01),
}
alike = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
UNITS = st.lists(st.integers(0, 2), min_size=1, max_size=3)


class AnyOrder(RuleBasedStateMachine):
    @initialize(of=st.tuples(*map(st.sampled_from, (["conv", "residual"], [*OPTIMIZERS], ["reinmax", "disarm"]))))
    def begin(self, of: tuple[str, str, str]) -> None:
        self.spec, self.kind, self.estimator = TINY[of[0]], *of[1:]
        self.plastic = self.made(0)
        self.plastic.k = 2.0
        self.plastic.k = 0.3  # the logits stay: masks vary

    def made(self, seed: int) -> npn.Plasticity:
        return self.tracked(self.spec.attach(seed, estimator=self.estimator, penalty=npn.Budget("params", 0.5))[1])

    def tracked(self, plastic: npn.Plasticity) -> npn.Plasticity:
        plastic.track(OPTIMIZERS[self.kind](plastic.weights()), torch.optim.Adam(plastic.logits(), lr=0.05))
        return plastic

    @torch.no_grad()
    def output(self, model: nn.Module) -> Tensor:
        found = model.eval()(self.spec.data()[0])
        model.train()
        return found

    def entries(self) -> dict[str, Counter[tuple[float, ...]]]:
        """Name -> every entry of a parameter together with those of its state, which have its shape."""
        found = {}
        for name, p in self.plastic.model.named_parameters():
            state = [v for v in self.plastic.optimizers[0].state.get(p, {}).values() if v is not None and v.dim()]
            found[name] = Counter(map(tuple, torch.stack([p.detach(), *state], -1).flatten(0, -2).tolist()))
        return found

    def train(self, plastic: npn.Plasticity, seed: int) -> None:
        x, y = self.spec.data(seed)
        for optimizer in plastic.optimizers:
            optimizer.zero_grad()
        plastic.backward(lambda: F.cross_entropy(plastic.model(x), y))
        for optimizer in plastic.optimizers:
            optimizer.step()

    def some(self, group: int, units: Sequence[int] = ()) -> tuple[npn.UnitGroup, list[int]]:
        found = self.plastic.groups[group % len(self.plastic.groups)]
        return found, [unit % found.size for unit in units]

    @rule(k=st.sampled_from([7.0, 0.5, 0.0, math.inf]))
    def sharpness(self, k: float) -> None:
        self.plastic.k = k

    @rule(seed=st.integers(0, 1000))
    def step(self, seed: int) -> None:
        self.train(self.plastic, seed)

    @rule(group=st.integers(0, 1), units=UNITS)
    def close(self, group: int, units: list[int]) -> None:
        self.plastic.close(*self.some(group, units))

    @rule(group=st.integers(0, 1), units=UNITS, grace=st.integers(0, 2))
    def open(self, group: int, units: list[int], grace: int) -> None:
        self.plastic.open(*self.some(group, units), grace=grace)

    @rule(more=st.integers(1, 3), init=st.sampled_from(["zero", "pair", "split"]), group=st.integers(0, 1))
    def grow(self, more: int, init: str, group: int) -> None:
        before, output = self.entries(), self.output(self.plastic.model)
        self.plastic.grow({self.some(group)[0].name: more}, init=init, grace=1)
        alike(self.output(self.plastic.model), output)
        assert init == "split" or not any(before[name] - now for name, now in self.entries().items())

    @rule(below=st.sampled_from([1e-3, 0.3]))
    def compact(self, below: float) -> None:
        before, output = self.entries(), self.output(self.plastic.model)
        self.plastic.compact(below)
        alike(self.output(self.plastic.model), output)
        assert not any(now - before[name] for name, now in self.entries().items())

    @rule(seed=st.integers(0, 1000))
    def save_and_load(self, seed: int) -> None:
        other = self.made(1)
        with tempfile.TemporaryDirectory() as folder:
            npn.save(f"{folder}/a.npn", self.plastic)
            self.train(self.plastic, seed)
            npn.load(f"{folder}/a.npn", other)
        self.train(other, seed)
        assert same(everything(other), everything(self.plastic))
        self.plastic = other

    @rule(seed=st.integers(0, 1000))
    def go_on_with_a_copy(self, seed: int) -> None:
        old, before, output = self.plastic, everything(self.plastic), self.output(self.plastic.model)
        self.plastic = self.tracked(copy.deepcopy(old))
        assert torch.equal(self.output(self.plastic.model), output)
        self.step(seed), self.close(0, [0]), self.compact(1e-3), self.grow(1, "zero", 0)
        assert same(before, everything(old)) and torch.equal(self.output(old.model), output)

    @invariant()
    def the_export_is_the_model(self) -> None:
        alike(self.output(self.plastic.export()), self.output(self.plastic.model))


def test_any_order() -> None:
    short = settings(max_examples=20, stateful_step_count=8, deadline=None, derandomize=True, database=None)
    run_state_machine_as_test(AnyOrder, settings=short)
