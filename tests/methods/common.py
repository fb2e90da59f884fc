"""What the tests of the methods share: how to make each, and its step computed by hand."""

import torch
import torch.nn.functional as F

import npn
from npn import methods

MAKE = {
    "hard_concrete": lambda plastic: methods.HardConcrete(plastic),
    "targeted_dropout": lambda plastic: methods.TargetedDropout(plastic, targeted=0.5, rate=0.6),
    "beta_bernoulli": lambda plastic: methods.BetaBernoulli(plastic, examples=10, a=0.5),
    "information_bottleneck": lambda plastic: methods.InformationBottleneck(plastic, weight=1e-2),
    "lp_sphere": lambda plastic: methods.LpSphere(plastic, steps=10, every=2, p=1.5, rate=0.1),
    "slimming": lambda plastic: methods.Slimming(plastic, weight=1e-2),
}


CLOSED = {"log_alpha": -4.0, "a": -10.0, "log_variance": 5.0}  # of a unit that goes


def build(tiny, method, name="conv", seed=0, **options):
    """A model, its handle and a method."""
    torch.manual_seed(seed)
    model, plastic = tiny[name].attach(seed, penalty=npn.Penalty("layerwise", 1e-2), **options)
    if method == "slimming":
        with torch.no_grad():
            for key, p in model.named_parameters():
                if p.dim() == 1 and "weight" in key:
                    p.copy_(torch.rand_like(p) - 0.4)
    return model, plastic, MAKE[method](plastic)


def shaken(method):
    """Move the method's parameters, so that units differ and some go."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=generator))
        for name, value in CLOSED.items():
            tensors = list(method._tensors.get(name, {}).values())
            for tensor, units in zip(tensors, ([1], [0, 2]), strict=False):
                tensor[units] = value
    if isinstance(method, methods.LpSphere):
        for tensor, units in zip(method._tensors["active"].values(), ([1], [0, 2]), strict=False):
            tensor[units] = False
        for tensor in method._tensors["dual"].values():
            tensor.mul_(1 + 0.3 * torch.rand(tensor.shape, generator=generator))
    if isinstance(method, methods.Slimming):
        method.cut(0.5)
    method.after_step()
    return method


def next_mask(method, batch=None):
    """The training mask that the next step draws, (units,) or (batch, units)."""
    generator = method.plastic.gates.generator
    before = generator.get_state()
    mask = method.training_mask(batch)
    generator.set_state(before)
    return torch.ones(len(method.plastic.gates)) if mask is None else mask


def loss_by_hand(spec, model, plastic, mask, x, y):
    """The loss of a plain model whose reading weights are multiplied by a mask, differentiable in both."""
    pieces = mask.split([group.size for group in plastic.groups])
    factors = spec.factors({g.name: piece for g, piece in zip(plastic.groups, pieces, strict=True)})
    values = {name: p * factors[name] if name in factors else p for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    return F.cross_entropy(torch.func.functional_call(spec.model().train(model.training), values | buffers, (x,)), y)


def optimizer_of(plastic, method, rate=0.05):
    """One optimizer of weights and method, tracked."""
    groups = [{"params": plastic.weights()}, {"params": method.parameters(), "lr": 4 * rate}]
    optimizer = torch.optim.Adam(groups, lr=rate)
    plastic.track(optimizer)
    return optimizer


def train(spec, model, method, optimizer, steps):
    """The loop that is the same for all methods."""
    x, y = spec.data()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = method.backward(lambda: F.cross_entropy(model(x), y))
        optimizer.step()
        method.after_step()
    return float(loss)
