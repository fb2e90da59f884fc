"""`nn.MultiheadAttention` in plain linear layers, whose number of heads is a matter of their shapes."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npn.errors import ConfigurationError
from npn.modules.select import HOOKS

_FUSED = ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class UnfusedAttention(nn.Module):
    """`nn.MultiheadAttention` with linear layers `q_proj`, `k_proj`, `v_proj`, `out_proj`; `npn.unfuse` makes it.

    Called as `nn.MultiheadAttention` is. It loads the `state_dict` of one.

    Args:
        fused: whose parameters, hooks and mode it takes over.

    Attributes:
        head_dim: channels of a head, fixed; the number of heads follows from the shapes.
        dropout, batch_first, add_zero_attn: of the fused module.
        in_proj_weight, in_proj_bias: None, by which torch's encoder layers know that there are no fused weights.
    """

    in_proj_weight = None
    in_proj_bias = None
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        self.head_dim, self.dropout = fused.head_dim, fused.dropout
        self.batch_first, self.add_zero_attn = fused.batch_first, fused.add_zero_attn
        self._qkv_same_embed_dim = fused._qkv_same_embed_dim
        state = {name: p.detach() for name, p in fused.named_parameters(recurse=False)}
        needs = {name: p.requires_grad for name, p in fused.named_parameters(recurse=False)}
        plain, needs = _unfused(state), _unfused(needs)
        for name in ("q_proj", "k_proj", "v_proj"):
            self.add_module(name, _linear(plain, needs, name))
        self.out_proj = _same_linear(fused.out_proj)
        self.bias_k, self.bias_v = fused.bias_k, fused.bias_v
        self.train(fused.training)
        for kind in HOOKS:
            setattr(self, kind, getattr(fused, kind))

    @property
    def embed_dim(self) -> int:
        """Channels of the output."""
        return int(self.out_proj.weight.shape[0])

    @property
    def num_heads(self) -> int:
        """Heads that are there."""
        return int(self.q_proj.weight.shape[0] // self.head_dim)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As of `nn.MultiheadAttention`."""
        if is_causal and attn_mask is None:
            raise ConfigurationError("is_causal is a hint about attn_mask, got no attn_mask; pass both")
        batched = query.dim() == 3
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        k, v = self.k_proj(key), self.v_proj(value)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1)], 1)
        q, k, v = self._heads(self.q_proj(query)), self._heads(k), self._heads(v)
        if self.add_zero_attn:
            k, v = (torch.cat([t, torch.zeros_like(t[:, :, :1])], 2) for t in (k, v))
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = self._mask(None if causal else attn_mask, key_padding_mask, q, k.shape[2])
        p = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * math.sqrt(1.0 / self.head_dim) @ k.transpose(2, 3)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), p)
            h = weights @ v
        else:
            h = F.scaled_dot_product_attention(q, k, v, mask, p, causal)
        h = self.out_proj(h.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return h.squeeze(0), None if weights is None else weights.squeeze(0)
        return h if self.batch_first else h.transpose(0, 1), weights

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, length, heads * head_dim) -> (batch, heads, length, head_dim)."""
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return heads

    def _mask(self, mask: Tensor | None, padding: Tensor | None, q: Tensor, length: int) -> Tensor | None:
        """What is added to the scores: (batch or 1, heads or 1, queries or 1, keys), or None."""
        total = None
        if mask is not None:
            total = _added(mask, q.dtype)
            total = total.unflatten(0, (q.shape[0], -1)) if mask.dim() == 3 else total[None, None]
        if padding is not None:
            added = _added(padding, q.dtype)[:, None, None, :]
            total = added if total is None else total + added
        # the learned key and the zero key come after the others, and are always seen
        extra = 0 if total is None else length - total.shape[-1]
        return F.pad(total, (0, extra)) if total is not None and extra else total

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Read the parameters of a fused module as well."""
        fused = {name: state_dict.pop(prefix + name) for name in _FUSED if prefix + name in state_dict}
        state_dict.update({prefix + name: value for name, value in _unfused(fused).items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def fused(self) -> nn.MultiheadAttention:
        """The same as a `nn.MultiheadAttention`; `npn.fuse` puts it in place.

        Raises:
            ConfigurationError: heads or inputs have come or gone, and `nn.MultiheadAttention` is of fixed sizes.
        """
        projections = [self.q_proj, self.k_proj, self.v_proj]
        size, inner = self.embed_dim, self.num_heads * self.head_dim
        if not all(type(layer) is nn.Linear for layer in projections):
            raise ConfigurationError("some of its inputs were removed; nn.MultiheadAttention reads all of them")
        reads = [int(layer.weight.shape[1]) for layer in projections]
        if inner != size or reads[0] != size:
            raise ConfigurationError(
                f"it has {self.num_heads} heads of {self.head_dim} channels and reads {reads} channels as query, key "
                f"and value; nn.MultiheadAttention of {size} channels has {size / self.head_dim:g} such heads"
            )
        bias = self.q_proj.bias is not None
        options: Any = {"kdim": reads[1], "vdim": reads[2], "batch_first": self.batch_first, "device": "meta"}
        new = nn.MultiheadAttention(
            size, self.num_heads, self.dropout, bias, self.bias_k is not None, self.add_zero_attn, **options
        )
        if new._qkv_same_embed_dim:
            new.in_proj_weight = _joined([layer.weight for layer in projections])
        else:
            for layer, name in zip(projections, ("q", "k", "v"), strict=True):
                setattr(new, f"{name}_proj_weight", nn.Parameter(layer.weight.detach(), layer.weight.requires_grad))
        if bias:
            new.in_proj_bias = _joined([layer.bias for layer in projections])
        new.out_proj.weight, new.out_proj.bias = self.out_proj.weight, self.out_proj.bias
        new.bias_k, new.bias_v = self.bias_k, self.bias_v
        new.train(self.training)
        for kind in HOOKS:
            setattr(new, kind, getattr(self, kind))
        return new

    def extra_repr(self) -> str:
        """Heads and their size."""
        return f"heads={self.num_heads}, head_dim={self.head_dim}, batch_first={self.batch_first}"


def _unfused(state: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of linear layers from those of a fused module; other values than tensors are repeated."""
    plain: dict[str, Any] = {}
    for leaf in ("weight", "bias"):
        if f"in_proj_{leaf}" in state:
            whole = state[f"in_proj_{leaf}"]
            parts = [part.clone() for part in whole.chunk(3)] if isinstance(whole, Tensor) else [whole] * 3
            plain |= {f"{name}_proj.{leaf}": part for name, part in zip("qkv", parts, strict=True)}
    return plain | {f"{n}_proj.weight": state[f"{n}_proj_weight"] for n in "qkv" if f"{n}_proj_weight" in state}


def _linear(state: Mapping[str, Tensor], needs: Mapping[str, bool], name: str) -> nn.Linear:
    """A linear layer with these parameters, which the random state knows nothing of."""
    rows, columns = state[f"{name}.weight"].shape
    layer = nn.Linear(columns, rows, f"{name}.bias" in state, device="meta")
    for leaf in ("weight", "bias"):
        if f"{name}.{leaf}" in state:
            setattr(layer, leaf, nn.Parameter(state[f"{name}.{leaf}"], needs[f"{name}.{leaf}"]))
    return layer


def _same_linear(layer: nn.Linear) -> nn.Linear:
    """A plain linear layer with the parameters of this one, the very objects; torch's own is of another class."""
    new = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    new.weight, new.bias = layer.weight, layer.bias
    for kind in HOOKS:
        setattr(new, kind, getattr(layer, kind))
    return new


def _joined(parts: list[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.cat([part.detach() for part in parts]), parts[0].requires_grad)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to scores: minus infinity where a mask of booleans is True."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask
