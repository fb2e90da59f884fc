"""What the tests of resizes share: a training, and everything that a resize may touch."""

import torch
import torch.nn.functional as F


def steps(model, plastic, optimizers, x, y, n=1):
    for _ in range(n):
        for o in optimizers:
            o.zero_grad()
        loss = plastic.backward(lambda: F.cross_entropy(model(x), y))
        for o in optimizers:
            o.step()
    return loss


def photograph(model, plastic, *optimizers):
    """Everything that a resize may touch."""
    attributes = {n: {k: v for k, v in vars(m).items() if type(v) is int} for n, m in model.named_modules()}
    tensors = [t.detach().clone() for t in model.state_dict().values()]
    tensors += [t.clone() for g in plastic.groups for t in (g.gate.logits.detach(), g.gate.grace, g.gate.shut)]
    everything = [*model.parameters(), *plastic.logits()]
    tensors += [p.grad.clone() for p in everything if p.grad is not None]
    for o in optimizers:
        for p in everything:
            tensors += [v.clone() for v in o.state.get(p, {}).values() if isinstance(v, torch.Tensor)]
    ids = [id(t) for t in (*everything, *model.buffers())]
    return attributes, tensors, ids, [g.size for g in plastic.groups], id(plastic.structure)


def equal(a, b):
    same = len(a[1]) == len(b[1]) and all(torch.equal(s, t) for s, t in zip(a[1], b[1], strict=True))
    return same and (a[0], *a[2:]) == (b[0], *b[2:])


def trained(tiny, name="conv", **options):
    model, plastic = tiny[name].attach(**options)
    x, y = tiny[name].data()
    optimizers = torch.optim.Adam(plastic.weights(), lr=0.01), torch.optim.Adam(plastic.logits(), lr=1e-3)
    plastic.track(*optimizers)
    plastic.k = 2.0
    steps(model, plastic, optimizers, x, y, 2)
    return model, plastic, optimizers, x, y
