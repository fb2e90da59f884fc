"""What tests of checkpoints share: a training to save, and all of its state."""

import random

import numpy as np
import torch
import torch.nn.functional as F


def build(tiny, name="dropping", estimator="reinmax", seed=0, **options):
    model, plastic = tiny[name].attach(seed, estimator=estimator, **options)
    weights = torch.optim.AdamW(plastic.weights(), lr=0.02)
    gates = torch.optim.Adam(plastic.logits(), lr=0.05)
    plastic.track(weights, gates)
    return model, plastic, weights, gates


def train(tiny, model, plastic, weights, gates, steps, name="dropping"):
    for _ in range(steps):
        x, y = tiny[name].data(seed=random.randrange(1000))
        x = x + 0.1 * torch.randn_like(x) + float(np.random.rand())
        weights.zero_grad()
        gates.zero_grad()
        plastic.backward(lambda x=x, y=y: F.cross_entropy(model(x), y))
        weights.step()
        gates.step()


def everything(plastic):
    tensors = [*plastic.model.state_dict().values(), *(p.detach() for p in plastic.logits())]
    for o in plastic.optimizers:
        for group in o.param_groups:
            for p in group["params"]:
                tensors += [v for v in o.state.get(p, {}).values() if isinstance(v, torch.Tensor)]
    return [t.clone() for t in tensors]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def seed_all(n):
    torch.manual_seed(n), random.seed(n), np.random.seed(n)
