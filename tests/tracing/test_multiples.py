"""Groups whose units come and go in sets, attributes that follow by name, and the time limit of rehearsals."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn
from npn.errors import ResizeError
from npn.surgery import plan_removal
from npn.tracing.modes import trace_modes
from npn.tracing.rehearsal.repair import freeze_fixed_sizes


class Shuffle(nn.Module):
    """Two channel shuffles, as in ShuffleNet: `view(B, g, C // g)` works at multiples of g only."""

    def __init__(self, groups: int = 2, width: int = 8) -> None:
        super().__init__()
        self.groups = groups
        self.a, self.norm = nn.Conv2d(3, width, 1), nn.BatchNorm2d(width)
        self.b, self.head = nn.Conv2d(width, width, 3, padding=1), nn.Linear(width, 4)

    def shuffled(self, h):
        b, c, height, width = h.shape
        return h.view(b, self.groups, c // self.groups, height, width).transpose(1, 2).reshape(b, c, height, width)

    def forward(self, x):
        h = torch.relu(self.norm(self.shuffled(self.a(x))))
        return self.head(self.shuffled(torch.relu(self.b(h))).mean((2, 3)))


class Ghost(nn.Module):
    """As in GhostNet: a depthwise convolution beside its input, cut to a width that the module remembers."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.outer = outer
        self.primary = nn.Conv2d(inner, outer // 2, 1)
        self.cheap = nn.Conv2d(outer // 2, outer // 2, 3, padding=1, groups=outer // 2)

    def forward(self, x):
        h = torch.relu(self.primary(x))
        return torch.cat([h, self.cheap(h)], 1)[:, : self.outer]


@pytest.fixture
def data():
    torch.manual_seed(0)
    return torch.randn(6, 3, 5, 5), torch.randint(0, 4, (6,))


def shuffle(groups=2, width=8):
    torch.manual_seed(1)
    model = Shuffle(groups, width)
    with torch.no_grad():
        model.norm.weight.uniform_(0.5, 1.5)
        model.norm.running_mean.normal_()
        model.norm.bias.normal_()
    return model.eval()


@pytest.mark.parametrize(("groups", "width"), [(2, 8), (3, 12)])
def test_units_leave_in_sets_and_the_network_is_the_masked_one(data, groups, width):
    x, _ = data
    model = shuffle(groups, width)
    plastic = npn.attach(model, x[:1])
    assert {g.name: (g.size, g.multiple) for g in plastic.groups} == {"a": (width, groups), "b": (width, groups)}
    plastic.close("a", [0, 3, 4, 6][: groups + 1])
    plastic.close("b", [1, 2, 5, 7][: groups + 2 if groups == 2 else groups])
    masked = model(x)
    torch.testing.assert_close(plastic.export()(x), masked)
    changes = plastic.compact().changes
    assert changes["a"] == (width, width - groups), "one set of the closed units goes, the rest stays closed"
    assert all(new % groups == 0 for _, new in changes.values())
    torch.testing.assert_close(model(x), masked)
    torch.testing.assert_close(plastic.export()(x), masked)
    assert plastic.sizes()["a"] == width - groups - 1


def test_the_least_likely_units_of_a_group_leave_first(data):
    plastic = npn.attach(shuffle(), data[0][:1])
    plastic.k = 1.0
    with torch.no_grad():
        plastic.group("a").gate.logits[torch.tensor([1, 4, 6])] = torch.tensor([-9.0, -7.5, -8.0])
    report = plastic.compact(below=1e-3)
    assert report.removed == {"a": (1, 6)}


def test_growth_comes_in_sets_and_is_silent(data):
    x, _ = data
    model = shuffle()
    plastic = npn.attach(model, x[:1])
    before = model(x)
    assert plastic.grow({"a": 3, "b": 2}).changes == {"a": (8, 12), "b": (8, 10)}
    torch.testing.assert_close(model(x), before)


def test_a_growth_policy_keeps_whole_sets_below_its_limit(data):
    plastic = npn.attach(shuffle(), data[0][:1])
    growth = npn.Growth(units=1, limit=11, grace=0)
    assert growth.step(1.0, plastic).changes == {"a": (8, 10), "b": (8, 10)}
    assert growth.done, "11 units are not whole sets of two, so 10 is full"


def test_training_goes_on_alike_after_a_resize(data):
    x, y = data
    model = shuffle().train()
    plastic = npn.attach(model, x[:2])
    optimizer = torch.optim.SGD(plastic.weights(), lr=0.1, momentum=0.9)
    plastic.track(optimizer)
    plastic.close("a", [2, 5])
    for _ in range(2):
        optimizer.zero_grad()
        plastic.backward(lambda: F.cross_entropy(model(x), y))
        optimizer.step()
    twin, twin_plastic = copy.deepcopy((model, plastic))
    twin_optimizer = torch.optim.SGD(twin_plastic.weights(), lr=0.1, momentum=0.9)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert plastic.compact().changes == {"a": (8, 6)}
    for m, p, o in ((model, plastic, optimizer), (twin, twin_plastic, twin_optimizer)):
        for _ in range(3):
            o.zero_grad()
            p.backward(lambda m=m: F.cross_entropy(m(x), y))
            o.step()
    torch.testing.assert_close(model.eval()(x), twin.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_keeps_the_places_of_the_units(data, tmp_path):
    x, _ = data
    model = shuffle()
    plastic = npn.attach(model, x[:1])
    plastic.close("a", [0, 7, 3])
    plastic.compact()
    npn.save(tmp_path / "a.npn", plastic)
    fresh = Shuffle().eval()
    npn.load(tmp_path / "a.npn", npn.attach(fresh, x[:1]))
    torch.testing.assert_close(fresh(x), model(x))
    plain = npn.load(tmp_path / "a.npn", Shuffle().eval())
    torch.testing.assert_close(plain(x), model(x))


def test_incomplete_sets_are_refused(data):
    plastic = npn.attach(shuffle(), data[0][:1])
    with pytest.raises(ResizeError, match=r"'a' loses units in sets of 2 only, cannot remove 3; leave the rest closed"):
        plan_removal(plastic.structure, {"a": [0, 1, 2]})


def test_a_budget_knows_that_one_set_stays(data):
    plastic = npn.attach(shuffle(), data[0][:1])
    assert plastic.minimum_cost("units") == 4.0


def test_remembered_widths_follow_by_name(data):
    """`outer` of the two ghost modules, and `groups` of their convolutions, in one trial."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), Ghost(8, 12), nn.Conv2d(12, 8, 1), Ghost(8, 16), nn.Flatten(), nn.Linear(400, 2)
    ).eval()
    plastic = npn.attach(model, data[0][:1])
    followed = {g.name: {name for _, name, _ in g.traced.attributes} for g in plastic.groups}
    assert followed == {"0": set(), "1.primary": {"groups", "outer"}, "2": set(), "3.primary": {"groups", "outer"}}
    for name in followed:
        plastic.close(name, [1, 2])
    masked = model(data[0])
    plastic.compact()
    torch.testing.assert_close(model(data[0]), masked)


def test_rehearsals_have_a_time_limit(data):
    model = shuffle()
    structure = trace_modes(model, data[0][:1]).structure
    frozen = freeze_fixed_sizes(model, data[0][:1], structure, seconds=0.0)
    assert not frozen.groups
    reasons = [entry.reason for entry in frozen.frozen if entry.name in ("a.weight[0]", "b.weight[0]")]
    assert all(reason.startswith("its rehearsal was not over after 0 s, and failed until then:") for reason in reasons)
    assert len(reasons) == 2


class ShuffleBesideTwo(nn.Module):
    """A shuffled stream, and a layer of two units that can fall to one in the same resize."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.two = Shuffle(), nn.Sequential(nn.Linear(75, 2), nn.Tanh(), nn.Linear(2, 4))

    def forward(self, x):
        return self.wide(x) + self.two(x.flatten(1))


def test_a_group_falls_to_one_unit_beside_one_that_changes_in_sets(data):
    x, _ = data
    torch.manual_seed(2)
    model = ShuffleBesideTwo().eval()
    plastic = npn.attach(model, x[:1])
    plastic.close("wide.a", [1, 6])
    plastic.close("two.0", [0])
    masked = model(x)
    torch.testing.assert_close(plastic.export()(x), masked)
    assert plastic.compact().changes == {"wide.a": (8, 6), "two.0": (2, 1)}
    torch.testing.assert_close(model(x), masked)


class Depthwise(nn.Module):
    """A shuffle before a depthwise convolution; `width` may be what the module remembers or what the tensor says."""

    def __init__(self, width: int, groups: int, remembers: bool) -> None:
        super().__init__()
        self.groups, self.width, self.remembers = groups, width, remembers
        self.a, self.head = nn.Conv2d(3, width, 1), nn.Conv2d(width, 3, 1)
        self.each = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x):
        h = torch.relu(self.a(x))
        b, c, height, width = h.shape
        c = self.width if self.remembers else c
        h = h.view(b, self.groups, c // self.groups, height, width).transpose(1, 2).reshape(b, c, height, width)
        return self.head(self.each(h))


@pytest.mark.parametrize(("width", "groups", "remembers"), [(8, 2, False), (12, 4, False), (8, 2, True)])
def test_sets_of_units_that_attributes_follow(data, width, groups, remembers):
    x, _ = data
    torch.manual_seed(2)
    model = Depthwise(width, groups, remembers)
    plastic = npn.attach(model, x[:1])
    plastic.close("a", range(groups))
    masked = model(x)
    torch.testing.assert_close(plastic.export()(x), masked)
    assert plastic.compact().changes == {"a": (width, width - groups)}
    torch.testing.assert_close(model(x), masked)
    plastic.grow({"a": 1})
    assert model.each.groups == width
    torch.testing.assert_close(model(x), masked)
