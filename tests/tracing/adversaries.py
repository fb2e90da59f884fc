"""Little modules on which a careless tracer gives a silently wrong answer, and what a careful one must say."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class Between(nn.Module):
    """stem -> `f(self, h)` -> head; `f` is the trap, and may use the parameters given."""

    def __init__(
        self, f: Callable[[Any, Tensor], Tensor], width: int = 8, out: int | None = None, **parts: Any
    ) -> None:
        super().__init__()
        self.stem = nn.Linear(5, width)
        self.f = f
        self.head = nn.Linear(out or width, 3)
        self.other = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))  # always resizable
        for name, value in parts.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.f(self, torch.tanh(self.stem(x)))) + self.other(x)


class Image(nn.Module):
    """The same around convolutions."""

    def __init__(
        self, f: Callable[[Any, Tensor], Tensor], width: int = 8, out: int | None = None, **parts: Any
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.f = f
        self.head = nn.Conv2d(out or width, 4, 1)
        self.other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
        for name, value in parts.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.f(self, torch.relu(self.stem(x)))).mean((2, 3)) + self.other(x).mean((2, 3))


@dataclass(frozen=True)
class Trap:
    """A module and the answer.

    Attributes:
        stem: units of `stem` that can be resized (0: frozen).
        reason: part of the reason if frozen.
        groups: further groups that must be there, with their sizes.
    """

    make: Callable[[], nn.Module]
    stem: int
    reason: str = ""
    groups: dict[str, int] = field(default_factory=dict)
    x: tuple[int, ...] = (4, 5)


P = nn.Parameter


def lin(f: Callable[[Any, Tensor], Tensor], stem: int = 8, reason: str = "", groups: Any = None, **kw: Any) -> Trap:
    return Trap(lambda: Between(f, **{k: v() if callable(v) and not isinstance(v, nn.Module) else v for k, v in kw.items()}),
                stem, reason, groups or {})  # fmt: skip


def img(f: Callable[[Any, Tensor], Tensor], stem: int = 8, reason: str = "", groups: Any = None, **kw: Any) -> Trap:
    return Trap(lambda: Image(f, **{k: v() if callable(v) and not isinstance(v, nn.Module) else v for k, v in kw.items()}),
                stem, reason, groups or {}, (4, 3, 6, 6))  # fmt: skip


def randn(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


def param(*shape: int) -> Callable[[], Tensor]:
    return lambda: P(torch.randn(*shape) * 0.5)


CONST = torch.linspace(-1, 1, 8)
ONES = torch.ones(8)
PERM = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])


def written(s: Any, h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out[:, :4] = h[:, :4] * 2
    out[:, 4:] = h[:, 4:]
    return out


def ema(s: Any, h: Tensor) -> Tensor:
    with torch.no_grad():
        s.seen.copy_(h.mean(0))
    return h


def hyper(s: Any, h: Tensor) -> Tensor:
    n, c, a, b = h.shape
    kernel = s.gen(h.mean((2, 3))).view(n * c, 1, 3, 3)
    return F.conv2d(h.reshape(1, n * c, a, b), kernel, groups=n * c, padding=1).view(n, c, a, b)


def hyper_mix(s: Any, h: Tensor) -> Tensor:
    n, c, a, b = h.shape
    kernel = s.gen(h.mean((2, 3))).view(n * 6, 8, 1, 1)
    return F.conv2d(h.reshape(1, n * c, a, b), kernel, groups=n).view(n, 6, a, b)


def standardised(s: Any, h: Tensor) -> Tensor:
    w = s.w - s.w.mean((1, 2, 3), keepdim=True)
    return F.conv2d(h, w / (w.std((1, 2, 3), keepdim=True) + 1e-5))


def embedded(s: Any, h: Tensor) -> Tensor:
    return h + s.table((h > 0).long()).sum((1, 2))[:, None] * torch.ones_like(h)


def seeded(h: Tensor, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
    return h * draw(torch.Generator().manual_seed(0))


def reseeded(s: Any, h: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return h + torch.randn_like(h)


def table(h: Tensor, rows: int) -> Tensor:
    return (torch.arange(h.shape[1]) * 0.1).expand(rows, -1).contiguous()


def looked_up(s: Any, h: Tensor) -> Tensor:
    return h + s.table[(h > 0).long()].sum((1, 2))[:, None] * torch.ones_like(h)


TRAPS: dict[str, Trap] = {
    # mixing
    "maxout": lin(lambda s, h: h.view(4, -1, 2).amax(-1), stem=4, out=4),
    "maxout_halves": lin(lambda s, h: h.view(4, 2, -1).amax(1), stem=4, out=4),
    "mean": lin(lambda s, h: h - h.mean(1, keepdim=True), 0, "mean"),
    "softmax": lin(lambda s, h: h.softmax(1), 0, "softmax"),
    "sort": lin(lambda s, h: h.sort(1).values, 0, "sort"),
    "topk": lin(lambda s, h: h.topk(4, 1).values, 0, "topk", out=4),
    "cumsum": lin(lambda s, h: h.cumsum(1), 0, "cumsum"),
    "norm": lin(lambda s, h: F.normalize(h, dim=1), 0, "norm"),
    "fft": lin(lambda s, h: torch.fft.fft(h).real, 0, "fft"),
    "logsumexp": lin(lambda s, h: h - h.logsumexp(1, keepdim=True), 0, ""),
    "padded_softmax": lin(lambda s, h: F.pad(h.view(4, -1, 2), (1, 0)).softmax(2)[:, :, 1:].reshape(4, -1), 4),
    "max_all": lin(lambda s, h: h / h.abs().max(), 0, "max"),
    "argmax": lin(lambda s, h: h * h.argmax(1, keepdim=True), 0, ""),
    "cosine": lin(lambda s, h: h * F.cosine_similarity(h, h.flip(0), dim=1)[:, None], 0, ""),
    "cdist": lin(lambda s, h: h * torch.cdist(h, h).sum(1, keepdim=True), 0, "cdist"),
    "gram": lin(lambda s, h: (h @ h.t()) @ h, 0, "mixes"),
    "layer_norm": lin(lambda s, h: F.layer_norm(h, (h.shape[1],)), 0, "layer_norm"),
    "rms_norm": lin(lambda s, h: s.n(h), 0, "", n=lambda: nn.RMSNorm(8)),
    "local_response": img(lambda s, h: F.local_response_norm(h, 3), 0, ""),
    # one unit against others
    "first": lin(lambda s, h: h * h[:, :1], 7),
    "select": lin(lambda s, h: h * h[:, 0].mean(), 7),
    "select_row": lin(lambda s, h: h + h[:, 2:3].exp(), 0, "units move to other places"),
    "shifted": lin(lambda s, h: h + h.roll(1, 1), 0, ""),
    "half": lin(lambda s, h: h[:, ::2] * h[:, 1::2], 4, out=4),
    "flip": lin(lambda s, h: torch.cat([h, -h.flip(1)], 1), 8, out=16),
    "outer": lin(lambda s, h: (h[:, :, None] * h[:, None, :]).flatten(1), 0, "", out=64),
    "outer_two": lin(lambda s, h: (h[:, :, None] * s.g(h)[:, None, :]).flatten(1), 8, out=24, g=lambda: nn.Linear(8, 3)),
    # sizes that enter the values
    "divided_by_width": lin(lambda s, h: h / h.shape[1], 0, "depends on the size"),
    "width_power": lin(lambda s, h: h * h.shape[1] ** -0.5, 0, "depends on the size"),
    "width_tensor": lin(lambda s, h: h * torch.tensor(float(h.shape[1])), 0, "depends on the size"),
    "width_full": lin(lambda s, h: h + torch.full_like(h, h.shape[1]), 0, "depends on the size"),
    "width_new_full": lin(lambda s, h: h + h.new_full((1,), h.shape[1]), 0, "depends on the size"),
    "width_arange": lin(lambda s, h: h + torch.arange(h.shape[1]).sum(), 0, "depends on the size"),
    "width_clamp": lin(lambda s, h: h.clamp(max=h.shape[1] / 16), 0, "depends on the size"),
    "width_ones_sum": lin(lambda s, h: h * torch.ones_like(h).sum(1, keepdim=True), 0, ""),
    "width_fill": lin(lambda s, h: h * torch.empty_like(h).fill_(h.shape[1]), 0, "depends on the size"),
    "width_fill_tensor": lin(lambda s, h: h * h.new_empty(1).fill_(torch.tensor(1.0 * h.shape[1])), 0, "depends on the size"),
    "width_overwrites": lin(lambda s, h: h + (h * 1).fill_(h.shape[1]), 0, "depends on the size"),
    "width_alpha": lin(lambda s, h: torch.addmm(h, h, s.w, alpha=h.shape[1]), 0, "depends on the size", w=param(8, 8)),
    "width_beta": lin(lambda s, h: torch.addmm(h, h, s.w, beta=h.shape[1]), 0, "depends on the size", w=param(8, 8)),
    "width_randint": lin(lambda s, h: h + torch.randint(h.shape[1], h.shape[1] + 1, (1,)), 0, "depends on the size"),
    "width_flag": lin(lambda s, h: F.gelu(h, approximate="tanh" if h.shape[1] % 2 else "none"), 0, "depends on the size"),
    "width_branch": lin(lambda s, h: h * 2 if h.shape[1] % 2 else h * 3, 0, "depends on the size"),
    "width_eye": lin(lambda s, h: h @ (torch.eye(h.shape[1]).to(h) * 2), 0, ""),
    # constants and parameters as data
    "constant": lin(lambda s, h: h * CONST, 0, "fixed size"),
    "arange": lin(lambda s, h: h * torch.arange(h.shape[1]), 0, ""),
    "ones": lin(lambda s, h: h * ONES, 0, "fixes this size"),
    "buffer": lin(lambda s, h: h * s.b, 8, b=randn(8)),
    "int_buffer": lin(lambda s, h: h * s.b, 0, "", b=lambda: torch.arange(8)),
    "scalar_parameter": lin(lambda s, h: h * s.b, 8, b=param(1)),
    "parameter_mean": lin(lambda s, h: h * s.b.mean(), 8, b=param(8)),
    "parameter_softmax": lin(lambda s, h: h * s.b.softmax(0), 0, "", b=param(8)),
    "parameter_row": lin(lambda s, h: h * s.b[0], 8, b=param(3, 8)),
    "permuted": lin(lambda s, h: h[:, PERM], 0, ""),
    "picked": lin(lambda s, h: h[:, torch.tensor([1, 6])], 0, "", out=2),
    "picked_twice": lin(lambda s, h: torch.cat([h, h[:, torch.tensor([1, 6])]], 1), 0, "", out=10),
    "picked_last": lin(lambda s, h: h + h[:, h.shape[1] - 1 :], 7),
    "pruning_mask": lin(lambda s, h: F.linear(h, s.w * s.m), 8, "", w=param(8, 8), m=lambda: (torch.randn(8, 8) > 0).float()),
    "written": lin(written, 0, ""),
    "ema": lin(ema, 8, "", seen=randn(8)),
    "overwritten": lin(lambda s, h: h + (h * 2).zero_(), 8),
    "picked_by_mask": lin(lambda s, h: F.pad(h, (1, 0))[:, (~h.new_zeros(h.shape[1], dtype=torch.bool)).cumsum(0)], 8),
    "complement": lin(lambda s, h: h[:, (~h.new_ones(h.shape[1], dtype=torch.bool)).long() + torch.arange(h.shape[1])], 8),
    "cast_mask": lin(lambda s, h: F.linear(h, s.w + h.new_full((1,), 256, dtype=torch.bool).to(torch.uint8)), 0,
                     "zero does not pass", out=6, w=param(6, 8)),
    "complement_plus_two": lin(lambda s, h: F.linear(h, s.w + (~h.new_ones(1, dtype=torch.bool) + 2)), 0,
                               "zero does not pass", out=6, w=param(6, 8)),
    "half_table": lin(lambda s, h: h * (torch.arange(h.shape[1]) * 0.1).bfloat16(), 0, "fixed size"),
    "noisy_table": lin(lambda s, h: h * torch.normal(torch.arange(h.shape[1]) * 0.1, 0.0), 0, "fixed size"),
    "row_of_a_table": lin(lambda s, h: h * table(h, 2)[(s.g(h)[:, 0] > 0).long()], 0, "fixed size", g=lambda: nn.Linear(8, 3)),
    "strided": lin(lambda s, h: h.t().as_strided(h.shape, (h.shape[1], 1)), 8),
    "strided_beside": lin(lambda s, h: h[:, 1:].as_strided(h.shape, (h.shape[1], 1), 0), 0, "reads beside its input"),
    # draws that repeat
    "seeded": lin(lambda s, h: seeded(h, lambda g: torch.rand(h.shape[1], generator=g)), 0, "fixed size"),
    "seeded_in_place": lin(lambda s, h: seeded(h, lambda g: torch.empty_like(h[0]).uniform_(generator=g)), 0, "fixed size"),
    "seeded_by_units": lin(lambda s, h: seeded(h, lambda g: torch.bernoulli(h.sigmoid(), generator=g)), 0, "a seed of the code's own"),
    "seeded_rows": lin(lambda s, h: seeded(h, lambda g: torch.rand(h.shape[0], 1, generator=g)), 8),
    "reseeded": lin(reseeded, 0, "fixed size"),
    # weights computed from parameters
    "transposed": lin(lambda s, h: h @ s.w.t(), 8, "", {"w": 6}, out=6, w=param(6, 8)),
    "plain_matmul": lin(lambda s, h: h @ s.w, 8, "", {"w": 6}, out=6, w=param(8, 6)),
    "einsum": lin(lambda s, h: torch.einsum("bi,io->bo", h, s.w), 8, "", {"w": 6}, out=6, w=param(8, 6)),
    "bilinear": lin(lambda s, h: s.n(h, h), 8, out=4, n=lambda: nn.Bilinear(8, 8, 4)),
    "cat_rows": lin(lambda s, h: F.linear(h, torch.cat([s.a, s.b])), 8, "", out=6, a=param(2, 8), b=param(4, 8)),
    "cat_ones": lin(lambda s, h: F.linear(h, torch.cat([s.a, torch.ones_like(s.a)])), 0, "", out=4, a=param(2, 8)),
    "stacked": lin(lambda s, h: torch.einsum("bi,koi->bo", h, torch.stack([s.a, s.b])), 8, "", out=4, a=param(4, 8),
                   b=param(4, 8)),
    "lora": lin(lambda s, h: F.linear(h, s.w + s.a @ s.b), 8, "", out=6, w=param(6, 8), a=param(6, 2), b=param(2, 8)),
    "plus_one": lin(lambda s, h: F.linear(h, s.w + 1), 0, "", out=6, w=param(6, 8)),
    "exp_weight": lin(lambda s, h: F.linear(h, s.w.exp()), 0, "", out=6, w=param(6, 8)),
    "softmax_weight": lin(lambda s, h: F.linear(h, s.w.softmax(1)), 0, "", out=6, w=param(6, 8)),
    "softmax_rows": lin(lambda s, h: F.linear(h, s.w.softmax(0)), 0, "", out=6, w=param(6, 8)),
    "exp_sum": lin(lambda s, h: F.linear(h, s.w) * s.w.exp().sum(1), 0, "", out=6, w=param(6, 8)),
    "row_norm": lin(lambda s, h: F.linear(h, s.w / s.w.norm(dim=1, keepdim=True)), 8, "", out=6, w=param(6, 8)),
    "column_norm": lin(lambda s, h: F.linear(h, s.w / (1e-3 + s.w.norm(dim=0, keepdim=True))), 0, "", out=6, w=param(6, 8)),
    "where_weight": lin(lambda s, h: F.linear(h, torch.where(s.m, s.w, 0.5)), 0, "", out=6, w=param(6, 8),
                        m=lambda: torch.arange(48).view(6, 8) % 3 == 0),
    "filled_weight": lin(lambda s, h: F.linear(h, s.w.masked_fill(s.w > 0.3, 0.2)), 0, "", out=6, w=param(6, 8)),
    "weight_mean": lin(lambda s, h: F.linear(h, s.w) + s.w.mean(), 0, "", out=6, w=param(6, 8)),
    "weight_sum": lin(lambda s, h: F.linear(h, s.w) + s.w.sum(), 8, "", out=6, w=param(6, 8)),
    "tril": lin(lambda s, h: F.linear(h, s.w.tril()), 0, "", w=param(8, 8)),
    "autoencoder": lin(lambda s, h: torch.tanh(F.linear(h, s.w) + s.c) @ s.w, 8, "", {"w": 6}, w=param(6, 8), c=param(6)),
    "square": lin(lambda s, h: F.linear(F.linear(h, s.w), s.w), 8, "", w=param(8, 8)),
    "inverse": lin(lambda s, h: h @ torch.linalg.inv(s.w), 0, "mixes every unit", w=param(8, 8)),
    "read_as_data": lin(lambda s, h: F.linear(h * s.w[0], s.w), 8, "", out=6, w=param(6, 8)),
    "half_sum_of_columns": lin(lambda s, h: h @ s.w + torch.ones_like(h) @ s.w, 8, "", out=6, w=param(8, 6)),
    "unit_columns": lin(lambda s, h: F.linear(h, s.w / s.w.norm(dim=0)), 0, "would divide zero by zero at adv", out=6, w=param(6, 8)),
    "unit_columns_rsqrt": lin(lambda s, h: F.linear(h, s.w * s.w.square().sum(0).rsqrt()), 0, "zero does not pass", out=6, w=param(6, 8)),
    "normalised_columns": lin(lambda s, h: F.linear(h, F.normalize(s.w, dim=0)), 0, "", out=6, w=param(6, 8)),
    "columns_by_maximum": lin(lambda s, h: F.linear(h, s.w / s.w.abs().amax(0)), 0, "would divide zero", out=6, w=param(6, 8)),
    "scaled_columns": lin(lambda s, h: F.linear(h, s.w / s.g), 8, out=6, w=param(6, 8), g=param(8)),
    "unit_columns_elsewhere": lin(lambda s, h: F.linear(h, s.v / s.w.norm(dim=0)) + F.linear(h, s.w), 0, "would divide zero",
                                  out=6, w=param(6, 8), v=param(6, 8)),
    "unit_rows": lin(lambda s, h: F.linear(h, s.w / s.w.norm(dim=1, keepdim=True)), 8, "", {"w": 6}, out=6, w=param(6, 8)),
    "rows_by_minimum": lin(lambda s, h: F.linear(h, s.w / torch.linalg.vector_norm(s.w, -torch.inf, 1, True)), 0,
                           "linalg_vector_norm mixes", out=6, w=param(6, 8)),
    "weight_norm_columns": lin(lambda s, h: s.n(h), 8, out=6, n=lambda: weight_norm(nn.Linear(8, 6), dim=1)),
    "embedded": lin(embedded, 0, "", table=lambda: nn.Embedding(2, 3)),
    "looked_up": lin(looked_up, 0, "", table=param(2, 3)),
    "one_hot": lin(lambda s, h: h + F.one_hot((h > 0).long(), 2).sum((1, 2))[:, None], 0, ""),
    "gathered": lin(lambda s, h: h.gather(1, h.argsort(1)), 0, ""),
    "scattered": lin(lambda s, h: torch.zeros_like(h).scatter_add(1, torch.zeros_like(h).long(), h), 0, "scatter"),
    "index_add": lin(lambda s, h: h.index_add(0, torch.tensor([0, 1]), h[:2]), 8),
    "masked_fill": lin(lambda s, h: h.masked_fill(h > 0.5, 0.1), 8),
    "where": lin(lambda s, h: torch.where(h > 0, h, h * 2 + 1), 8),
    "glu": lin(lambda s, h: F.glu(h, 1), 4, out=4),
    "chunks": lin(lambda s, h: h.chunk(2, 1)[0] * h.chunk(2, 1)[1].sigmoid(), 4, out=4),
    "interleaved": lin(lambda s, h: h.view(4, 2, 4).transpose(1, 2).reshape(4, 8), 0, ""),
    "quarter": lin(lambda s, h: torch.cat([h[:, : h.shape[1] // 4] * 2, h[:, h.shape[1] // 4 :]], 1), 0),
    "every_third": lin(lambda s, h: torch.cat([h[:, ::3] * 2, h], 1), 0, out=11),
    "every_other_is_read": lin(lambda s, h: h[:, ::2] + 0 * s.n(h)[:, :4], 0, out=4, n=lambda: nn.Linear(8, 8)),
    "interleaved_sizes": lin(lambda s, h: h.view(4, 2, -1).transpose(1, 2).reshape(4, -1), 8),
    "repeat_interleave": lin(lambda s, h: h.repeat_interleave(2, 1), 8, out=16),
    "unit_twice": lin(lambda s, h: torch.cat([h, h], 1), 8, out=16),
    "with_input": lin(lambda s, h: torch.cat([h, h.detach() * 0 + 1], 1), 8, out=16),
    "batch_mix": lin(lambda s, h: h - h.mean(0), 8),
    "folded_batch": lin(lambda s, h: s.n(h.reshape(-1, 1)).view(4, -1, 3).flatten(1), 8, "", out=24, n=lambda: nn.Linear(1, 3)),
    "folded_attention": lin(lambda s, h: h * h.reshape(-1, 1).softmax(0).view(4, -1), 0, ""),
    # images
    "batch_norm": img(lambda s, h: s.n(h), n=lambda: nn.BatchNorm2d(8)),
    "instance_norm": img(lambda s, h: s.n(h), n=lambda: nn.InstanceNorm2d(8, affine=True)),
    "group_norm": img(lambda s, h: s.n(h), 2, n=lambda: nn.GroupNorm(2, 8)),
    "channel_attention": img(lambda s, h: h * h.mean((2, 3)).softmax(1)[:, :, None, None], 0, "softmax"),
    "squeeze": img(lambda s, h: h * s.n(h.mean((2, 3)))[:, :, None, None].sigmoid(), n=lambda: nn.Linear(8, 8)),
    "eca": img(lambda s, h: h * s.n(h.mean((2, 3))[:, None])[:, 0, :, None, None], 0, "", n=lambda: nn.Conv1d(1, 1, 3, padding=1)),
    "circular": img(lambda s, h: s.n(h), groups={"n": 8}, n=lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")),
    "reflect": img(lambda s, h: s.n(h), groups={"n": 8}, n=lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")),
    "replicate": img(lambda s, h: s.n(h), groups={"n": 8}, n=lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="replicate")),
    "pixel_shuffle": img(lambda s, h: F.pixel_shuffle(h, 2), 2, out=2),
    "pixel_unshuffle": img(lambda s, h: F.pixel_unshuffle(h, 2), 8, out=32),
    "nearest": img(lambda s, h: F.interpolate(h, scale_factor=2), 8),
    "bilinear_resize": img(lambda s, h: F.interpolate(h, scale_factor=2, mode="bilinear"), 8),
    "unfold": img(lambda s, h: F.unfold(h, 3).view(4, -1, 4, 4), 8, out=72),
    "standardised": img(standardised, 0, "", out=6, w=param(6, 8, 1, 1)),
    "hyper": img(hyper, 0, "", gen=lambda: nn.Linear(8, 72)),
    "hyper_mix": img(hyper_mix, 0, "", out=6, gen=lambda: nn.Linear(8, 48)),
    "grouped": img(lambda s, h: s.n(h), 4, "", {"n": 3}, out=6, n=lambda: nn.Conv2d(8, 6, 3, groups=2)),
    "grouped_plus_one": img(lambda s, h: F.conv2d(h, s.w + 1, groups=2), 0, "", out=6, w=param(6, 4, 1, 1)),
    "multiplier": img(lambda s, h: s.n(h), 8, "", out=16, n=lambda: nn.Conv2d(8, 16, 3, groups=8)),
    "transposed_depthwise": img(lambda s, h: s.n(h), 8, "", n=lambda: nn.ConvTranspose2d(8, 8, 2, groups=8)),
    "transposed_grouped": img(lambda s, h: s.n(h), 4, "", {"n": 3}, out=6, n=lambda: nn.ConvTranspose2d(8, 6, 2, groups=2)),
    "pool_channels": img(lambda s, h: F.avg_pool3d(h[:, None], (2, 1, 1))[:, 0], 0, "avg_pool3d", out=4),
    "space_to_channels": img(lambda s, h: h.view(4, 8, 36).transpose(1, 2)[:, :8].reshape(4, 8, 8, 1), 0, ""),
    "dropout2d": img(lambda s, h: F.dropout2d(h, 0.0, s.training), 8),
    "channels_as_batch": img(lambda s, h: s.n(h.reshape(-1, 1, 6, 6)).view(4, -1, 6, 6), 8, "", out=16,
                             n=lambda: nn.Conv2d(1, 2, 1)),
    "weight_norm_transposed": img(lambda s, h: s.n(h), 8, out=6, n=lambda: weight_norm(nn.ConvTranspose2d(8, 6, 2))),
    "weight_norm_grouped": img(lambda s, h: s.n(h), 4, "", out=6, n=lambda: weight_norm(nn.Conv2d(8, 6, 2, groups=2))),
    "shuffle": img(lambda s, h: h.view(4, 2, -1, 6, 6).transpose(1, 2).reshape(4, -1, 6, 6), 8),
}  # fmt: skip
