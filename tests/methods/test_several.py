"""Two processes that train one model by a method."""

import torch
import torch.nn.functional as F
from torch import nn

import npn
from npn import distributed, methods

from ..processes import together

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] * X[:, 1] > 0).long()


def trained(kind):
    """What a process ends with: the method's tensors, the weights, and a mask that it drew."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    penalty = methods.DualRestarts("units", 0.3, rate=1.0)
    plastic = npn.attach(model, X, penalty=penalty, unstructured="2" if kind == "RigL" else None)
    if kind == "RigL":
        method = methods.RigL(plastic, density=0.3, until=20, every=2)
    elif kind == "LpSphere":
        method = methods.LpSphere(plastic, steps=10, every=2, rate=0.1)
    else:
        method = methods.HardConcrete(plastic)
    optimizer = torch.optim.Adam([{"params": plastic.weights()}, {"params": method.parameters(), "lr": 0.3}], lr=1e-2)
    plastic.track(optimizer)
    wrapped = distributed.wrap(plastic)
    rank, count = distributed.rank(), distributed.size()
    x, y = X.tensor_split(count)[rank], Y.tensor_split(count)[rank]
    for _ in range(8):
        optimizer.zero_grad()
        method.backward(lambda: F.cross_entropy(wrapped(x), y))
        optimizer.step()
        method.after_step()
    method.compact()
    distributed.check(plastic)
    tensors = [t for tensors in method.state_dict()["tensors"].values() for t in tensors.values()]
    return tensors, [p.detach() for p in plastic.weights()], method.training_mask().detach(), penalty.multiplier


def of_each():
    return {kind: trained(kind) for kind in ("HardConcrete", "LpSphere", "RigL")}


def test_processes_agree_and_draw_different_masks():
    first, second = together(2, of_each)
    for kind in first:
        for mine, theirs in zip((*first[kind][0], *first[kind][1]), (*second[kind][0], *second[kind][1]), strict=True):
            assert torch.equal(mine, theirs), kind
    assert not torch.equal(first["HardConcrete"][2], second["HardConcrete"][2])
    assert torch.equal(first["HardConcrete"][3], second["HardConcrete"][3])
