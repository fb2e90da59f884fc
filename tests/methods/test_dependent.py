"""Dependent Beta-Bernoulli gates: by hand in training and evaluation, and what the export keeps."""

import copy
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import npn
from npn import functional, methods
from npn.errors import ConfigurationError

from .common import optimizer_of, train

pytestmark = pytest.mark.usefixtures("traces_are_shared")


def build(tiny, name="conv", seed=0, **options):
    model, plastic = tiny[name].attach(seed, **options)
    base = methods.BetaBernoulli(plastic, examples=20, a=0.5)
    method = methods.DependentBetaBernoulli(plastic, examples=20)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensors in method._tensors.items():
            for tensor in tensors.values():
                tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator))
                if name == "shift":
                    tensor.sub_(0.7)
    return model, plastic, base, method


def close_some(base, method):
    with torch.no_grad():
        for tensor, units in zip(base._tensors["a"].values(), ([1], [0, 2]), strict=True):
            tensor[units] = -10.0
    method.after_step()


def by_hand(model, plastic, method, x):
    """The convolution net of the tests in evaluation, with gates written out."""
    probability = dict(zip(("0", "3"), method.evaluation_mask().split([3, 4]), strict=True))

    def gate(name, mean):
        t = {key: tensors[name].detach() for key, tensors in method._tensors.items()}
        g = ((mean - t["mean"]) / (t["variance"] + 1e-3).sqrt() * t["gain"] + t["shift"]).clamp(0, 1) * probability[
            name
        ]
        return torch.where(g > 1e-3, g, 0)

    h = model[2](model[1](F.conv2d(x, model[0].weight, padding=1)))
    h = h * gate("0", h.mean((2, 3)))[:, :, None, None]
    h = model[5](model[4](F.conv2d(h, model[3].weight)))
    h = h * gate("3", h.mean((2, 3)))[:, :, None, None]
    return F.linear(h.flatten(1), model[7].weight, model[7].bias)


