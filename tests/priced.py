"""A model that penalties can price: gates without weights, whose cost is a product of neighbouring widths."""

import math
from itertools import pairwise

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class FakeGate:
    def __init__(self, size, probability, k):
        self.k = k
        self.logits = torch.nn.Parameter(torch.full((size,), math.log(probability / (1 - probability)) / k))

    def keep_probability(self):
        return torch.sigmoid(self.k * self.logits)


class FakeGroup:
    def __init__(self, name, size, probability, k):
        self.name, self.size, self.gate = name, size, FakeGate(size, probability, k)


class FakePlastic:
    """A chain of groups between two fixed layers of width 2: parameters are products of neighbouring widths."""

    def __init__(self, sizes=(30, 20), probability=0.95, k=7.0):
        self.k = k
        self.groups = [FakeGroup(f"fc{i + 1}", size, probability, k) for i, size in enumerate(sizes)]

    @staticmethod
    def count(kind, widths):
        if kind == "units":
            return sum(widths[1:-1])
        return sum(a * b for a, b in pairwise(widths)) * (10 if kind == "macs" else 1)

    def expected_cost(self, kind, weights=None):
        open_units = [group.gate.keep_probability().sum() for group in self.groups]
        if kind == "layerwise":
            readers = [group.size for group in self.groups[1:]] + [2]
            prices = [1.0 if weights is None else weights[group.name] for group in self.groups]
            return sum(p * n * r for p, n, r in zip(prices, open_units, readers, strict=True))
        return self.count(kind, [2, *open_units, 2])

    def full_cost(self, kind):
        return float(self.count(kind, [2, *(group.size for group in self.groups), 2]))

    def minimum_cost(self, kind):
        return float(self.count(kind, [2] + [1] * len(self.groups) + [2]))

    def logits(self):
        return [group.gate.logits for group in self.groups]


def train(plastic, budget, steps, benefit=1.0, noise=1.0, lr=1e-2, seed=0, bound=None):
    """Toy problem `min -benefit . pi + price`; benefits over three decades. Returns E[cost] / bound of each step."""
    generator = torch.Generator().manual_seed(seed)
    worth = [benefit * 10 ** (3 * torch.rand(group.size, generator=generator) - 3) for group in plastic.groups]
    optimizer = torch.optim.Adam(plastic.logits(), lr=lr)
    ratios = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = budget.loss(plastic)
        cost = plastic.expected_cost(budget.cost).detach()
        now = budget.bound if bound is None else bound()
        ratios.append(cost / (cost if now is None else now))
        for group, value in zip(plastic.groups, worth, strict=True):
            signal = value + noise * value.mean() * torch.randn(value.shape, generator=generator)
            loss = loss - (signal * group.gate.keep_probability()).sum()
        loss.backward()
        optimizer.step()
        budget.update(plastic)
    return torch.stack(ratios)


class NoReadBack(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read back from the device"
        return func(*args, **(kwargs or {}))
