"""More small models: products with several weights, Fourier transforms, sampling, and whole modules of PyTorch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.utils import parametrizations, spectral_norm
from torch.utils.checkpoint import checkpoint

from .op_models import Case, between, custom, maps, over_maps, rows, sequence, tokens


def linear(*sizes: int) -> Any:
    return lambda: nn.Linear(*sizes)


A = {"a": linear(4, 8)}
einsum = torch.einsum


def grouped_heads(m: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (m.q, m.k, m.v))
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return m.o(out.transpose(1, 2).flatten(2))


def attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (m.q, m.k, m.v))
    scores = einsum("bhid,bhjd->bhij", q, k).softmax(-1)
    return m.o(einsum("bhij,bhjd->bhid", scores, v).transpose(1, 2).flatten(2))


def flexible(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():  # its kernels for the CPU have no backward pass
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        h = flex_attention(q, k, v)
    return m.c(torch.tanh(m.b(h.transpose(1, 2).flatten(2))))


def spectral_convolution(m: Any, x: Tensor) -> Tensor:
    h, weight = torch.fft.rfft(torch.tanh(m.a(x))), torch.view_as_complex(m.w)
    out = h.new_zeros(h.shape[0], weight.shape[1], h.shape[-1])
    out[..., :3] = einsum("bix,iox->box", h[..., :3], weight)
    return m.c(torch.tanh(torch.fft.irfft(out, n=x.shape[-1])))


def global_filter(m: Any, x: Tensor) -> Tensor:
    return m.c(torch.fft.irfft(torch.fft.rfft(m.a(x), dim=1) * torch.view_as_complex(m.w), n=5, dim=1))


def mixed_features(m: Any, x: Tensor) -> Tensor:
    return m.c(torch.tanh(m.b(torch.fft.fft2(m.a(x)).real)))


def experts(m: Any, x: Tensor) -> Tensor:
    hidden = torch.relu(torch.bmm(m.a(x).expand(3, -1, -1), m.u))
    return m.c((torch.bmm(hidden, m.w) * m.gate(x).softmax(-1).t()[..., None]).sum(0))


def bilinear(m: Any, x: Tensor) -> Tensor:
    return m.c(torch.tanh(m.b(torch.tanh(m.a(x)), torch.tanh(m.d(x)))))


def weighed_maps(m: Any, x: Tensor) -> Tensor:
    return m.c(torch.tanh(einsum("bchw,oc->bohw", m.a(x), m.w)).mean((2, 3)))


def factors(m: Any, x: Tensor) -> Tensor:
    return m.c(torch.tanh(einsum("bi,bj,ir,jr,or->bo", m.a(x), m.d(x), m.u, m.v, m.w)))


PRODUCTS = {
    "bilinear": custom(
        bilinear, {"a": 8, "d": 5, "b": 6}, d=linear(4, 5), b=lambda: nn.Bilinear(8, 5, 6), c=linear(6, 2), **A
    ),
    "bilinear_of_sequence": custom(
        bilinear, {"a": 8, "d": 5, "b": 6}, None, sequence, d=linear(4, 5), b=lambda: nn.Bilinear(8, 5, 6),
        c=linear(6, 2), **A,
    ),
    "bilinear_of_itself": custom(
        lambda m, x: m.c(torch.tanh(m.b(h := torch.tanh(m.a(x)), h))), {"a": 8, "b": 6},
        b=lambda: nn.Bilinear(8, 8, 6), c=linear(6, 2), **A,
    ),
    "bilinear_of_input": custom(
        lambda m, x: m.c(torch.tanh(m.b(x, torch.tanh(m.a(x))))), {"a": 8, "b": 6},
        {"b.weight[1]": "it reads an input of fixed size"}, b=lambda: nn.Bilinear(4, 8, 6), c=linear(6, 2), **A,
    ),
    "einsum_linear": custom(
        lambda m, x: m.c(torch.tanh(einsum("bid,od->bio", m.a(x), m.w))), {"w": 6, "a": 8}, None, sequence,
        w=(6, 8), c=linear(6, 2), **A,
    ),
    "products_summed": custom(
        lambda m, x: m.c(torch.tanh((torch.tanh(m.a(x))[:, None] * m.w).sum(-1))), {"w": 6, "a": 8}, None, rows,
        w=(6, 8), c=linear(6, 2), **A,
    ),
    "products_summed_in_vmap": custom(
        lambda m, x: m.c(torch.tanh(torch.vmap(lambda h: (h * m.w).sum(1, keepdim=True))(torch.tanh(m.a(x)))[..., 0])),
        {"w": 6, "a": 8}, None, rows, w=(6, 8), c=linear(6, 2), **A,
    ),
    "products_summed_to_one": custom(
        lambda m, x: m.c((torch.tanh(m.a(x)) * m.w).sum(-1, keepdim=True)), {"a": 8}, {"w[0]": ""}, rows,
        w=(8,), c=linear(1, 2), **A,
    ),
    "products_and_their_sum": custom(
        lambda m, x: m.c(torch.relu(p := torch.tanh(m.a(x)) * m.w) + p.sum(-1, keepdim=True)), {"a": 8}, None, rows,
        w=(8,), c=linear(8, 2), **A,
    ),
    "einsum_map": custom(
        weighed_maps, {"w": 6, "a": 8}, None, maps, a=lambda: nn.Conv2d(3, 8, 1), w=(6, 8), c=linear(6, 2)
    ),
    "einsum_factors": custom(
        factors, {"u": 3, "w": 6, "a": 8, "d": 5}, d=linear(4, 5), u=(8, 3), v=(5, 3), w=(6, 3), c=linear(6, 2), **A
    ),
    "einsum_of_tokens": custom(
        lambda m, x: m.c(torch.tanh(einsum("bnc,mn->bmc", m.a(x), m.w))), {"a": 8}, {"w[1]": "fixed size"}, sequence,
        w=(7, 5), c=linear(8, 2), **A,
    ),
    "einsum_attention": custom(
        attention, {"q": 4}, None, sequence, q=linear(4, 16), k=linear(4, 16), v=linear(4, 16), o=linear(16, 2)
    ),
    "stacked_weights": custom(
        experts, {"u": 5, "w": 6, "a": 8}, {"u[0]": "softmax mixes"}, gate=linear(4, 3), u=(3, 8, 5), w=(3, 5, 6),
        c=linear(6, 2), **A,
    ),
    "grouped_query_heads": custom(
        grouped_heads, {"q": 2}, None, sequence, q=linear(4, 16), k=linear(4, 8), v=linear(4, 8), o=linear(16, 2)
    ),
    "flex_attention": custom(
        flexible, {"b": 6}, {"q.weight[0]": "scaled_dot_product_attention does not"}, sequence,
        q=linear(4, 16), k=linear(4, 16), v=linear(4, 16), b=linear(16, 6), c=linear(6, 2),
    ),
    "vmapped_module": between(lambda m, h: torch.vmap(m.e)(h), groups={"e": 7}, out=7, e=linear(8, 7)),
    "vmapped_function": between(lambda h: torch.vmap(lambda row: torch.tanh(row) * 2)(h)),
    "fourier_of_rows": between(lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=0) * 2, n=6, dim=0)),
    "fourier_of_units": custom(
        mixed_features, {"b": 6}, {"a.weight[0]": "the Fourier transform"}, sequence, b=linear(8, 6), c=linear(6, 2),
        **A,
    ),
    "complex": between(lambda h: torch.complex(h, h.relu()).conj().abs()),
    "spectral_convolution": custom(
        spectral_convolution, {"a": 8, "w": 6}, {"w[3]": "real and imaginary part"}, lambda: torch.randn(2, 3, 8),
        a=lambda: nn.Conv1d(3, 8, 1), w=(8, 6, 3, 2), c=lambda: nn.Conv1d(6, 2, 1),
    ),
    "global_filter": custom(
        global_filter, {"a": 8}, {"w[0]": "fixed size"}, sequence, w=(3, 8, 2), c=linear(8, 2), **A
    ),
    "norm": between(lambda h: h * torch.linalg.norm(h, dim=-1, keepdim=True), frozen="linalg_vector_norm mixes"),
    "normalize": between(lambda h: F.normalize(h, dim=-1), frozen="linalg_vector_norm mixes"),
    "cosine": between(lambda h: h * F.cosine_similarity(h, h.relu())[:, None], frozen="mixes every unit"),
    "cdist": between(lambda h: torch.cdist(h, h) @ h, frozen="the distance"),
    "gumbel": between(lambda h: h * F.softmax(h - 0.1, -1), frozen="softmax mixes"),
    "softplus": between(lambda h: F.threshold(F.softplus(h), 0.1, 0.0)),
}  # fmt: skip

MAPS = {
    "grid_sample": over_maps(
        lambda m, h: F.grid_sample(h, torch.tanh(m.e(h)).movedim(1, -1), align_corners=False),
        e=lambda: nn.Conv2d(8, 2, 1),
    ),
    "fold": over_maps(lambda h: F.fold(F.unfold(h, 2), (4, 4), 2)),
    "unpooled": over_maps(lambda h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2)),
    "fourier_of_space": over_maps(lambda h: torch.fft.irfft2(torch.fft.rfft2(h), s=(4, 4))),
    "pixel_shuffle": over_maps(lambda h: F.pixel_shuffle(h, 2), out=2, groups={"a": 2, "b": 4}),
    "pixel_unshuffle": over_maps(lambda h: F.pixel_unshuffle(h, 2), out=32),
    "channel_shuffle": over_maps(lambda m, h: m.e(h), e=lambda: nn.ChannelShuffle(4)),
    "blur": over_maps(
        lambda h: F.conv2d(h, torch.ones(h.shape[1], 1, 3, 3, dtype=h.dtype) / 9, groups=h.shape[1], padding=1)
    ),
    "blur_of_its_own_per_channel": over_maps(
        lambda h: F.conv2d(h, torch.arange(8.0).to(h)[:, None, None, None], groups=h.shape[1]), "computed from data"
    ),
    "rolled": over_maps(lambda h: h.roll((1, 1), (2, 3))),
    "response_norm": over_maps(lambda h: F.local_response_norm(h, 3), "avg_pool3d mixes"),
}


def recurrent(cls: Any, width: int, groups: dict[str, int], **options: Any) -> Case:
    make = lambda: cls(7, 8, batch_first=True, **options)  # noqa: E731
    return custom(
        lambda m, x: m.c(torch.tanh(m.b(m.r(torch.tanh(m.a(x)))[0]))), {"a": 7, "b": 6} | groups, None,
        lambda: torch.randn(3, 2, 4),  # every step is traced
        a=linear(4, 7), r=make, b=linear(width, 6), c=linear(6, 2),
    )  # fmt: skip


def bag(*inputs: Any, **options: Any) -> Case:
    return custom(
        lambda m, *x: m.c(torch.tanh(m.b(m.e(*x)))), {"e": 8, "b": 6}, {"e.weight[0]": "rows of the embedding"},
        lambda: inputs, e=lambda: nn.EmbeddingBag(10, 8, **options), b=linear(8, 6), c=linear(6, 2),
    )  # fmt: skip


def checkpointed(reentrant: bool) -> Case:
    return custom(
        lambda m, x: m.c(checkpoint(m.inner, m.a(x), use_reentrant=reentrant)),
        {"a": 8, "inner.0": 7, "inner.2": 8}, c=linear(8, 2),
        inner=lambda: nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 8)), **A,
    )  # fmt: skip


def decoder(first: bool) -> Case:
    return custom(
        lambda m, x: m.c(m.d(m.a(x), m.a(x).flip(1))), {"d.layers.0.linear1": 12},
        {"d.layers.0.self_attn.in_proj_weight[0]": "the code fixes this size", "a.weight[0]": "layer_norm mixes"},
        sequence,
        d=lambda: nn.TransformerDecoder(
            nn.TransformerDecoderLayer(8, 2, 12, 0.0, batch_first=True, norm_first=first), 1
        ), c=linear(8, 2), **A,
    )  # fmt: skip


def spectral(apply: Any, weight: str, what: str) -> Case:
    return custom(
        lambda m, x: m.c(torch.tanh(m.b(torch.tanh(m.a(x))))) + m.d(torch.tanh(m.a(x))), {"a": 8},
        {f"{weight}[0]": f"the code couples its 6 channels into one unit, which has to stay: {what}"},
        b=lambda: apply(nn.Linear(8, 6)), c=linear(6, 2), d=linear(8, 2), **A,
    )  # fmt: skip


@torch.library.custom_op("npn_tests::deformed", mutates_args=())
def deformed(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """Stands in for a deformable convolution, which is an op of another library."""
    return F.conv2d(x * offset.mean().sigmoid(), weight, padding=1)


@deformed.register_fake
def _(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])


def _slopes(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        inputs = [saved.detach().requires_grad_() for saved in ctx.saved_tensors]
        out = F.conv2d(inputs[0] * inputs[1].mean().sigmoid(), inputs[2], padding=1)
    a, b, c = torch.autograd.grad(out, inputs, gradient)
    return a, b, c


deformed.register_autograd(_slopes, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


_WEIGHTS = torch.linspace(0.1, 1, 12).view(3, 4)
MODULES = MAPS | {
    "pooled_channels_last": over_maps(
        lambda h: F.adaptive_avg_pool2d(h.contiguous(memory_format=torch.channels_last), 1)
    ),
    "lstm": recurrent(nn.LSTM, 8, {"r": 8}),
    "lstm_projected": recurrent(nn.LSTM, 10, {"r": 8, "r#2": 5}, proj_size=5, num_layers=2, bidirectional=True),
    "lstm_projected_to_half": recurrent(nn.LSTM, 4, {"r": 8, "r#2": 4}, proj_size=4),
    "gru": recurrent(nn.GRU, 16, {"r": 8}, num_layers=2, bidirectional=True),
    "rnn": recurrent(nn.RNN, 16, {"r": 8}, bidirectional=True),
    "bag_sum": bag(tokens()),
    "bag_mean": bag(torch.randint(0, 10, (9,)), torch.tensor([0, 3, 5]), mode="mean", padding_idx=1),
    "bag_max": bag(tokens(), mode="max"),
    "bag_weighed": bag(tokens(), None, _WEIGHTS, mode="sum"),
    "embedding_with_padding": custom(
        lambda m, x: m.c(torch.tanh(m.b(m.e(x)))), {"e": 8, "b": 6}, {"e.weight[0]": "rows of the embedding"}, tokens,
        e=lambda: nn.Embedding(10, 8, padding_idx=0), b=linear(8, 6), c=linear(6, 2),
    ),
    "adaptive_softmax": custom(
        lambda m, x: m.s.log_prob(torch.tanh(m.a(x))), {"a": 16, "s.tail.0.0": 8, "s.tail.1.0": 4},
        {"s.head.weight[0]": "log_softmax mixes"}, a=linear(4, 16),
        s=lambda: nn.AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10], div_value=2.0),
    ),
    "checkpoint_reentrant": checkpointed(True),
    "checkpoint": checkpointed(False),
    "decoder": decoder(False),
    "decoder_norm_first": decoder(True),
    "spectral_norm": spectral(
        parametrizations.spectral_norm, "b.parametrizations.weight.original", "linalg_vector_norm mixes"
    ),
    "spectral_norm_hook": spectral(spectral_norm, "b.weight_orig", "the product at op_models.py:"),
    "renormalised_embedding": custom(
        lambda m, x: m.c(torch.tanh(m.b(m.e(x)))), {"b": 6},
        {"e.weight[1]": "the forward pass in train() changes e.weight", "e.weight[0]": "rows of the embedding"},
        tokens, e=lambda: nn.Embedding(10, 8, max_norm=1.0), b=linear(8, 6), c=linear(6, 2),
    ),
    "custom_op": custom(
        lambda m, x: m.c(torch.tanh(deformed(torch.tanh(m.b(torch.tanh(m.a(x)))), m.o(x), m.w))).mean((2, 3)),
        {"a": 8}, {"b.weight[0]": "no rule for deformed", "w[1]": "no rule for deformed, called at op_"},
        maps, a=lambda: nn.Conv2d(3, 8, 3, padding=1), b=lambda: nn.Conv2d(8, 6, 1), o=lambda: nn.Conv2d(3, 18, 1),
        w=(5, 6, 3, 3), c=lambda: nn.Conv2d(5, 2, 1),
    ),
    "orthogonal": custom(
        lambda m, x: m.c(torch.tanh(m.b(x))) + m.d(torch.tanh(m.a(x))), {"a": 8, "b.parametrizations.weight.0": 6},
        {"b.parametrizations.weight.original[0]": "triangle"},
        b=lambda: parametrizations.orthogonal(nn.Linear(4, 6)), c=linear(6, 2), d=linear(8, 2), **A,
    ),
}  # fmt: skip
