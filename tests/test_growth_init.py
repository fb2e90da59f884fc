"""New units that learn at once: the function is kept, and fan-in and fan-out have gradients in the first step."""

import copy
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn
from npn.errors import ConfigurationError
from npn.integrations.session import Session

pytestmark = pytest.mark.usefixtures("traces_are_shared")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attend = nn.Linear(3, 8), nn.MultiheadAttention(8, 4, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        h = self.embed(x)
        return self.head(torch.tanh(self.attend(h, h, h, need_weights=False)[0]).mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.code, self.bias = nn.Linear(5, 4), nn.Parameter(torch.zeros(5))

    def forward(self, x):
        return F.linear(torch.tanh(self.code(x)), self.code.weight.t(), self.bias)


class Shuffled(nn.Module):
    """Units that come in sets of two."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = self.a(x)
        return self.b(h.view(len(x), 2, h.shape[1] // 2).transpose(1, 2).reshape(len(x), -1))


class Interleaved(nn.Module):
    """The two entries of a unit change their order in the middle of the layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, x):
        h = self.a(x)
        return self.b(torch.stack([h, -h.flip(1)], 2).flatten(1))


MODELS = ["mlp", "conv", "residual", "recurrent", "depthwise"]
INITS = ["zero", "pair", "split"]


def attached(tiny, name, **options):
    if name == "attention":
        torch.manual_seed(0)
        model, x = Attention(), torch.randn(6, 5, 3)
        return model, npn.attach(model, x, **options), x, torch.randint(0, 2, (6,))
    model, plastic = tiny[name].attach(**options)
    return model, plastic, *tiny[name].data()


def grow(plastic, init, **options):
    return plastic.grow({g.name: 3 - i % 2 for i, g in enumerate(plastic.groups)}, init=init, grace=20, **options)


def worn(model):
    """Running statistics and affine parameters that are not those of a new layer."""
    torch.manual_seed(2)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.add_(torch.rand_like(tensor))


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", [*MODELS, "attention"])
def test_the_function_is_kept(tiny, name, init):
    model, plastic, x, _ = attached(tiny, name)
    worn(model)
    plastic.k = 2.0
    plastic.close(plastic.groups[0], [1])
    for training in (True, False):
        model.train(training)
        state = {n: b.clone() for n, b in model.named_buffers()}
        wanted = model(x).detach()
        model.load_state_dict(state, strict=False)
        grow(plastic, init)
        torch.testing.assert_close(model(x), wanted, rtol=1e-6, atol=1e-6)
    small = plastic.export().eval()
    torch.testing.assert_close(small(x), wanted, rtol=1e-6, atol=1e-6)
    plastic.compact()
    torch.testing.assert_close(model(x), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("init", ["pair", "split"])
@pytest.mark.parametrize("name", ["mlp", "conv", "residual", "attention"])
def test_drawn_masks_keep_the_function_too(tiny, name, init):
    _, plastic, x, y = attached(tiny, name, penalty=npn.Penalty(weight=0.0))
    plastic.k = 2.0
    for group in plastic.groups:
        with torch.no_grad():
            group.gate.logits.fill_(0.2)
    other = copy.deepcopy(plastic)
    grow(plastic, init)
    counts = [g.size for g in plastic.groups]
    for _ in range(3):
        uniform = [torch.rand(g.size) for g in other.groups]
        for u, group in zip(uniform, plastic.groups, strict=True):
            held = group.gate.grace[: len(u)] > 0
            assert bool(held.any()) == (init == "split")
            u[held] = 0.0  # a unit that is being split is held open
        longer = [
            torch.cat([u, torch.rand(n - len(u))]) for u, n in zip(uniform, counts, strict=True)
        ]  # the new units are drawn, too, and held open
        other.gates.draw = lambda *batch, uniform=uniform: torch.cat(uniform)
        plastic.gates.draw = lambda *batch, longer=longer: torch.cat(longer)
        losses = [float(p.backward(lambda p=p: F.cross_entropy(p.model(x), y))) for p in (plastic, other)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize("name", [*MODELS, "attention"])
@pytest.mark.parametrize("init", INITS)
def test_which_ends_have_gradients_in_the_first_step(tiny, name, init):
    model, plastic, x, y = attached(tiny, name, penalty=npn.Penalty(weight=0.0))
    new = plastic.grow({g.name: 2 for g in plastic.groups}, init=init).added
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    for group in plastic.groups:
        first, second = new[group.name]
        rows = model.get_parameter(group.slots[0].tensor).grad[group.slots[0].index[[first, second]].reshape(2, -1)]
        learns = float(rows.abs().max()) > 1e-9
        assert learns == (init != "zero"), group.name
        if init == "pair":
            torch.testing.assert_close(rows[0], -rows[1], msg=f"{group.name}: opposite gradients part a pair")
        read = [s for s in group.slots if s.reads]
        assert any(bool(model.get_parameter(s.tensor).grad.index_select(s.axis, s.index[first]).any()) for s in read)


def test_twins_and_what_they_are_drawn_from(tiny):
    model, plastic = tiny["conv"].attach()
    worn(model)
    plastic.grow({"0": 5}, init="pair")
    conv, norm, reader = model[0].weight, model[1], model[3].weight
    for a, b in ((3, 4), (5, 6)):
        assert torch.equal(conv[a], conv[b]) and conv[a].any()
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor[a] == tensor[b]
        assert torch.equal(reader[:, a], -reader[:, b]) and reader[:, a].all()
    assert not torch.equal(conv[3], conv[5]) and conv[7].any() and not reader[:, 7].any()  # the odd last one
    old = reader[:, :3].std()
    assert 0.6 < float(reader[:, 3:7].detach().std() / old.detach()) < 1.5


def test_a_split_shares_the_fan_out_of_the_busiest_open_units():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, 4.0, 3.0, 2.0], [0.0, 4.0, 3.0, 2.0]]))
    plastic = npn.attach(model, torch.randn(2, 3))
    plastic.close("0", [2])
    before, rows = model[2].weight.detach().clone(), model[0].weight.detach().clone()
    plastic.grow({"0": 4}, init="split")
    after = model[2].weight.detach()
    assert torch.equal(model[0].weight[4:], rows[[1, 3, 0, 1]])
    torch.testing.assert_close(after[:, 1] + after[:, 4] + after[:, 7], before[:, 1])
    torch.testing.assert_close(after[:, 3] + after[:, 5], before[:, 3])
    assert torch.equal(after[:, 2], before[:, 2])
    for a, b in ((3, 5), (1, 7)):  # the shares differ in direction: a factor would make no difference to Adam
        assert abs(float(F.cosine_similarity(after[:, a], after[:, b], dim=0))) < 0.999


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "closed"])
@pytest.mark.parametrize("init", ["pair", "split"])
def test_columns_with_their_own_gates(init, removed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(5, 1, 4, 4)
    plastic = npn.attach(model, x, columns="3")
    plastic.close("3.columns", [0, 5, 6, 11])
    if removed:
        plastic.compact()
    wanted = model(x)
    plastic.grow({"0": 2, "3": 2}, init=init, grace=1)
    columns = plastic.group("3.columns").gate
    assert int(columns.mask.sum()) == 16 and len(columns.logits) == (16 if removed else 20)
    shares = int(model[3].weight[:, -8:].any(0).sum())
    assert shares > 4 and int((columns.grace > 0).sum()) == 8 + (shares if init == "split" else 0)  # and the originals
    torch.testing.assert_close(model(x), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(plastic.export()(x), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("init", ["pair", "split"])
@pytest.mark.parametrize("kind", ["tied", "normed", "bent", "data", "sets", "frozen"])
def test_where_the_function_could_not_be_kept_units_start_with_zero_fan_out(kind, init):
    torch.manual_seed(0)
    if kind == "tied":
        model, x = Tied(), torch.randn(4, 5)
    elif kind == "data":

        class Data(nn.Linear):
            def forward(self, x):
                return F.linear(x * self.weight[0], self.weight, self.bias)

        model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Data(4, 2)), torch.randn(4, 3)
    elif kind == "frozen":
        model = nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.Tanh(), nn.Linear(4, 2))
        x = torch.randn(4, 3)
    elif kind == "normed":
        reader = nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))
        model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), reader), torch.randn(4, 3)
    elif kind == "bent":

        class Bent(nn.Linear):
            def forward(self, x):
                return F.linear(x, self.weight.abs(), self.bias)

        model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Bent(4, 2)), torch.randn(4, 3)
    else:
        model, x = Shuffled(), torch.randn(3, 3)
    plastic, wanted = npn.attach(model, x), model(x)
    grown = [g for g in plastic.groups if g.multiple == (2 if kind == "sets" else 1)]
    assert grown
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="new units have entries in frozen parameters")
        plastic.grow({g.name: 2 for g in grown}, init=init)
    torch.testing.assert_close(model(x), wanted, rtol=1e-6, atol=1e-6)
    tensors = dict(model.named_parameters())
    for group in grown:
        read = [tensors[s.tensor].index_select(s.axis, s.index[-2:].reshape(-1)) for s in group.slots if s.reads]
        assert read and not any(bool(t.any()) for t in read)


