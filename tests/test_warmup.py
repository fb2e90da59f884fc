"""The weights of new units move by a share of each optimizer step that rises to one."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn
from npn.errors import ConfigurationError

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05),
}


def step(plastic, optimizers, x, y):
    for o in optimizers:
        o.zero_grad()
    plastic.backward(lambda: F.cross_entropy(plastic.model(x), y))
    for o in optimizers:
        o.step()


def new_entries(plastic, added):
    """Parameter name -> bool, whether an entry belongs to a new unit."""
    new = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in plastic.model.named_parameters()}
    for group in plastic.groups:
        for slot in group.slots:
            if slot.tensor in new:
                index = slot.index[list(added[group.name])].reshape(-1)
                new[slot.tensor].index_fill_(slot.axis, index, True)
    return new


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("name", ["mlp", "conv", "residual"])
def test_new_entries_move_by_a_rising_share_and_old_ones_in_full(tiny, name, make):
    _, plastic = tiny[name].attach()
    x, y = tiny[name].data()
    optimizer = make(plastic.weights())
    plastic.track(optimizer)
    step(plastic, [optimizer], x, y)
    added = plastic.grow({g.name: 2 for g in plastic.groups}, init="pair", warmup=4).added
    for t in (1, 2, 3, 4, 5):
        plain = copy.deepcopy(plastic)  # a copy has no optimizer, and none that warms up
        other = make(plain.weights())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        before = {n: p.detach().clone() for n, p in plastic.model.named_parameters()}
        step(plain, [other], x, y)
        step(plastic, [optimizer], x, y)
        assert [int(g.gate.warming.max()) for g in plastic.groups] == [max(4 - t, 0)] * len(plastic.groups)
        new, full = new_entries(plastic, added), dict(plain.model.named_parameters())
        assert all(new[g.slots[0].tensor].any() for g in plastic.groups)
        for n, p in plastic.model.named_parameters():
            assert torch.equal(p[~new[n]], full[n][~new[n]]), n
            wanted = before[n] + min(t / 4, 1.0) * (full[n] - before[n])
            torch.testing.assert_close(p[new[n]], wanted[new[n]], rtol=1e-5, atol=1e-7)


def test_two_optimizers_share_one_count(tiny):
    model, plastic = tiny["mlp"].attach()
    x, y = tiny["mlp"].data()
    weights = [p for p in plastic.weights() if p.dim() == 2]
    optimizers = [
        torch.optim.SGD(plastic.logits(), lr=0.1),
        torch.optim.SGD(weights, lr=0.1),
        torch.optim.SGD([p for p in plastic.weights() if p.dim() == 1], lr=0.1),
    ]
    plastic.track(*optimizers)
    plastic.k = 2.0
    plastic.grow({"0": 1}, grace=10, warmup=3)
    bias = model[0].bias.detach().clone()
    step(plastic, optimizers, x, y)
    assert plastic.group("0").gate.warming.tolist() == [0, 0, 0, 0, 2]
    assert model[0].bias[4] == bias[4]  # zero fan-out: no gradient yet
    step(plastic, optimizers, x, y)
    assert plastic.group("0").gate.warming.tolist() == [0, 0, 0, 0, 1]


def test_younger_units_warm_up_by_themselves(tiny):
    _, plastic = tiny["mlp"].attach()
    x, y = tiny["mlp"].data()
    sgd = torch.optim.SGD(plastic.weights(), lr=0.1)
    plastic.track(sgd)
    plastic.grow({"0": 1}, warmup=3)
    step(plastic, [sgd], x, y)
    plastic.grow({"0": 1, "2": 1}, warmup=5)
    step(plastic, [sgd], x, y)
    assert plastic.group("0").gate.warming.tolist() == [0, 0, 0, 0, 1, 4]
    assert plastic.gates.shares().tolist() == pytest.approx([1, 1, 1, 1, 2 / 3, 1 / 5, 1, 1, 1, 1 / 5])
    plastic.close("0", [1])
    plastic.compact()
    assert plastic.group("0").gate.warming.tolist() == [0, 0, 0, 1, 4]


def test_columns_with_their_own_gates():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    x, y = torch.randn(5, 1, 4, 4), torch.randint(0, 2, (5,))
    plastic = npn.attach(model, x, columns="3")
    plastic.close("3.columns", [0, 5])
    plastic.compact()
    sgd = torch.optim.SGD(plastic.weights(), lr=0.1)
    plastic.track(sgd)
    plastic.grow({"0": 2}, init="pair", warmup=1000)
    before = model[3].weight.detach().clone()
    step(plastic, [sgd], x, y)
    moved, gradient = before - model[3].weight.detach(), model[3].weight.grad
    assert before.shape[1] == 18
    torch.testing.assert_close(moved[:, :10], 0.1 * gradient[:, :10], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(moved[:, 10:], 1e-4 * gradient[:, 10:], rtol=1e-3, atol=1e-7)


class Joined(nn.Module):
    """A linear layer that reads units, in reverse order, and inputs that belong to no unit."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(10, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.cat([torch.relu(self.a(x)).flip(1), x], 1))))


