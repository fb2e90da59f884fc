"""Tiny decoders of `transformers`: heads, feed-forward features and experts' features are units."""

import copy
import functools
import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

import npn

from ..zoo.checks import check_grow, check_shrink

pytestmark = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")

SMALL = {
    "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 24, "max_position_embeddings": 16, "use_cache": False,
}  # fmt: skip
NEOX = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
GPTJ = {"vocab_size": 20, "n_embd": 16, "n_layer": 1, "n_head": 4, "n_positions": 16, "rotary_dim": 2, "n_inner": 24}
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {  # class, options, groups by the end of their names
    "partial rotary": ("Phi", SMALL, {"q_proj": 4, "fc1": 24}),
    "partial rotary, packed projections": ("GPTNeoX", NEOX, {"query_key_value": 4, "dense_h_to_4h": 24}),
    "partial rotary, interleaved": ("GPTJ", {**GPTJ, "use_cache": False}, {"k_proj": 4, "fc_in": 24}),
    "norms of heads": ("Qwen3", {**SMALL, "head_dim": 6}, {"q_proj": 4, "gate_proj": 24}),
    "experts": ("Mixtral", {**SMALL, "num_local_experts": 3}, {"q_proj": 4, "experts": 24}),
}


@functools.cache
def attached(name: str) -> tuple[npn.Plasticity, dict[str, Any]]:
    import transformers

    kind, options, _ = MODELS[name]
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**options))
    with torch.no_grad():
        for parameter in model.parameters():  # norms that are not 1, biases that are not 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    inputs = {"input_ids": torch.randint(0, 20, (2, 5))}
    return npn.attach(model.eval(), inputs), inputs


@pytest.mark.parametrize("name", MODELS)
def test_units(name: str) -> None:
    plastic, _ = attached(name)
    assert {g.name.rpartition(".")[2]: g.size for g in plastic.groups} == MODELS[name][2]


@pytest.mark.parametrize("name", MODELS)
def test_masked_is_compact_is_exported_and_growth_is_silent(name: str) -> None:
    plastic, inputs = attached(name)
    plastic = copy.deepcopy(plastic)
    check_shrink(plastic, inputs, 2e-6)
    check_grow(plastic, inputs, 2e-6)