@pytest.mark.parametrize("size", range(3, 9))
@pytest.mark.parametrize("init", ["pair", "split"])
def test_entries_that_change_their_order(init, size):
    torch.manual_seed(size)
    model, x = Interleaved(), torch.randn(5, 3)
    plastic = npn.attach(model, x)
    for _ in range(3):
        wanted = model(x)
        plastic.grow({"a": 2}, init=init)
        torch.testing.assert_close(model(x), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("init", ["pair", "split"])
def test_optimizers_and_copies_stay_in_step(tiny, init):
    model, plastic = tiny["conv"].attach()
    x, y = tiny["conv"].data()
    adam = torch.optim.Adam(plastic.weights(), lr=0.01)
    plastic.track(adam)
    average = plastic.follow(torch.optim.swa_utils.AveragedModel(plastic.model))
    for _ in range(2):
        adam.zero_grad()
        plastic.backward(lambda: F.cross_entropy(model(x), y))
        adam.step()
    average.update_parameters(model)
    adam.zero_grad()
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    adam.step()
    model.eval()
    average.eval()
    kept = {name: {k: v.clone() for k, v in adam.state[p].items()} for name, p in model.named_parameters()}
    wanted, theirs = model(x), average(x)
    plastic.grow({"0": 2, "3": 2}, init=init)
    torch.testing.assert_close(model(x), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(average(x), theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(plastic.export(average)(x), theirs, rtol=1e-6, atol=1e-6)
    state, old = adam.state[model[0].weight], kept["0.weight"]
    assert torch.equal(state["exp_avg_sq"][:3], old["exp_avg_sq"]) and torch.equal(state["exp_avg"][:3], old["exp_avg"])
    torch.testing.assert_close(state["exp_avg_sq"][3], old["exp_avg_sq"].mean(0))
    assert not state["exp_avg"][3:].any()


def test_a_policy_with_an_init(tiny):
    model, plastic = tiny["mlp"].attach()
    growth = npn.Growth(units=2, grace=5, init="pair", until=2)
    growth.step(1.0, plastic)
    weight = model[2].weight
    assert torch.equal(weight[:, 4], -weight[:, 5]) and weight[:, 4].any()
    assert plastic.group("0").gate.grace.tolist() == [0] * 4 + [5] * 2
    assert not growth.done
    growth.step(0.9, plastic)
    assert growth.done
    assert growth.step(0.8, plastic) is None


@pytest.mark.parametrize(("limit", "size"), [(None, 6), (6, 6), (5, 5)])
def test_a_fraction_is_rounded_up_to_pairs(tiny, limit, size):
    _, plastic = tiny["mlp"].attach()
    npn.Growth(units=0.25, only="0", init="pair", limit=limit).step(1.0, plastic)
    assert plastic.group("0").size == size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "twins"}, "init must be one of 'zero', 'pair', 'select', 'split', got 'twins'"),
        ({"init": "pair", "grace": 0}, 'init="pair" needs a grace of at least 1, got 0: a mask could close one unit'),
        ({"until": 0}, "until must be a whole number"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigurationError, match=message):
        npn.Growth(**options)


def test_an_unknown_init_changes_nothing(tiny):
    _, plastic = tiny["mlp"].attach()
    with pytest.raises(ConfigurationError, match="init must be one of"):
        plastic.grow({"0": 1}, init="best")
    assert plastic.group("0").size == 4


def test_a_trainer_has_no_batch_to_choose_by():
    message = 'growth with init="select" needs the loss of a batch, which a Trainer does not hand over'
    with pytest.raises(ConfigurationError, match=message):
        Session(npn.Schedule(npn.Stage("plastic", 2, k=7.0)), growth=npn.Growth(init="select"))


def test_the_page_on_growing_runs():
    page = Path(__file__).parents[1] / "docs" / "growing.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    scope = {}
    exec(compile(code, str(page), "exec"), scope)
    assert scope["growth"].done and scope["growth"].history
    assert scope["plastic"].group("0").size > 3 and float(scope["loss"]()) < 0.6


@pytest.mark.parametrize("init", INITS)
def test_gates_on_single_weights(tiny, init):
    model, plastic = tiny["mlp"].attach(unstructured="*.weight")
    x, _ = tiny["mlp"].data()
    plastic.k = 2.0
    for gate in plastic.gates.weights:
        plastic.close(gate.name, range(1, gate.logits.numel(), 3))
    plastic.compact()
    wanted = model(x).detach()
    grow(plastic, init)
    torch.testing.assert_close(model(x), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(plastic.export()(x), wanted, rtol=1e-6, atol=1e-6)
    assert bool(model[2].weight[:, 4:6].any()) == (init == "pair")  # a copy would lack the gates of its original
