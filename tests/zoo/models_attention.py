"""Attention models, tiny; those of `transformers` have random weights from a config."""

import functools
import importlib.util
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import Entry, randn, tokens


class Attention(nn.Module):
    """Multi-head attention with separate projections; the number of heads is an attribute, or read off the weight."""

    def __init__(self, d: int, heads: int, kv: int | None = None, infer: bool = False) -> None:
        super().__init__()
        self.head_dim, self.infer = d // heads, infer
        if not infer:
            self.num_heads = heads
        self.q, self.o = nn.Linear(d, d), nn.Linear(d, d)
        self.k, self.v = (nn.Linear(d, (kv or heads) * self.head_dim) for _ in range(2))

    def split(self, x: Tensor) -> Tensor:
        heads = -1 if self.infer else self.num_heads
        return x.view(*x.shape[:2], heads, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        if q.shape[1] != k.shape[1]:
            k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
        a = (q @ k.transpose(2, 3) / math.sqrt(self.head_dim)).softmax(-1)
        return self.o((a @ v).transpose(1, 2).flatten(2))


class Packed(nn.Module):
    """Causal attention with one projection for q, k and v."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.o, self.heads = nn.Linear(d, 3 * d), nn.Linear(d, d), heads
        self.register_buffer("mask", torch.ones(32, 32, dtype=torch.bool).tril())

    def forward(self, x: Tensor) -> Tensor:
        n, s, _ = x.shape
        q, k, v = self.qkv(x).view(n, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask[:s, :s])
        return self.o(a.transpose(1, 2).reshape(n, s, -1))


class Layer(nn.Module):
    def __init__(self, d: int, attention: nn.Module, mlp: nn.Module, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.n1, self.n2, self.attn, self.mlp = norm(d), norm(d), attention, mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.n1(x))
        return x + self.mlp(self.n2(x))


def mlp(d: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, d))


class SwiGLU(nn.Module):
    """Gate and value in one projection, or in two."""

    def __init__(self, d: int, hidden: int, packed: bool) -> None:
        super().__init__()
        self.packed = packed
        self.up = nn.Linear(d, 2 * hidden if packed else hidden)
        if not packed:
            self.gate = nn.Linear(d, hidden)
        self.down = nn.Linear(hidden, d)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            gate, up = self.up(x).chunk(2, -1)
            return self.down(F.silu(gate) * up)
        return self.down(F.silu(self.gate(x)) * self.up(x))


class GPT(nn.Module):
    """Tied embeddings, learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(20, 12), nn.Parameter(torch.randn(1, 8, 12))
        self.layers = nn.Sequential(*(Layer(12, Packed(12, 3), mlp(12, 16)) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 20, bias=False)
        self.head.weight = self.token.weight

    def forward(self, i: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.token(i) + self.position[:, : i.shape[1]])))


