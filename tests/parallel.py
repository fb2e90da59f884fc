"""What the tests of several processes share: a model, its data by process, gradients and a hash of everything."""

import hashlib
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import npn
from npn import distributed

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] * X[:, 1] > 0).long()
ADVICE = (
    ". Set k, close, open and resize on each process alike, from numbers that all have (a validation loss: "
    "npn.distributed.mean), call the model through npn.distributed.wrap, and step its optimizers"
)


def build(seed=0, k=7.0, **options):
    """A model with gates and its two optimizers."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    plastic = npn.attach(model, X, **options)
    weights = torch.optim.SGD(plastic.weights(), lr=0.1, momentum=0.9)
    gates = torch.optim.Adam(plastic.logits(), lr=2e-2)
    plastic.track(weights, gates)
    plastic.k = k
    return plastic, weights, gates


def mine():
    """This process's half of the data."""
    rank, count = distributed.rank(), distributed.size()
    return X.tensor_split(count)[rank], Y.tensor_split(count)[rank]


def step(plastic, model, *optimizers, data=None, reduction="mean"):
    x, y = mine() if data is None else data
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss = plastic.backward(lambda: F.cross_entropy(model(x), y, reduction=reduction))
    for optimizer in optimizers:
        optimizer.step()
    return loss


def gradients(plastic):
    found = [p.grad.clone() for p in [*plastic.weights(), *plastic.logits()] if p.grad is not None]
    for p in [*plastic.weights(), *plastic.logits()]:
        p.grad = None
    return found


def alone(plastic, **options):
    """The gradients that this process finds without the others; nothing is as if they had been asked for."""
    state = plastic.state_dict()
    with mock.patch("npn.step.average_"):
        step(plastic, plastic.model, **options)
    plastic.load_state_dict(state)
    return gradients(plastic)


def everywhere(value):
    everyone = [None] * distributed.size()
    dist.all_gather_object(everyone, value)
    return everyone


def assert_means(plastic, model, **options):
    """What `backward` leaves is the mean over processes, gradient by gradient; returns what each finds alone."""
    gradients(plastic)
    each = everywhere(alone(plastic, **options))
    step(plastic, model, **options)
    together = gradients(plastic)
    assert len(together) == len(each[0])
    for gradient, *parts in zip(together, *each, strict=True):
        torch.testing.assert_close(gradient, torch.stack(parts).mean(0))
    assert all(torch.equal(a, b) for parts in everywhere(together) for a, b in zip(parts, together, strict=True))
    return each


def digest(plastic):
    """Weights, gates and optimizers' state as one hash."""
    tensors = [*plastic.weights(), *plastic.logits()]
    for optimizer in plastic.optimizers:
        tensors += [v for p in tensors if p in optimizer.state for v in optimizer.state[p].values() if v is not None]
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()
