"""What new entries start with: weights at random, data as the mean of what is there."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import npn


class Between(nn.Module):
    """Channels with a moving variance, a fixed kernel, a scale and a depthwise kernel of their own."""

    def __init__(self, width=4):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 1)
        self.register_buffer("variance", torch.rand(1, width, 1, 1) + 0.5)
        self.register_buffer("blur", torch.tensor([[1.0, 2.0], [2.0, 4.0]]).expand(width, 1, 2, 2) / 9)
        self.scale = nn.Parameter(torch.rand(width, 1, 1) + 1)
        self.deep = nn.Parameter(torch.randn(width, 1, 2, 2))
        self.head = weight_norm(nn.Conv2d(width, 3, 2))
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        x = self.stem(x) / torch.sqrt(self.variance + 1e-5) * self.scale
        x = F.conv2d(F.conv2d(x, self.blur, groups=x.shape[1]), self.deep, groups=x.shape[1])
        return self.last(self.head(x))


@pytest.fixture
def grown():
    torch.manual_seed(0)
    model, x = Between().double(), torch.randn(3, 1, 6, 6).double()
    plastic = npn.attach(model, x)
    plastic.close("stem", [1])
    plastic.compact()
    old, wanted = {name: t.detach().clone() for name, t in model.state_dict().items()}, model(x)
    plastic.grow({"stem": 5, "head.parametrizations.weight": 5})
    torch.testing.assert_close(model(x), wanted)
    return model, old


def test_data_gets_the_mean_of_what_is_there(grown):
    model, old = grown
    for name, tensor in (("variance", model.variance[0]), ("scale", model.scale)):
        assert len(tensor) == 8
        torch.testing.assert_close(tensor[3:].flatten(), old[name].mean().expand(5))
    assert torch.equal(model.blur[3:], old["blur"][:1].expand(5, 1, 2, 2)), "a kernel stays that kernel"
    norm = model.head.parametrizations.weight.original0
    torch.testing.assert_close(norm[3:].flatten(), norm[:3].mean().expand(5))


def test_weights_get_their_own_random_numbers(grown):
    model, _ = grown
    direction = model.head.parametrizations.weight.original1
    for rows in (model.stem.weight[3:], model.deep[3:], direction[3:, :3]):  # the stem has one input
        bound = rows[0].numel() ** -0.5
        assert len(rows.flatten().unique()) == rows.numel() and bool((rows.abs() <= bound).all())


class MaskedLinear(nn.Linear):
    """A layer of a masked autoencoder (MADE): which weights there are is fixed."""

    def __init__(self, mask):
        super().__init__(*mask.T.shape)
        self.register_buffer("mask", mask)

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


def test_masks_and_signs_get_those_of_present_units():
    torch.manual_seed(0)
    degree, inputs = torch.arange(8) % 4, torch.arange(5)
    hidden, output = (degree[:, None] >= inputs).double(), (inputs[:, None] > degree).double()
    model = nn.Sequential(MaskedLinear(hidden), nn.Tanh(), MaskedLinear(output)).double()
    x = torch.randn(3, 5).double()
    plastic, wanted = npn.attach(model, x), model(x)
    plastic.grow({"0": 3})
    torch.testing.assert_close(model(x), wanted)
    assert torch.equal(model[0].mask[8:], hidden[:3]) and torch.equal(model[2].mask[:, 8:], output[:, :3])
    with torch.no_grad():
        model[2].weight.normal_()
    jacobian = torch.autograd.functional.jacobian(model, x[0])
    assert float(jacobian.triu().abs().max()) == 0.0, "an output depends on its own input or on a later one"


class Several(nn.Module):
    """A layer with two inputs or more, or one that is recurrent, between others."""

    def __init__(self, layer, width):
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, 5), layer, nn.Linear(width, 2)

    def forward(self, x):
        h = self.first(x)
        if isinstance(self.layer, nn.Bilinear):
            return self.last(self.layer(h, x))
        if isinstance(self.layer, nn.ConvTranspose1d):
            return self.last(self.layer(h.transpose(1, 2)).transpose(1, 2))
        return self.last(self.layer(h)[0])


@pytest.mark.parametrize(("layer", "bound"), [
    (nn.Bilinear(5, 4, 3), 5),
    (nn.LSTM(5, 3, batch_first=True), 3),
    (nn.GRU(5, 3, batch_first=True), 3),
    (nn.ConvTranspose1d(5, 3, 2), 5 * 2),  # the fan-in, where PyTorch takes the fan-out
    (nn.ConvTranspose1d(5, 10, 2, groups=5), 2),
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_new_units_of_a_layer_start_as_wide_as_pytorchs(layer, bound):
    torch.manual_seed(0)
    model, x = Several(layer, 10 if getattr(layer, "groups", 1) > 1 else 3), torch.randn(2, 6, 4)
    plastic, old = npn.attach(model, x), {name: p.shape for name, p in layer.named_parameters()}
    group = next(
        group for group in plastic.groups for slot in group.slots if slot.reads and slot.tensor == "last.weight"
    )
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(5.0)
    plastic.grow({group.name: 100 * group.multiple})
    for name, p in layer.named_parameters():
        new = p.detach()[(p != 5) & (p != 0)].abs() * bound**0.5
        assert p.shape != old[name] and len(new) >= 100 and bool((new <= 1).all()), name
        assert float(new.mean()) == pytest.approx(0.5, abs=0.1), name  # of U(0, 1): 0.03 for 100 numbers


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_new_features_of_an_embedding_start_as_pytorchs(kind):
    torch.manual_seed(0)
    model = nn.Sequential(kind(1000, 4, padding_idx=7), nn.Linear(4, 2))
    plastic = npn.attach(model, torch.randint(0, 1000, (5, 3)))
    plastic.grow({"0": 3})
    new = model[0].weight[:, 4:].detach()
    assert bool(new[7].eq(0).all()) and abs(float(new.std()) - 1) < 0.1
