"""Masked weights: masks go in around a call and come out again, whatever happens in between."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn
from npn.masking import MaskedWeights


def readers_of(plastic):
    return MaskedWeights(plastic.model, plastic.structure)


def test_expand_shapes_and_places(tiny):
    model, plastic = tiny["conv"].attach()
    readers = readers_of(plastic)
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    (conv,), (linear,) = readers.table.expand(mask)
    assert readers.table.names == ["3.weight", "7.weight"] and readers.table.units == 7
    assert conv.shape == (1, 3, 1, 1) and conv.reshape(-1).tolist() == [1, 0, 1]
    assert linear.shape == (1, 16) and linear[0].tolist() == [0.0] * 4 + [1.0] * 12
    model.double()
    assert readers.table.expand(mask)[0][0].dtype == torch.float64


def test_two_reading_axes_of_one_weight():
    """A weight that is also read transposed has one factor per axis, and each unit its own dL/dz."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.mix, self.head = nn.Linear(3, 4), nn.Linear(4, 5, bias=False), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(F.linear(torch.tanh(self.mix(self.stem(x))), self.mix.weight.t()))

    torch.manual_seed(0)
    model, x = Tied(), torch.randn(6, 3)
    plastic = npn.attach(model, x)
    names = {g.name for g in plastic.groups}
    readers = plastic.masked_weights
    sizes = [g.size for g in plastic.groups]
    z = torch.ones(sum(sizes))
    z[0] = 0.0
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    with readers.applied(z, collect=True) as under:
        model(x).square().sum().backward()
    found = under.mask_gradient()
    leaf = z.clone().requires_grad_()
    values = dict(weights)
    start = 0
    for group in plastic.groups:
        for slot in group.slots:
            if slot.reads:
                factor = torch.ones(values[slot.tensor].shape[slot.axis])
                factor = factor.index_put((slot.index[:, 0],), leaf[start : start + group.size])
                view = [-1 if a == slot.axis else 1 for a in range(2)]
                values[slot.tensor] = values[slot.tensor] * factor.view(view)
        start += group.size
    torch.func.functional_call(model, values, (x,)).square().sum().backward()
    torch.testing.assert_close(found, leaf.grad, rtol=1e-4, atol=1e-5)
    assert names and bool((found != 0).all())


def test_a_weight_resized_by_hand_is_refused_before_any_is_masked(tiny, tools):
    model, plastic = tiny["mlp"].attach()
    state = tools.clone(model.state_dict())
    readers = plastic.masked_weights
    assert len(readers.table.parameters) == 2
    model[4].weight.data = torch.zeros(2, 9)
    message = r"^4.weight has shape \(2, 9\) where \(2, 3\) was planned; was the model changed by hand"
    with pytest.raises(npn.errors.ResizeError, match=message), readers.applied(torch.zeros(7)):
        pass
    assert torch.equal(model[2].weight, state["2.weight"])


@pytest.mark.parametrize("number", [0, 1])
def test_an_interrupted_swap_leaves_nothing_masked(tiny, tools, monkeypatch, number):
    """Ctrl-C after so many weights have been replaced."""
    model, plastic = tiny["mlp"].attach()
    state = tools.clone(model.state_dict())
    readers, real = plastic.masked_weights, torch.Tensor.data
    count = 0

    def interrupted(self, value):
        nonlocal count
        count += 1
        if count == number + 1:
            raise KeyboardInterrupt
        real.__set__(self, value)

    readers.table  # noqa: B018 - made before
    with monkeypatch.context() as patch:
        patch.setattr(nn.Parameter, "data", property(real.__get__, interrupted), raising=False)
        with pytest.raises(KeyboardInterrupt), readers.applied(torch.zeros(7)):
            pass
    assert count == 2 + number + 1, "all are restored"
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_mask_is_applied_to_data_that_have_been_replaced(tiny):
    """An optimizer may set `parameter.data` anew: the masked copy is of the new values, and these come back."""
    model, plastic = tiny["mlp"].attach()
    readers = plastic.masked_weights
    mask = torch.tensor([0.0, 1, 1, 1, 1, 1, 1])
    with readers.applied(mask):
        pass
    table = readers.table
    new = torch.full((3, 4), 2.0)
    model[2].weight.data = new
    with readers.applied(mask):
        assert torch.equal(model[2].weight, new * mask[:4])
    assert readers.table is table and model[2].weight.data_ptr() == new.data_ptr()