class ViT(nn.Module):
    """Patches, a class token, LayerScale."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, 12, 4, 4), nn.Parameter(torch.randn(1, 1, 12))
        self.position = nn.Parameter(torch.randn(1, 5, 12))
        self.n1, self.attn, self.s1 = nn.LayerNorm(12), Packed(12, 3), nn.Parameter(torch.rand(12))
        self.n2, self.mlp, self.s2 = nn.LayerNorm(12), mlp(12, 16), nn.Parameter(torch.rand(12))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.cls.expand(len(h), -1, -1), h], 1) + self.position
        h = h + self.s1 * self.attn(self.n1(h))
        h = h + self.s2 * self.mlp(self.n2(h))
        return self.head(h[:, 0])


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.n1, self.n2, self.tokens, self.channels = nn.LayerNorm(8), nn.LayerNorm(8), mlp(4, 6), mlp(8, 12)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = h + self.tokens(self.n1(h).transpose(1, 2)).transpose(1, 2)
        h = h + self.channels(self.n2(h))
        return self.head(h.mean(1))


def torch_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Own(nn.Module):
    """An encoder of one hand-written layer; the last dimension is free of LayerNorm where it is not asked for."""

    def __init__(self, attention: nn.Module, feed: nn.Module, norm: type[nn.Module]) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(5, 12), Layer(12, attention, feed, norm), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)))


def hugging_face(name: str, kind: str, **options: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(**options)
    return getattr(transformers, f"{name}{kind}")(config)


def bert() -> nn.Module:
    return hugging_face(
        "Bert", "ForSequenceClassification", vocab_size=20, hidden_size=12, num_hidden_layers=1, num_attention_heads=3,
        intermediate_size=16, max_position_embeddings=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip


def gpt2() -> nn.Module:
    return hugging_face(
        "GPT2", "LMHeadModel", vocab_size=20, n_embd=12, n_layer=1, n_head=3, n_inner=16, n_positions=8, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


def hf_vit() -> nn.Module:
    return hugging_face(
        "ViT", "ForImageClassification", hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=16,
        image_size=8, patch_size=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip


def llama() -> nn.Module:
    return hugging_face(
        "Llama", "ForCausalLM", vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=20, max_position_embeddings=16,
    )  # fmt: skip


def own(attention: Any, feed: Any, norm: type[nn.Module] = nn.LayerNorm) -> Any:
    return lambda: Own(attention(), feed(), norm)


A = functools.partial

ATTENTION = {
    "encoder": Entry(
        own(A(Attention, 12, 3), A(mlp, 12, 16)),
        randn(2, 4, 5),
        {"layer.attn.q": 3, "layer.mlp.0": 16},
        {
            "embed.weight[0]": "native_layer_norm mixes every unit of the axis",
            "head.weight[0]": "it is the model's output",
            "embed.weight[1]": "it reads an input of fixed size",
        },
    ),
    "encoder_inferred_heads": Entry(
        own(A(Attention, 12, 3, infer=True), A(mlp, 12, 16)),
        randn(2, 4, 5),
        {"layer.attn.q": 3, "layer.mlp.0": 16},
        {
            "embed.weight[0]": "native_layer_norm mixes every unit of the axis",
            "head.weight[0]": "it is the model's output",
            "embed.weight[1]": "it reads an input of fixed size",
        },
    ),
    "encoder_no_norm": Entry(
        own(A(Attention, 12, 3), A(mlp, 12, 16), nn.Identity),
        randn(2, 4, 5),
        {"embed": 12, "layer.attn.q": 3, "layer.mlp.0": 16},
        {"head.weight[0]": "it is the model's output", "embed.weight[1]": "it reads an input of fixed size"},
    ),
    "grouped_query": Entry(
        own(A(Attention, 12, 4, 2, True), A(SwiGLU, 12, 10, False), nn.RMSNorm),
        randn(2, 4, 5),
        {"layer.attn.q": 2, "layer.mlp.up": 10},
        {
            "embed.weight[0]": "mean mixes every unit of the axis",
            "head.weight[0]": "it is the model's output",
            "embed.weight[1]": "it reads an input of fixed size",
        },
    ),
    "swiglu_packed": Entry(
        own(A(Packed, 12, 3), A(SwiGLU, 12, 10, True)),
        randn(2, 4, 5),
        {"layer.attn.qkv": 3, "layer.mlp.up": 10},
        {
            "embed.weight[0]": "native_layer_norm mixes every unit of the axis",
            "head.weight[0]": "it is the model's output",
            "embed.weight[1]": "it reads an input of fixed size",
        },
    ),
    "torch_encoder": Entry(
        torch_encoder,
        randn(2, 4, 12),
        {"layers.0.linear1": 16, "layers.1.linear1": 16},
        {
            "layers.0.self_attn.out_proj.weight[0]": "combined with a value of fixed size",
            "layers.0.self_attn.in_proj_weight[1]": "it reads an input of fixed size",
            "layers.0.self_attn.in_proj_weight[0]": "the code fixes this size",
            "layers.1.self_attn.in_proj_weight[0]": "the code fixes this size",
        },
    ),
    "gpt_tied": Entry(
        GPT,
        tokens(2, 6),
        {"layers.0.attn.qkv": 3, "layers.0.mlp.0": 16, "layers.1.attn.qkv": 3, "layers.1.mlp.0": 16},
        {
            "token.weight[0]": "rows of the embedding",
            "layers.0.attn.o.weight[0]": "native_layer_norm mixes every unit of the axis",
            "position[1]": "no layer of the model produces it",
        },
    ),
    "vit": Entry(
        ViT,
        randn(2, 3, 8, 8),
        {"attn.qkv": 3, "mlp.0": 16},
        {
            "patch.weight[0]": "native_layer_norm mixes every unit of the axis",
            "head.weight[0]": "it is the model's output",
            "position[1]": "combined with a value of fixed size",
            "patch.weight[1]": "it reads an input of fixed size",
        },
    ),
    "mixer": Entry(
        Mixer,
        randn(2, 3, 8, 8),
        {"tokens.0": 6, "channels.0": 12},
        {
            "patch.weight[0]": "native_layer_norm mixes every unit of the axis",
            "tokens.2.weight[0]": "combined with a value of fixed size",
            "head.weight[0]": "it is the model's output",
            "patch.weight[1]": "it reads an input of fixed size",
            "tokens.0.weight[1]": "it reads an input of fixed size",
        },
    ),
}

if importlib.util.find_spec("transformers"):
    ATTENTION |= {
        "hf_bert": Entry(
            bert,
            lambda: {"input_ids": tokens(2, 6)(), "attention_mask": torch.ones(2, 6).long()},
            {
                "bert.encoder.layer.0.attention.self.query": 3,
                "bert.encoder.layer.0.intermediate.dense": 16,
                "bert.pooler.dense": 12,
            },
            {
                "bert.embeddings.word_embeddings.weight[1]": "native_layer_norm mixes every unit of the axis",
                "classifier.weight[0]": "it is the model's output",
                "bert.embeddings.word_embeddings.weight[0]": "rows of the embedding",
                "bert.embeddings.position_embeddings.weight[0]": "rows of the embedding",
                "bert.embeddings.token_type_embeddings.weight[0]": "rows of the embedding",
            },
        ),
        "hf_gpt2": Entry(
            gpt2,
            lambda: {"input_ids": tokens(2, 6)()},
            {"transformer.h.0.attn.c_attn": 3, "transformer.h.0.mlp.c_fc": 16},
            {
                "transformer.wte.weight[0]": "rows of the embedding",
                "transformer.wpe.weight[1]": "native_layer_norm mixes every unit of the axis",
                "transformer.wpe.weight[0]": "rows of the embedding",
            },
        ),
        "hf_vit": Entry(
            hf_vit,
            lambda: {"pixel_values": torch.randn(2, 3, 8, 8)},
            {"vit.layers.0.attention.q_proj": 3, "vit.layers.0.mlp.fc1": 16},
            {
                "vit.embeddings.patch_embeddings.projection.weight[0]": "native_layer_norm mixes every unit of the axis",
                "classifier.weight[0]": "it is the model's output",
                "vit.embeddings.position_embeddings[1]": "combined with a value of fixed size",
                "vit.embeddings.patch_embeddings.projection.weight[1]": "it reads an input of fixed size",
            },
        ),
        "hf_llama": Entry(
            llama,
            lambda: {"input_ids": tokens(2, 6)()},
            {"model.layers.0.self_attn.q_proj": 2, "model.layers.0.mlp.gate_proj": 20},
            {
                "model.embed_tokens.weight[1]": "mean mixes every unit of the axis",
                "lm_head.weight[0]": "it is the model's output",
                "model.embed_tokens.weight[0]": "rows of the embedding",
                "model.rotary_emb.inv_freq[0]": "one table serves several units",
                "model.rotary_emb.original_inv_freq[0]": "no layer of the model produces it",
            },
        ),
    }
