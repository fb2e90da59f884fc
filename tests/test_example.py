"""One mask per example: each row of the batch is a masked network of its own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn
from npn.errors import ConfigurationError


@pytest.mark.parametrize("name", ["mlp", "depthwise"])
def test_each_example_has_its_own_masked_network(tiny, tools, name):
    spec = tiny[name]
    model, plastic = spec.attach(masks="example")
    model.eval()  # batch statistics would mix the examples
    x, y = spec.data()
    plastic.k = 0.3
    outs, draws = [], []
    original = plastic.gates.draw
    plastic.gates.draw = lambda *b: draws.append(original(*b)) or draws[-1]
    plastic.backward(lambda: outs.append(model(x)) or F.cross_entropy(outs[-1], y, reduction="none"))
    assert len(draws) == 1 and draws[0].shape == (len(x), sum(g.size for g in plastic.groups))
    pi = plastic.gates.keep_probability().detach()
    plain = {n: b.clone() for n, b in model.state_dict().items()}
    for i, u in enumerate(draws[0]):
        twin = spec.model().eval()
        twin.load_state_dict(plain)
        masks = tools.masks_of(plastic, (u < pi).float())
        torch.testing.assert_close(outs[0][i : i + 1], spec.masked_copy(twin, masks)(x[i : i + 1]))
    assert len({tuple(r) for r in (draws[0] < pi).tolist()}) > 1


@pytest.mark.parametrize("estimator", ["arm", "disarm", "rloo", "reinmax"])
def test_mean_gradient_is_that_of_the_mean_loss(tiny, tools, estimator):
    """Averaged over draws, gates and weights get the exact gradient (z-test, corrected for their number)."""
    spec = tiny["mlp"]
    model, plastic = spec.attach(masks="example", estimator=estimator, penalty=npn.Penalty(weight=0.0))
    exact = tools.enumerate_model(spec, model, plastic)
    x, y = spec.data()
    plastic.k = 1.5
    with torch.no_grad():
        for g in plastic.groups:
            g.gate.logits.copy_(torch.linspace(-0.5, 0.9, g.size))
    pi = plastic.gates.keep_probability().detach().double()
    p = torch.stack([torch.where(m > 0, pi, 1 - pi).prod() for m in exact.masks])
    masks = torch.stack(exact.masks)
    score = torch.where(masks > 0, 1 / pi, -1 / (1 - pi))
    difference = (p * exact.losses.double()) @ score
    if estimator == "reinmax":
        difference = ((p[:, None] * score.abs() / 2) * exact.slopes.double()).sum(0)
    gates = 1.5 * pi * (1 - pi) * difference
    names = [n for n, _ in model.named_parameters()]
    weights = torch.cat([sum(w * g[n] for w, g in zip(p, exact.grads, strict=True)).reshape(-1) for n in names])
    # many copies of the batch in one: as many draws in one call
    copies = 5000
    big, labels = x.repeat(copies, 1), y.repeat(copies)
    drawn = []
    for _ in range(12):
        for q in (*plastic.weights(), *plastic.logits()):
            q.grad = None
        plastic.backward(lambda: F.cross_entropy(model(big), labels, reduction="none"))
        drawn.append(torch.cat([q.grad.reshape(-1) for q in (*plastic.logits(), *model.parameters())]).double())
    drawn = torch.stack(drawn)
    z = (drawn.mean(0) - torch.cat([gates, weights.double()])).abs() / (drawn.std(0) / 12**0.5 + 1e-8)
    assert z.max() < 7.5  # Student's t with 11 degrees of freedom, 1e-3 over 60 tests
    error = (drawn.mean(0)[:7] - gates).norm() / gates.norm()
    assert error < 0.1


def test_closure_must_return_one_loss_per_example(tiny):
    model, plastic = tiny["mlp"].attach(masks="example")
    x, y = tiny["mlp"].data()
    plastic.k = 1.0
    with pytest.raises(ConfigurationError, match=r'one loss per example.*got shape \(\); use reduction="none"'):
        plastic.backward(lambda: F.cross_entropy(model(x), y))
    with pytest.raises(ConfigurationError, match=r"got float"):
        plastic.backward(lambda: 0.5)
    with pytest.raises(ConfigurationError, match=r"returned 4 losses for a batch of 6"):
        plastic.backward(lambda: F.cross_entropy(model(x), y, reduction="none")[:4])
    with pytest.raises(ConfigurationError, match=r"drawn for 6 examples, but a layer got a batch of 3"):
        plastic.backward(lambda: model(x).sum(1)[:3] + model(x[:3]).sum(1))
    assert all(p.grad is None for p in plastic.weights())
    with pytest.raises(ConfigurationError, match=r"^the closure has changed gradients: it called backward"):
        plastic.backward(lambda: F.cross_entropy(model(x), y).backward() or F.cross_entropy(model(x), y))


def test_double_cv_has_no_such_form(tiny):
    message = (
        'double_cv has no per-example form here; with masks="example" use one of arm, disarm, rloo, straight_through'
    )
    with pytest.raises(ConfigurationError, match=message):
        tiny["mlp"].attach(masks="example", estimator="double_cv")
    _, plastic = tiny["mlp"].attach(masks="example")
    with pytest.raises(ConfigurationError, match=message):
        plastic.estimator = "double_cv"
    assert plastic.estimator == "reinmax"


def test_layers_that_cannot_be_met_are_named(tiny):
    model, plastic = tiny["recurrent"].attach(masks="example")
    x, y = tiny["recurrent"].data()
    plastic.k = 1.0
    with pytest.raises(ConfigurationError, match=r"lstm.weight_ih_l0 is read in another way"):
        plastic.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))


class Transposed(nn.Module):
    """Reads one weight along both of its axes, the second time in a way that cannot be met."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.head = nn.Linear(3, 4), nn.Linear(4, 5, bias=False), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(F.linear(torch.tanh(self.mix(self.stem(x))), self.mix.weight.t()))


