"""Small models, each around one op or module: what lies between two layers, or takes their place."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Make = Callable[[], nn.Module]


class Custom(nn.Module):
    """Parts by name, and a forward pass of one function."""

    def __init__(self, f: Callable[..., Tensor], parts: dict[str, Any]) -> None:
        super().__init__()
        self.f = f
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(torch.randn(*part) / 2) if isinstance(part, tuple) else part())

    def forward(self, *inputs: Any) -> Tensor:
        return self.f(self, *inputs)


@dataclass(frozen=True)
class Case:
    """One model, what it is given, what can be resized in it, and why the rest cannot.

    Attributes:
        make: builds it.
        inputs: makes its inputs.
        groups: name -> size of every group that must be resizable, and of no other.
        frozen: tensor[axis] -> part of its reason.
        double: it runs in float64, so that training can be compared.
    """

    make: Make
    inputs: Callable[[], Any]
    groups: dict[str, int]
    frozen: dict[str, str] = field(default_factory=dict)
    double: bool = True


def rows() -> Tensor:
    return torch.randn(6, 4)


def sequence() -> Tensor:
    return torch.randn(2, 5, 4)


def maps() -> Tensor:
    return torch.randn(2, 3, 4, 4)


def graph() -> Any:
    """Nodes, and edges from and to them; a node may have several, or none."""
    return torch.randn(6, 4), torch.tensor([0, 1, 2, 2, 5, 4, 3]), torch.tensor([1, 0, 1, 3, 2, 5, 5])


def places() -> Any:
    """Nodes, and as many places: each at most once."""
    return torch.randn(6, 4), torch.tensor([3, 4]), torch.tensor([1, 0])


def adjacent() -> Any:
    """Nodes, and a sparse matrix of which are adjacent."""
    return torch.randn(6, 4), (torch.rand(6, 6) < 0.4).float().to_sparse()


def tokens() -> Tensor:
    return torch.randint(0, 10, (3, 4))


def between(
    f: Callable[..., Tensor],
    inputs: Callable[[], Any] = rows,
    frozen: str = "",
    out: int = 8,
    double: bool = True,
    groups: dict[str, int] | None = None,
    **parts: Any,
) -> Case:
    """An op between two linear layers: eight units `a` of the first, unless they are frozen."""

    def forward(m: Custom, x: Tensor, *rest: Any) -> Tensor:
        h = torch.tanh(m.a(x))
        return m.c(torch.tanh(m.b(f(m, h, *rest) if parts else f(h, *rest))))

    layers = dict(a=lambda: nn.Linear(4, 8), b=lambda: nn.Linear(out, 6), c=lambda: nn.Linear(6, 2))
    found = {"b": 6} if frozen else {"a": 8, "b": 6}
    return Case(
        lambda: Custom(forward, layers | parts), inputs, found | (groups or {}),
        {"a.weight[0]": frozen} if frozen else {}, double,
    )  # fmt: skip


def over_maps(
    f: Callable[..., Tensor], frozen: str = "", out: int = 8, groups: dict[str, int] | None = None, **parts: Any
) -> Case:
    """An op between two convolutions."""

    def forward(m: Custom, x: Tensor) -> Tensor:
        h = torch.tanh(m.a(x))
        return m.c(torch.tanh(m.b(f(m, h) if parts else f(h))).mean((2, 3)))

    layers = dict(a=lambda: nn.Conv2d(3, 8, 3, padding=1), b=lambda: nn.Conv2d(out, 4, 1), c=lambda: nn.Linear(4, 2))
    return Case(
        lambda: Custom(forward, layers | parts), maps, groups or ({"b": 4} if frozen else {"a": 8, "b": 4}),
        {"a.weight[0]": frozen} if frozen else {}, 
    )  # fmt: skip


def custom(
    f: Callable[..., Tensor], groups: dict[str, int], frozen: dict[str, str] | None = None,
    inputs: Callable[[], Any] = rows, **parts: Any,
) -> Case:  # fmt: skip
    """A model of its own: a function of named parts."""
    return Case(lambda: Custom(f, parts), inputs, groups, frozen or {})


def columns(index: Tensor, h: Tensor) -> Tensor:
    return index[:, None].expand(-1, h.shape[1])


def assigned(h: Tensor, at: Any, value: Any) -> Tensor:
    out = h.clone()
    out[at] = value
    return out


def graph_attention(m: Any, h: Tensor, s: Tensor, d: Tensor) -> Tensor:
    e = torch.exp(m.e(torch.cat([h[s], h[d]], 1)))
    return torch.zeros_like(h).index_add(0, d, h[s] * e / torch.zeros_like(h[:, :1]).index_add(0, d, e)[d])


def message_passing(m: Any, h: Tensor, s: Tensor, d: Tensor) -> Tensor:
    z = torch.relu(m.e(torch.cat([h[s], h[d]], 1)))
    return z.new_zeros(6, z.shape[1]).index_add(0, d, z)


ROWS = {
    "sparse_product": between(lambda h, a: torch.sparse.mm(a, h), adjacent),
    "sparse_product_compressed": between(lambda h, a: a.to_sparse_csr() @ h, adjacent, double=False),
    "sparse_constant": between(lambda h: torch.sparse.mm(torch.eye(6, dtype=h.dtype).to_sparse(), h)),
    "fake_quantized": between(lambda h: torch.fake_quantize_per_tensor_affine(h, 0.1, 0, -128, 127), double=False),
    "forward_gradient": between(lambda h: torch.func.jvp(torch.tanh, (h,), (torch.ones_like(h),))[1]),
    "other_bits": between(
        lambda h: h.view(torch.int32).view(torch.float32), frozen="no rule for view in this form", double=False
    ),
    "scatter_add": between(lambda h, s, d: torch.zeros_like(h).scatter_add(0, columns(d, h), h[s]), graph),
    "scatter_add_repeated_index": between(
        lambda h, s, d: h.scatter_add(0, d[:, None].repeat(1, h.shape[1]).clone(), h[s]), graph
    ),
    "scatter_add_constant_index": between(
        lambda h: torch.zeros_like(h).scatter_add(0, columns(torch.tensor([0, 1, 1, 2, 3, 3]), h), h)
    ),
    "scatter_add_units": between(
        lambda h, i: torch.zeros_like(h).scatter_add(1, i, h), lambda: (rows(), torch.randint(0, 8, (6, 8))),
        "scatter_add writes at positions",
    ),
    "scatter_add_rows_of_each_unit": between(
        lambda h: torch.zeros_like(h).scatter_add(0, (torch.arange(48) % 5).view(6, 8), h),
        frozen="scatter_add writes at positions that differ",
    ),
    "scatter": between(lambda h, s, d: torch.zeros_like(h).scatter(0, columns(d, h), h[s]), places),
    "scatter_value": between(lambda h, s, d: h.scatter(0, columns(d, h), 1.0), places),
    "scatter_at_the_largest": between(
        lambda h: (
            h + torch.zeros(2, 3, h.shape[1]).scatter(1, h.view(2, 3, -1).argmax(1, keepdim=True), 1.0).view(6, -1)
        )
    ),
    "index_add": between(lambda h, s, d: torch.zeros_like(h).index_add_(0, d, h[s], alpha=0.5), graph),
    "index_add_units": between(
        lambda h: torch.zeros_like(h).index_add(1, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), h),
        frozen="x[:, index] or torch.cat",
    ),
    "index_copy": between(lambda h, s, d: torch.zeros_like(h).index_copy(0, d, h[s]), places),
    "index_fill": between(lambda h, s, d: h.index_fill(0, d, 0.5), places),
    "index_reduce": between(lambda h, s, d: h.index_reduce(0, d, h[s], "amax"), graph, double=False),
    "index_put": between(lambda h, s, d: torch.zeros_like(h).index_put((d,), h[s], accumulate=True), graph),
    "assignment": between(lambda h, s, d: assigned(h, d, torch.relu(h[s])), places),
    "assigned_number": between(lambda h, s, d: assigned(h, d, 0.5), places),
    "assigned_where": between(lambda h: assigned(h, torch.tensor([1, 0, 1, 1, 0, 0]).bool(), 0.5)),
    "assigned_parameter": between(lambda m, h, s, d: assigned(h, d, m.token), places, token=(8,)),
    "assigned_units": between(
        lambda h: assigned(torch.zeros_like(h), (slice(None), torch.arange(h.shape[1] - 1, -1, -1)), h),
        frozen="index_put writes at positions",
    ),
    "segment_reduce": between(
        lambda h, n: torch.segment_reduce(h, "mean", lengths=n, axis=0), lambda: (rows(), torch.tensor([2, 1, 3]))
    ),
    "masked_scatter": between(
        lambda h, m: h.masked_scatter(m[:, None].expand_as(h), torch.relu(h)),
        lambda: (rows(), torch.arange(6) % 2 == 0),
    ),
    "masked_scatter_elements": between(
        lambda h, m: h.masked_scatter(m, torch.relu(h)), lambda: (rows(), torch.arange(48).view(6, 8) % 3 == 0),
        "one entry per row",
    ),
    "graph_attention": between(
        graph_attention, graph, e=lambda: nn.Linear(16, 1),
    ),
    "message_passing": between(
        message_passing, graph, groups={"e": 5}, out=5, e=lambda: nn.Linear(16, 5),
    ),
    **{
        f"scatter_reduce_{how}": between(
            lambda h, s, d, how=how: h.scatter_reduce(0, columns(d, h), h[s], how, include_self=how != "mean"), graph
        )
        for how in ("sum", "mean", "amax", "amin", "prod")
    },
}  # fmt: skip

PLACES = {
    "triu": between(lambda h: h.triu(), lambda: torch.randn(8, 4), "triangle"),
    "tril": between(lambda h: h.tril(-1), lambda: torch.randn(20, 4), "triangle"),
    "tril_of_positions": custom(
        lambda m, x: m.c(m.w.tril() @ torch.tanh(m.a(x))), {"a": 8}, {"w[1]": "triangle"},
        a=lambda: nn.Linear(4, 8), w=(6, 6), c=lambda: nn.Linear(8, 2),
    ),
    "tril_of_weight": custom(
        lambda m, x: m.c(torch.tanh(m.d(x) * 2)) + m.e(torch.tanh(m.a(x)) @ m.w.tril()), {"d": 5},
        {"a.weight[0]": "triangle", "w[0]": "triangle"},
        a=lambda: nn.Linear(4, 8), w=(8, 8), e=lambda: nn.Linear(8, 2), d=lambda: nn.Linear(4, 5),
        c=lambda: nn.Linear(5, 2),
    ),
    "diagonal": between(lambda h: h.diagonal()[None], lambda: torch.randn(20, 4), "the diagonal pairs"),
    "diagonal_of_weight": custom(
        lambda m, x: m.c(torch.tanh(m.a(x)) * m.w.diagonal()), {"a": 8}, a=lambda: nn.Linear(4, 8), w=(8, 8),
        c=lambda: nn.Linear(8, 2),
    ),
    "pairs": between(
        lambda h: h[torch.arange(h.shape[1]), torch.arange(h.shape[1])][None], lambda: torch.randn(20, 4),
        "picked together with another axis",
    ),
    "take_along_dim": between(
        lambda h: torch.take_along_dim(h, torch.arange(h.shape[1])[None], 0), lambda: torch.randn(20, 4),
        "differ from unit",
    ),
    "gather_rows": between(lambda h: h.gather(0, h.argsort(0))),
    "take_along_dim_by_input": between(
        lambda h, i: torch.take_along_dim(h, i[:, None], 0), lambda: (rows(), torch.tensor([3, 0, 3]))
    ),
    "gather_by_input": between(lambda h, i: h.gather(0, columns(i, h)), lambda: (rows(), torch.tensor([3, 0, 3]))),
    "gather_units": between(lambda h: h.gather(1, h.argsort(1)), frozen="sort mixes"),
    "quantile": between(lambda h: h - h.quantile(0.5, 0)),
    "kthvalue": between(lambda h: h - h.kthvalue(2, 0)[0]),
    "sort_rows": between(lambda h: h.sort(0)[0]),
    "sort_units": between(lambda h: h.sort(1)[0], frozen="sort mixes"),
    "topk_rows": between(lambda h: h.topk(3, 0)[0]),
    "topk_units": between(lambda h: h * (h >= h.topk(3, 1)[0][:, -1:]), frozen="topk mixes"),
    "cumsum_rows": between(lambda h: h.cumsum(0)),
    "cumsum_units": between(lambda h: h.cumsum(1), frozen="cumsum mixes"),
    "roll_rows": between(lambda h: h.roll(2, 0)),
    "roll_units": between(lambda h: h + h.roll(1, 1), frozen="one unit"),
    "renorm_units": between(lambda h: h.renorm(2, 1, 1.0)),
    "renorm_rows": between(lambda h: h.renorm(2, 0, 1.0), frozen="renorm mixes"),
    "searchsorted": between(lambda h: h * torch.searchsorted(torch.tensor([0.0, 0.5]).to(h), h.contiguous())),
    "searchsorted_by_rows": between(
        lambda h: h * torch.searchsorted(h.sort(0).values.T.contiguous(), h.T.contiguous()).T, frozen="others along a"
    ),
    "mse_of_each": between(lambda h: F.mse_loss(h, h.detach() * 0.5, reduction="none")),
    "huber_of_each": between(lambda h: h + F.huber_loss(h, torch.zeros_like(h), reduction="none", delta=0.5)),
    "smooth_l1_in_mean": between(lambda h: h * F.smooth_l1_loss(h, torch.zeros_like(h)), frozen="smooth_l1_loss mixes"),
    "mse_in_sum": between(lambda h: h * F.mse_loss(h, torch.zeros_like(h), reduction="sum"), frozen="mse_loss mixes"),
    "polar": between(lambda h: torch.polar(h, h * 2).real),
    "bucketize": between(lambda h: h * torch.bucketize(h, torch.tensor([0.0, 0.5]))),
    "constant_of_one_column": between(
        lambda h: h + torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")[0][:, :1]
    ),
}  # fmt: skip
