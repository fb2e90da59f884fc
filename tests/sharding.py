"""A small GPT with gates, as whole on one process as split by fully_shard on several, and what both find."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import npn
from npn import distributed
from npn._utils.shards import full

TOKENS = torch.randint(11, (8, 5), generator=torch.Generator().manual_seed(0))
EXAMPLE = TOKENS[:2]


class Block(nn.Module):
    """Attention with 3 heads of 2 channels, and an MLP of 9 units: odd sizes, so that shards differ in length."""

    def __init__(self, width=6, heads=3, hidden=9):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (layer(h).unflatten(-1, (-1, 2)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(x)))


class GPT(nn.Module):
    """Two blocks, and a scale of one row, of which the second process has none."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(6, 11, bias=False)

    def forward(self, tokens):
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x * self.scale)


class Both:
    """Two optimizers of the weights: AdamW of the first block, SGD with momentum of all others."""

    def __init__(self, plastic):
        first = {id(p) for p in plastic.model.blocks[0].parameters()}
        of_first = [p for p in plastic.weights() if id(p) in first]
        others = [p for p in plastic.weights() if id(p) not in first]
        self.parts = torch.optim.AdamW(of_first, lr=1e-2), torch.optim.SGD(others, lr=0.1, momentum=0.9)

    def step(self):
        for part in self.parts:
            part.step()

    def zero_grad(self):
        for part in self.parts:
            part.zero_grad()


def build(seed=0, **options):
    """The model with gates and its optimizers, sharded if there are several processes: two pairs if there are four."""
    torch.manual_seed(seed)
    plastic = npn.attach(GPT(), EXAMPLE, **options)
    if dist.is_initialized():
        pairs = (
            {"mesh": init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "rows"))}
            if distributed.size() == 4
            else {}
        )
        distributed.shard(plastic, plastic.model.blocks, **pairs)
    weights, gates = Both(plastic), torch.optim.Adam(plastic.logits(), lr=0.1)
    plastic.track(*weights.parts, gates)
    return plastic, weights, gates


def loss_of(model, tokens=None):
    tokens = TOKENS.tensor_split(distributed.size())[distributed.rank()] if tokens is None else tokens
    return F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def loss_of_all(plastic):
    with torch.no_grad():
        return loss_of(plastic.model, TOKENS)


def train(plastic, weights, gates, steps, parts=1):
    """Losses of so many steps, with as many backward passes in each."""
    losses = []
    for _ in range(steps):
        weights.zero_grad()
        gates.zero_grad()
        for _ in range(parts):
            loss = plastic.backward(lambda: loss_of(plastic.model), scale=1 / parts)
        weights.step()
        gates.step()
        losses.append(float(distributed.mean(loss)))
    return losses


def state(plastic):
    """Weights, their gradients and optimizer state, and gates, all of them whole."""
    found = {}
    for name, p in plastic.model.named_parameters():
        found[name] = full(p.detach())
        if p.grad is not None:
            found[f"{name}.grad"] = full(p.grad)
        for optimizer in plastic.optimizers:
            for key, value in optimizer.state.get(p, {}).items():
                found[f"{name}.{key}"] = full(value)
    for group in plastic.groups:
        found |= {f"{group.name}.{key}": value.clone() for key, value in group.gate.state_dict().items()}
    return {name: value.detach().clone() for name, value in found.items()}


def assert_same(one, both):
    """One process and each of two have found the same, up to the order of sums."""
    for each in both:
        assert len(each) == len(one)
        for ours, theirs in zip(one, each, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)