def test_a_second_reading_of_the_same_weight_is_not_missed(tiny):
    torch.manual_seed(0)
    model = Transposed()
    x, y = tiny["mlp"].data()
    plastic = npn.attach(model, x, masks="example")
    axes = {s.axis for g in plastic.groups for s in g.slots if s.reads and s.tensor == "mix.weight"}
    assert axes == {0, 1}
    plastic.k = 1.0
    with pytest.raises(ConfigurationError, match=r"mix.weight is read in another way"):
        plastic.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))


@pytest.mark.parametrize("make", [
    lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.ConvTranspose1d(4, 3, 3), nn.Flatten(), nn.Linear(24, 2)),
    lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 6, 1, groups=2), nn.Flatten(), nn.Linear(36, 2)),
])  # fmt: skip
def test_transposed_and_grouped_convolutions(make):
    """All masks alike are one mask for the batch."""
    torch.manual_seed(0)
    x, y = torch.randn(5, 2, 8), torch.randint(0, 2, (5,))
    losses = []
    for masks in ("batch", "example"):
        torch.manual_seed(1)
        model = make()
        plastic = npn.attach(model, x, masks=masks, penalty=npn.Penalty(weight=0.0))
        plastic.k = 1.0
        torch.manual_seed(2)
        u = torch.rand(len(plastic.gates))
        with torch.no_grad():
            for phi in plastic.logits():
                phi.zero_()
        plastic.gates.draw = lambda *b, u=u: u.expand(*b, -1) if b else u
        reduction = "none" if masks == "example" else "mean"
        loss = plastic.backward(lambda m=model, r=reduction: F.cross_entropy(m(x), y, reduction=r))
        losses.append([loss, *(p.grad for p in (*plastic.weights(), *plastic.logits()))])
    torch.testing.assert_close(losses[0], losses[1])


class Named(nn.Module):
    """Calls functions with their tensors by name or by place, in any order of names."""

    def __init__(self, convolve, call):
        super().__init__()
        self.convolve, self.call, self.stem = convolve, call, nn.Conv1d(2, 4, 1)
        self.mix = nn.Parameter(torch.randn((4, 3, 1) if convolve is F.conv_transpose1d else (3, 4, 1)))
        self.head = nn.Parameter(torch.randn(2, 3))

    def forward(self, x):
        h = self.call(self.convolve, torch.tanh(self.stem(x)), self.mix)
        return self.call(F.linear, torch.tanh(h).mean(2), self.head)


@pytest.mark.parametrize("convolve", [F.conv1d, F.conv_transpose1d])
@pytest.mark.parametrize("call", [
    lambda f, x, w: f(x, weight=w),
    lambda f, x, w: f(input=x, weight=w),
    lambda f, x, w: f(bias=None, weight=w, input=x),
])  # fmt: skip
def test_inputs_by_name_are_masked_as_inputs_by_place(convolve, call):
    x, losses = torch.randn(5, 2, 3), []
    for how in (lambda f, x, w: f(x, w), call):
        torch.manual_seed(0)
        model = Named(convolve, how)
        plastic = npn.attach(model, x, masks="example")
        plastic.k = 0.5
        loss = plastic.backward(lambda m=model: m(x).square().mean(1))
        losses.append([loss, *(p.grad for p in (*plastic.weights(), *plastic.logits()))])
    torch.testing.assert_close(losses[0], losses[1])
