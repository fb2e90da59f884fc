"""What the dry run did not try: before units go, the model is traced at just the sizes that it would have then."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn


class Net(nn.Module):
    """A hidden layer, and what the code does with it at each width."""

    def __init__(self, then) -> None:
        super().__init__()
        self.up, self.down, self.then = nn.Linear(6, 40), nn.Linear(40, 2), then

    def forward(self, x):
        return self.down(self.then(self.up(x).tanh()))


def at_least_16(h):
    assert h.shape[1] >= 16, "too narrow"
    return h


BELOW_24 = {
    "a scale with a bound": lambda h: h / min(h.shape[1], 24) ** 0.5,
    "a path of its own": lambda h: h.relu() if h.shape[1] >= 32 else h,
    "a step with the width": lambda h: h * h.shape[1].bit_length(),
    "a bound": at_least_16,
}


@pytest.mark.parametrize("name", BELOW_24)
def test_units_stay_where_the_model_would_compute_something_else_without_them(name):
    torch.manual_seed(0)
    model, x = Net(BELOW_24[name]), torch.randn(4, 6)
    plastic = npn.attach(model, x)
    plastic.close("up", range(25))
    masked = model(x)
    with pytest.warns(UserWarning, match="closed units of up stay in the model, masked: without them it would compute"):
        small = plastic.export()
    torch.testing.assert_close(small(x), masked, rtol=0, atol=1e-6)
    with pytest.warns(UserWarning, match="closed units of up stay"):
        assert not plastic.compact().changes
    torch.testing.assert_close(model(x), masked, rtol=0, atol=0)
    plastic.open("up", range(24))
    masked = model(x)
    assert plastic.compact().changes == {"up": (40, 39)}  # here the code holds
    torch.testing.assert_close(model(x), masked)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_both_modes_are_looked_at_where_they_differ(training):
    def then(h):
        return h if model.training else BELOW_24["a path of its own"](h)

    torch.manual_seed(0)
    model, x = Net(then).train(training), torch.randn(4, 6)
    plastic = npn.attach(model, x)
    plastic.close("up", range(25))
    with pytest.warns(UserWarning, match="closed units of up stay in the model, masked"):
        assert not plastic.compact().changes


class Two(nn.Module):
    """Two layers; the code holds at every size of the first only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 40), nn.Linear(40, 40), nn.Linear(40, 2)

    def forward(self, x):
        return self.c(BELOW_24["a scale with a bound"](self.b(self.a(x).tanh()).tanh()))


def test_the_other_groups_shrink():
    torch.manual_seed(0)
    model, x = Two(), torch.randn(4, 6)
    plastic = npn.attach(model, x)
    plastic.close("a", range(30))
    plastic.close("b", range(30))
    masked = model(x)
    with pytest.warns(UserWarning, match="closed units of b stay in the model"):
        assert plastic.compact().changes == {"a": (40, 10)}
    torch.testing.assert_close(model(x), masked)


class Squeezed(nn.Module):
    """`squeeze` takes the channels along where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3), keepdim=True).squeeze())


def test_where_code_fails_with_a_single_unit_a_second_one_stays():
    torch.manual_seed(0)
    model, x = Squeezed(), torch.randn(4, 3, 5, 5)
    plastic = npn.attach(model, x)
    plastic.close("conv", range(5))
    masked = model(x)
    with pytest.warns(UserWarning, match="the code fails with a single unit at "):
        small = plastic.export()
    assert small.conv.out_channels == 2
    torch.testing.assert_close(small(x), masked)
    with pytest.warns(UserWarning, match="closed units of conv stay"):
        assert plastic.compact().changes == {"conv": (6, 2)}
    torch.testing.assert_close(model(x), masked)


class Patches(nn.Module):
    """PyTorch computes its products by other ops where they have a single unit, whose strides and sums are others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.weight = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), nn.Parameter(torch.randn(2, 4, 5))

    def forward(self, x):
        h = self.head(self.conv(x).flatten(2).transpose(1, 2))
        return torch.einsum("btc,gcd->btd", h, self.weight)


def test_other_ops_for_the_same_product_keep_no_second_unit(recwarn):
    torch.manual_seed(0)
    model, x = Patches(), torch.randn(4, 3, 5, 5)
    plastic = npn.attach(model, x)
    plastic.close("conv", range(5)), plastic.close("head", range(3))
    masked = model(x)
    assert plastic.compact().changes == {"conv": (6, 1), "head": (4, 1)}
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]
    torch.testing.assert_close(model(x), masked)