def test_weights_of_one_shape_and_layout_share_a_stack(tiny):
    """Whatever is stacked, dL/dz and the masked weights are those of each weight alone; strides stay."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1)]
    layers += [layer for _ in range(4) for layer in (nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(4, 2, 1))
    x = torch.randn(2, 3, 5, 5)
    plastic = npn.attach(model, x)
    model[4].to(memory_format=torch.channels_last)
    readers = plastic.masked_weights
    assert [stack.count for stack in readers.table.stacks] == [3, 1, 1]
    z = (torch.rand(len(plastic.gates)) < 0.6).float()
    strides = [p.stride() for p in model.parameters()]
    with readers.applied(z, collect=True) as under:
        assert [p.stride() for p in model.parameters()] == strides
        masked = {name: p.detach().clone() for name, p in model.named_parameters()}
        model(x).square().sum().backward()
    found, leaf = under.mask_gradient(), z.clone().requires_grad_()
    values, factors = dict(model.named_parameters()), leaf.split([g.size for g in plastic.groups])
    for group, factor in zip(plastic.groups, factors, strict=True):
        for slot in group.slots:
            if slot.reads:
                values[slot.tensor] = values[slot.tensor].detach() * factor[slot.index[:, 0].argsort()].view(
                    1, -1, 1, 1
                )
    assert all(torch.equal(masked[name], value) for name, value in values.items())
    torch.func.functional_call(model, values, (x,)).square().sum().backward()
    torch.testing.assert_close(found, leaf.grad, rtol=1e-4, atol=1e-5)


def test_gradients_inside_are_masked_and_outside_are_not(tiny):
    model, plastic = tiny["mlp"].attach()
    x, _ = tiny["mlp"].data()
    readers = plastic.masked_weights
    mask = torch.tensor([0.0, 1, 1, 1, 1, 1, 1])
    with readers.step(), readers.applied(mask):
        model(x).sum().backward()
    assert torch.equal(model[2].weight.grad[:, 0], torch.zeros(3)) and bool((model[2].weight.grad[:, 1:] != 0).all())
    model.zero_grad()
    with plastic.masked_weights.step():
        model(x).sum().backward()
    assert bool((model[2].weight.grad != 0).all())


def test_hooks_are_not_doubled(tiny):
    """Frozen, thawed and frozen again: one hook each, and none after `remove`."""
    model, plastic = tiny["mlp"].attach()
    readers = plastic.masked_weights
    weight = model[2].weight
    for flag in (False, True, False, True):
        weight.requires_grad_(flag)
        with readers.applied(torch.ones(7), collect=True):
            pass
    assert len(weight._backward_hooks) == 1
    readers.remove()
    assert not weight._backward_hooks


def test_frozen_reader_keeps_a_gradient_that_it_had(tiny):
    model, plastic = tiny["mlp"].attach()
    x, y = tiny["mlp"].data()
    model[2].weight.requires_grad_(False)
    model[2].weight.grad = kept = torch.ones(3, 4)
    plastic.k = 1.0
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    assert model[2].weight.grad is kept and torch.equal(kept, torch.ones(3, 4))


def test_a_reading_buffer(tiny):
    """A fixed projection kept as a buffer reads units like a weight, and informs their gates."""

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(3, 4)
            self.register_buffer("fixed", torch.randn(2, 4))

        def forward(self, x):
            return F.linear(torch.tanh(self.stem(x)), self.fixed)

    torch.manual_seed(0)
    model = Fixed()
    x, y = tiny["mlp"].data()
    plastic = npn.attach(model, x)
    assert [s.tensor for s in plastic.groups[0].slots if s.reads] == ["fixed"]
    before = model.fixed.clone()
    plastic.k = 1.0
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    assert bool((plastic.groups[0].gate.logits.grad != 0).all())
    assert torch.equal(model.fixed, before) and not model.fixed.requires_grad and model.fixed.grad is None
    plastic.k = float("inf")
    plastic.close("stem", [1])
    wanted = F.linear(torch.tanh(model.stem(x))[:, [0, 2, 3]], before[:, [0, 2, 3]])
    torch.testing.assert_close(model(x), wanted)
    plastic.compact()
    assert model.fixed.shape == (2, 3)
    torch.testing.assert_close(model(x), wanted)