def test_columns_of_no_unit_move_in_full():
    torch.manual_seed(0)
    model, x, y = Joined(), torch.randn(8, 4), torch.randint(0, 2, (8,))
    plastic = npn.attach(model, x, columns="b")
    sgd = torch.optim.SGD(plastic.weights(), lr=0.1)
    plastic.track(sgd)
    plastic.grow({"a": 1}, warmup=1000)
    before = model.b.weight.detach().clone()
    step(plastic, [sgd], x, y)
    moved, gradient = before - model.b.weight.detach(), model.b.weight.grad
    torch.testing.assert_close(moved[:, 1:], 0.1 * gradient[:, 1:], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(moved[:, :1], 1e-4 * gradient[:, :1], rtol=1e-3, atol=1e-7)


def test_a_checkpoint_goes_on_to_the_same_bits(tiny, tmp_path):
    x, y = tiny["conv"].data()
    runs = []
    for stopped in (False, True):
        _, plastic = tiny["conv"].attach()
        adam = torch.optim.Adam(plastic.weights(), lr=0.01)
        plastic.track(adam)
        step(plastic, [adam], x, y)
        torch.manual_seed(3)
        plastic.grow({"0": 2, "3": 2}, init="pair", grace=5, warmup=4)
        step(plastic, [adam], x, y)
        if stopped:
            npn.save(tmp_path / "a.npn", plastic)
            _, plastic = tiny["conv"].attach(seed=5)
            adam = torch.optim.Adam(plastic.weights(), lr=0.01)
            plastic.track(adam)
            npn.load(tmp_path / "a.npn", plastic)
        for _ in range(4):
            step(plastic, [adam], x, y)
        runs.append([*plastic.model.state_dict().values()])
        assert plastic.gates.warming_left == 0
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_state_without_warm_up_is_that_of_an_older_version(tiny):
    _, plastic = tiny["mlp"].attach()
    old = plastic.state_dict()
    for gate in old["gates"].values():
        del gate["warming"], gate["warmup"]
    plastic.gates.hold_open({"0": [1]}, 2, warmup=3)
    plastic.load_state_dict(old)
    assert plastic.gates.warming_left == 0
    assert not plastic.group("0").gate.warming.any()


@pytest.mark.parametrize("end", ["untrack", "detach"])
def test_what_is_no_longer_tracked_moves_in_full(tiny, end):
    model, plastic = tiny["mlp"].attach()
    x, y = tiny["mlp"].data()
    sgd = torch.optim.SGD(plastic.weights(), lr=0.1)
    plastic.track(sgd)
    plastic.grow({"0": 1}, warmup=1000)
    plastic.untrack(sgd) if end == "untrack" else plastic.detach()
    before = model[2].weight[:, 4].detach().clone()
    sgd.zero_grad()
    F.cross_entropy(model(x), y).backward()
    sgd.step()
    torch.testing.assert_close(model[2].weight[:, 4].detach(), before - 0.1 * model[2].weight.grad[:, 4])


def test_a_policy_warms_up(tiny):
    _, plastic = tiny["mlp"].attach()
    npn.Growth(grace=5, warmup=7).step(1.0, plastic)
    assert plastic.group("0").gate.warming.tolist() == [0, 0, 0, 0, 7]
    with pytest.raises(ConfigurationError, match="warmup must be a whole number"):
        npn.Growth(warmup=-1)
    with pytest.raises(ConfigurationError, match="warmup must be a whole number"):
        plastic.grow({"0": 1}, warmup=0.5)