def test_evaluation_by_hand_and_the_export(tiny):
    model, plastic, base, method = build(tiny)
    close_some(base, method)
    model.eval()
    x, _ = tiny["conv"].data()
    with torch.no_grad():
        expected = by_hand(model, plastic, method, x)
        torch.testing.assert_close(model(x), expected)
        small = method.export()
        assert (
            small[0].out_channels == 2 and isinstance(small[3], fx.GraphModule) and isinstance(small[7], fx.GraphModule)
        )
        torch.testing.assert_close(small(x), expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(small(x[:2]), expected[:2], atol=1e-6, rtol=1e-5)
    names = dict(small.named_parameters())
    assert list(names) == list(dict(model.named_parameters())) and names["3.weight"].shape == (2, 2, 3, 3)
    assert not any("npn" in type(module).__module__ for module in small.modules())
    again = copy.deepcopy(small)
    again.load_state_dict(small.state_dict())
    torch.testing.assert_close(again(x), expected, atol=1e-6, rtol=1e-5)
    assert sum(len(m._forward_pre_hooks) for m in small.modules()) == 0
    method.compact()
    torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(method.export()(x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("masks", ["batch", "example"])
def test_a_training_step_by_hand(tiny, masks):
    model, plastic, base, method = build(tiny, "mlp", masks=masks)
    x, y = tiny["mlp"].data()
    generator = plastic.gates.generator
    state, n = generator.get_state(), len(x)
    z = base.training_mask(n if masks == "example" else None).detach().expand(n, 7)
    draws = [(torch.randn(s, generator=generator), torch.rand(n, s, generator=generator)) for s in (4, 3)]
    if masks == "example":  # there the masks are drawn when the first layer that reads units is called
        generator.set_state(state)
        draws = [(torch.randn(4, generator=generator), torch.rand(n, 4, generator=generator))]
        z = base.training_mask(n).detach()
        draws += [(torch.randn(3, generator=generator), torch.rand(n, 3, generator=generator))]
    generator.set_state(state)

    def gated(h, name, z, draw):
        t = {key: tensors[name] for key, tensors in method._tensors.items()}
        xbar = h.detach()
        normal = (xbar - xbar.mean(0)) / (xbar.var(0, unbiased=False) + 1e-3).sqrt()
        phi = normal * t["gain"] + t["shift"] + F.softplus(t["deviation"]) * draw[0]
        return h * z * functional.relaxed_bernoulli(phi, draw[1], 0.1)

    h = torch.tanh(model[0](x))
    first = h.detach()
    h = torch.tanh(F.linear(gated(h, "0", z[:, :4], draws[0]), model[2].weight, model[2].bias))
    out = F.linear(gated(h, "2", z[:, 4:], draws[1]), model[4].weight, model[4].bias)
    price = (
        functional.gaussian_kl(method._joined("shift"), F.softplus(method._joined("deviation")), math.sqrt(5)).sum()
        / 20
    )
    leaves = [*plastic.weights(), *method.parameters()]
    expected = torch.autograd.grad(F.cross_entropy(out, y) + price, leaves)
    before = method._tensors["mean"]["0"].clone()
    loss = method.backward(lambda: F.cross_entropy(model(x), y))
    torch.testing.assert_close(loss, F.cross_entropy(out, y).detach())
    for leaf, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, atol=1e-6, rtol=1e-4)
    assert all(p.grad is None for p in base.parameters()), "the Beta-Bernoulli gates are frozen"
    torch.testing.assert_close(method._tensors["mean"]["0"], 0.99 * before + 0.01 * first.mean(0))


def test_training_shrinking_copies_and_checkpoints(tiny, tmp_path):
    spec = tiny["conv"]
    model, plastic, base, method = build(tiny)
    optimizer = optimizer_of(plastic, method)
    average = plastic.follow(torch.optim.swa_utils.AveragedModel(model))
    train(spec, model, method, optimizer, 2)
    close_some(base, method)
    assert method.compact().changes == {"0": (3, 2), "3": (4, 2)}
    train(spec, model, method, optimizer, 2)
    plastic.grow({"0": 1})
    train(spec, model, method, optimizer, 1)
    x, _ = spec.data()
    model.eval(), average.eval()
    average.module.load_state_dict(model.state_dict())
    torch.testing.assert_close(average(x), model(x))
    torch.testing.assert_close(method.export(average)(x), model(x), atol=1e-6, rtol=1e-5)
    npn.save(tmp_path / "a.npn", plastic, method=method)
    again, other, _, same = build(tiny, seed=3)
    optimizer_of(other, same)
    npn.load(tmp_path / "a.npn", other, method=same)
    torch.testing.assert_close(again.eval()(x), model(x))
    twin = copy.deepcopy(plastic)
    torch.testing.assert_close(twin.model.eval()(x), model(x))
    assert twin.gates.decision.plastic is twin
    plain = plastic.detach()
    assert not any(module._forward_pre_hooks for module in plain.modules())
    assert "npn.methods.dependent" in sys.modules


def test_what_cannot_have_dependent_gates_is_refused(tiny):
    _, plastic = tiny["mlp"].attach()
    with pytest.raises(
        ConfigurationError,
        match=r"^DependentBetaBernoulli takes over from a trained BetaBernoulli, but no method decides; make and train "
        r"npn.methods.BetaBernoulli\(plastic, ...\) first$",
    ):
        methods.DependentBetaBernoulli(plastic, examples=5)
    _, plastic = tiny["residual"].attach()
    base = methods.BetaBernoulli(plastic, examples=5)
    with pytest.raises(
        ConfigurationError,
        match=r"^a dependent gate sits on the input of the one linear or convolution layer that reads a unit, but "
        r"'stem' is read by mix.weight, head.weight; leave it out with skip= when attaching$",
    ):
        methods.DependentBetaBernoulli(plastic, examples=5)
    assert plastic.gates.decision is base

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(8, 2)

        def forward(self, x):
            return self.c(torch.cat([self.a(x).tanh(), self.b(x).tanh()], 1))

    plastic = npn.attach(Two(), torch.zeros(2, 3))
    methods.BetaBernoulli(plastic, examples=5)
    with pytest.raises(
        ConfigurationError, match=r"^c.weight reads units of several groups, and can have dependent gates"
    ):
        methods.DependentBetaBernoulli(plastic, examples=5)


def test_multiply_adds_are_counted_before_the_first_call(tiny):
    model, plastic = tiny["conv"].attach(0)
    plain = npn.count_macs(model, plastic.example_inputs)
    methods.BetaBernoulli(plastic, examples=10, a=0.5)
    method = methods.DependentBetaBernoulli(plastic, examples=10)
    assert npn.count_macs(model, plastic.example_inputs) == plain
    x = plastic.example_inputs
    assert type(model(x)) is torch.Tensor, "nothing of the count is left"
    assert npn.count_macs(method.export(), x) == plain