def test_a_model_that_can_no_longer_be_traced_shrinks_as_before():
    torch.manual_seed(0)
    model, x = Net(lambda h: h), torch.randn(4, 6)
    plastic = npn.attach(model, x)
    model.then = lambda h: h if float(h.detach().sum()) < 1e9 else -h
    plastic.close("up", range(25))
    masked = model(x)
    assert plastic.compact().changes == {"up": (40, 15)}
    torch.testing.assert_close(model(x), masked)


def test_a_model_whose_code_has_changed_since_is_compared_with_itself():
    torch.manual_seed(0)
    model, x = Net(lambda h: h), torch.randn(4, 6)
    plastic = npn.attach(model, x)
    model.then = lambda h: 3 * h.sin()
    plastic.close("up", range(25))
    masked = model(x)
    assert plastic.compact().changes == {"up": (40, 15)}
    torch.testing.assert_close(model(x), masked)


class Unflattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.b(self.a(x).unflatten(1, (2, -1)).relu().flatten(1))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Sequential(nn.Conv2d(3, 2, 1), nn.ChannelShuffle(2), nn.Conv2d(2, 2, 1)), torch.zeros(2, 3, 4, 4)),
        (Unflattened(), torch.zeros(3, 6)),
    ],
    ids=["shuffle", "unflatten"],
)
def test_code_that_wants_even_numbers_is_found_where_there_are_two_units(model, x):
    with pytest.raises(npn.errors.TraceError, match=r"\[0\]: the code fixes this size"):
        npn.attach(model, x)


class Switched(nn.Module):
    """A norm that a flag turns on, after the model was attached without it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.normed = nn.Linear(6, 16), nn.Linear(16, 3), False

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(F.layer_norm(h, h.shape[-1:]) if self.normed else h)


def test_units_that_mix_since_the_model_was_attached_stay():
    torch.manual_seed(0)
    model, x = Switched(), torch.randn(5, 6)
    plastic = npn.attach(model, x)
    model.normed = True
    plastic.close("a", range(6))
    masked = model(x)
    with pytest.warns(UserWarning, match="closed units of a stay.*it has other units now than when it"):
        torch.testing.assert_close(plastic.export()(x), masked)
    with pytest.warns(UserWarning, match="closed units of a stay in the model, masked"):
        assert plastic.compact().changes == {}
    torch.testing.assert_close(model(x), masked)
    model.normed = False
    assert plastic.compact().changes == {"a": (16, 10)}


class Wide(nn.Module):
    """Features in threes for each unit, so that a path may change below four of them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.each, self.down = nn.Linear(3, 4), nn.Parameter(torch.randn(3, 4)), nn.Linear(12, 2)

    def forward(self, x):
        h = (self.up(x).tanh()[:, :, None] * self.each.T).flatten(1)
        return self.down(h * (2 if h.shape[1] > 4 else 3))


ALONE = {
    "another number": lambda h: h * (2 if h.shape[1] > 1 else 3),
    "another op": lambda h: h.relu() if h.shape[1] > 1 else h.abs(),
    "one op less": lambda h: h.sin() if h.shape[1] > 1 else h,
}


@pytest.mark.parametrize("name", [*ALONE, "in threes"])
@pytest.mark.parametrize("unstructured", [None, "down"])
def test_a_single_unit_is_compared_with_two(name, unstructured):
    torch.manual_seed(0)
    model, x = Wide() if name == "in threes" else Net(ALONE[name]), torch.randn(4, 3 if name == "in threes" else 6)
    plastic = npn.attach(model, x, unstructured=unstructured)
    size = plastic.groups[0].size
    plastic.close("up", range(1, size))
    masked = model(x)
    with pytest.warns(
        UserWarning, match="closed units of up stay in the model, masked: .*computation depends on the s"
    ):
        small = plastic.export()
    torch.testing.assert_close(small(x), masked)
    with pytest.warns(UserWarning, match="closed units of up stay"):
        assert plastic.compact().changes == {"up": (size, 2)}
    torch.testing.assert_close(model(x), masked)


@pytest.mark.parametrize(
    "then",
    [
        lambda h: h.view(4, -1, 2).transpose(1, 2).reshape(4, -1) if h.shape[1] % 2 == 0 else h,
        lambda h: F.dropout(h.contiguous(), 0.0).clone(),
        lambda h: h + torch.zeros(h.shape[1]),
        lambda h: h.T.contiguous().T * torch.ones(h.shape[1]),
    ],
)
def test_copies_and_constants_of_the_size_are_no_difference(then):
    torch.manual_seed(0)
    model, x = Net(then), torch.randn(4, 6)
    plastic = npn.attach(model, x)
    plastic.close("up", range(1, 40))
    masked = model(x)
    plastic.compact()
    torch.testing.assert_close(model(x), masked)
    assert plastic.groups[0].size == plastic.groups[0].traced.multiple
