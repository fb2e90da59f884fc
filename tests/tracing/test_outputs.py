"""Inputs and outputs of any form; a decoding cache is no answer."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npn._utils.inputs import output_tensors, split_inputs
from npn.tracing import trace


def test_inputs_and_outputs_of_any_form() -> None:
    class Form(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(5, 2)

        def forward(self, x: Tensor, *, scale: float = 1.0, more: list[Tensor] | None = None) -> dict[str, Any]:
            h = F.relu(self.a(x)) * scale + sum(F.relu(self.a(m)) for m in more or [])
            return {"b": (self.b(h),), "c": {"deep": [self.c(h)]}, "n": 3}

    x = torch.randn(2, 3)
    for inputs in (x, (x,), {"x": x}, {"x": x, "scale": 0.5, "more": [x, x]}):
        structure = trace(Form(), inputs)
        assert {g.name: g.size for g in structure.groups} == {"a": 5}
        assert structure.outputs == ((2, 4), (2, 2))
    assert split_inputs([x]) == ((x,), {})
    assert [tuple(t.shape) for t in output_tensors({"past_key_values": x, "y": (x[0],)})] == [(3,)]


class KeyValueCache:
    def __init__(self, *tensors: Tensor) -> None:
        self.layers = list(tensors)


class PagedKeys(KeyValueCache):
    """A cache by its base class's name."""


class Memory:
    """A cache by what it can do."""

    def __init__(self, *tensors: Tensor) -> None:
        self.keys = tensors

    def update(self, keys: Tensor, layer: int) -> Tensor:
        return keys

    def get_seq_length(self) -> int:
        return 0


class Answer:
    def __init__(self, y: Tensor, cache: Any) -> None:
        self.y, self.cache = y, cache


@pytest.mark.parametrize("kind", [KeyValueCache, PagedKeys, Memory])
@pytest.mark.parametrize(
    "form",
    [
        lambda y, cache: (y, cache),
        lambda y, cache: {"y": y, "anything": cache},
        lambda y, cache: {"deep": [(y, {"cache": cache, "past_key_values": (y, y)})]},
        lambda y, cache: Answer(y, cache),
        lambda y, cache: [Answer(y, [cache, cache])],
    ],
)
def test_decoding_caches_are_not_the_models_answer(kind: Any, form: Any) -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k, self.o = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            h = self.k(x)
            return form(self.o(torch.tanh(h)), kind(h, h + 1))

    structure = trace(Decoder(), torch.randn(4, 3))
    assert {g.name: g.size for g in structure.groups} == {"k": 6}
    assert structure.outputs == ((4, 2),)


def test_what_only_resembles_a_cache_is_part_of_the_answer() -> None:
    class Cached:
        def __init__(self, h: Tensor) -> None:
            self.h = h

    x = torch.randn(2, 3)
    assert [tuple(t.shape) for t in output_tensors((x, Cached(x[0]), {"update": x[:1]}))] == [(2, 3), (3,), (1, 3)]
