"""A GPT in plain PyTorch: pre-norm, tied embeddings, heads and widths that may differ from block to block."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npn.errors import ConfigurationError

BYTES = 256  # size of the vocabulary
HEAD = 32  # width of an attention head
NORMS: dict[str, type[nn.Module]] = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}
POSITIONS = ("rotary", "learned")


class Attention(nn.Module):
    """Causal self-attention behind a norm; how many heads there are follows from the layers' sizes.

    Args:
        width: of the stream, D.
        heads: number of heads, each of width `HEAD`.
        norm: one of `NORMS`.
        rotary: turn queries and keys by their positions.
    """

    def __init__(self, width: int, heads: int, norm: str, rotary: bool) -> None:
        super().__init__()
        self.rotary = rotary
        self.norm = NORMS[norm](width)
        self.query = nn.Linear(width, heads * HEAD, bias=False)
        self.key = nn.Linear(width, heads * HEAD, bias=False)
        self.value = nn.Linear(width, heads * HEAD, bias=False)
        self.out = nn.Linear(heads * HEAD, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Compute (B, T, D).

        Args:
            x_BTD: (B, T, D), the stream.
        """
        batch, length, _ = x_BTD.shape
        x_BTD, layers = self.norm(x_BTD), (self.query, self.key, self.value)
        q, k, v = (layer(x_BTD).view(batch, length, -1, HEAD).transpose(1, 2) for layer in layers)
        if self.rotary:
            q, k = rotated(q), rotated(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, length, -1))
        return out


class MLP(nn.Module):
    """out(gelu(up(norm(x)))).

    Args:
        width: of the stream, D.
        hidden: units between the layers.
        norm: one of `NORMS`.
    """

    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.norm = NORMS[norm](width)
        self.up = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Compute (B, T, D).

        Args:
            x_BTD: (B, T, D), the stream.
        """
        out: Tensor = self.out(F.gelu(self.up(self.norm(x_BTD))))
        return out


class Block(nn.Module):
    """x + attention(x), then x + mlp(x); each branch begins with its norm.

    Args:
        width: of the stream.
        heads: of the attention.
        hidden: units of the MLP.
        norm: one of `NORMS`.
        rotary: see `Attention`.
    """

    def __init__(self, width: int, heads: int, hidden: int, norm: str, rotary: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads, norm, rotary)
        self.mlp = MLP(width, hidden, norm)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Compute (B, T, D).

        Args:
            x_BTD: (B, T, D), the stream.
        """
        x_BTD = x_BTD + self.attention(x_BTD)
        out: Tensor = x_BTD + self.mlp(x_BTD)
        return out


class GPT(nn.Module):
    """A decoder of bytes; the embedding is also the last layer.

    Args:
        width: of the stream.
        layers: number of blocks.
        heads: of each block; `width / HEAD` if not given.
        hidden: MLP units of each block; four times the width if not given.
        context: the longest input, in bytes; only learned positions need it.
        norm: "rms" or "layer".
        positions: "rotary" or "learned".

    Raises:
        ConfigurationError: an unknown norm or kind of positions, or a width that is no multiple of `HEAD`.

    Example:
        >>> GPT(width=32, layers=1)(torch.zeros(2, 5, dtype=torch.long)).shape
        torch.Size([2, 5, 256])

    References:
        Radford et al., Language models are unsupervised multitask learners (2019), for the pre-norm decoder; Su et al.,
        RoFormer, arXiv:2104.09864, for rotary positions; Zhang & Sennrich, arXiv:1910.07467, for RMSNorm.
    """

    def __init__(
        self,
        width: int = 192,
        layers: int = 6,
        *,
        heads: int | None = None,
        hidden: int | None = None,
        context: int = 256,
        norm: str = "rms",
        positions: str = "rotary",
    ) -> None:
        super().__init__()
        for name, value, known in (("norm", norm, NORMS), ("positions", positions, POSITIONS)):
            if value not in known:
                raise ConfigurationError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
        if width < HEAD or width % HEAD:
            raise ConfigurationError(f"width must be a multiple of {HEAD}, the width of a head, got {width}")
        if layers < 1:
            raise ConfigurationError(f"layers must be at least 1, got {layers}")
        self.embedding = nn.Embedding(BYTES, width)
        self.positions = nn.Embedding(context, width) if positions == "learned" else None
        heads, hidden = heads or width // HEAD, hidden or 4 * width
        blocks = (Block(width, heads, hidden, norm, positions == "rotary") for _ in range(layers))
        self.blocks = nn.Sequential(*blocks)
        self.norm = NORMS[norm](width)
        initialise(self)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Compute the logits of each next byte, (B, T, 256).

        Args:
            ids_BT: (B, T) int64 bytes.
        """
        x_BTD = self.embedding(ids_BT)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions.weight[: ids_BT.shape[1]]
        return F.linear(self.norm(self.blocks(x_BTD)), self.embedding.weight)


def rotated(x: Tensor) -> Tensor:
    """Turn each pair of coordinates (i, i + H / 2) by an angle of position times 10000^(-2 i / H).

    Args:
        x: (..., T, H) queries or keys.

    Returns:
        The same shape; products of two of them depend on the difference of their positions only.
    """
    length, half = x.shape[-2], x.shape[-1] // 2
    rates = torch.exp(torch.arange(half, device=x.device) * (-math.log(10_000.0) / half))
    angles = torch.arange(length, device=x.device).unsqueeze(1) * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def initialise(model: GPT) -> GPT:
    """Draw every weight anew, from the global generator: as in GPT-2, but with branches that start as nothing.

    Embeddings and linear layers are normal with standard deviation 0.02, the last layer of each branch is zero, so that
    opening a branch changes nothing; biases are zero, gains of norms one.

    Args:
        model: of any sizes, as shrinking has left it.

    Returns:
        The model.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or name.endswith("out.weight"):
            nn.init.zeros_(parameter)
        elif name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=0.02)
    return model
