"""Gates on single input columns: the compact model selects its inputs by index and computes what the masked one did."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import npn
from npn.errors import ConfigurationError
from npn.functional import effective_gates, effective_gates_gradient

from .tracing.test_random import OPS, Graph, Step
from .zoo.checks import as_double, assert_close, call, check_training, warm_up

pytestmark = pytest.mark.usefixtures("traces_are_shared")


class Net(nn.Module):
    """Convolution, flatten (channels first or last), two linear layers."""

    def __init__(self, channels: int = 4, hidden: int = 5, last: bool = False) -> None:
        super().__init__()
        self.last = last
        self.conv = nn.Conv2d(1, channels, 3)
        self.norm = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(4 * channels, hidden)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        x = x.permute(0, 2, 3, 1) if self.last else x
        return self.head(F.relu(self.fc(x.flatten(1))))


def make(**options: object) -> tuple[Net, Tensor, npn.Plasticity]:
    torch.manual_seed(0)
    model, x = Net(**options), torch.randn(6, 1, 6, 6)  # type: ignore[arg-type]
    warm_up(model, x)
    return model, x, npn.attach(model, x, columns="fc")


def units(plastic: npn.Plasticity) -> dict[str, int]:
    return {group.name: group.size for group in plastic.groups}


def test_columns_are_a_group() -> None:
    model, _, plastic = make()
    assert units(plastic) == {"conv": 4, "fc": 5, "fc.columns": 16}
    group = plastic.group("fc.columns")
    assert not group.grows and [(s.tensor, s.axis) for s in group.slots] == [("fc.weight", 1)]
    assert plastic.group("conv").grows
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in Net().named_parameters()]


def test_effective_gates_and_their_chain_rule() -> None:
    feeder = torch.tensor([0, 0, 2, 3])  # of three units; the last column is fed by none
    gates = torch.rand(7, dtype=torch.float64, requires_grad=True)
    out = effective_gates(gates, feeder)
    units, columns = gates.detach()[:3], gates.detach()[3:]
    expected = torch.stack([columns[0] * units[0], columns[1] * units[0], columns[2] * units[2], columns[3]])
    assert torch.allclose(out[3:], expected) and torch.equal(out[:3], units)
    weights = torch.randn(7, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((out * weights).sum(), gates)
    assert torch.allclose(effective_gates_gradient(weights, gates.detach(), feeder), gradient)
    batched = torch.rand(5, 7)
    assert torch.equal(effective_gates(batched, feeder)[3], effective_gates(batched[3], feeder))
    assert effective_gates(batched, None) is batched


@pytest.mark.parametrize("last", [False, True])
def test_masked_is_compact_is_exported(last: bool) -> None:
    model, x, plastic = make(last=last)
    model.eval()
    plastic.close("fc.columns", [0, 3, 5, 6, 10])
    plastic.close("conv", [2])
    masked = model(x)
    exported = plastic.export()
    assert type(exported) is Net and torch.allclose(exported(x), masked, atol=1e-6)
    assert "npn" not in {m.__module__.split(".")[0] for m in map(type, exported.modules())}
    assert exported.get_parameter("fc.weight").shape == (5, plastic.sizes()["fc.columns"])
    report = plastic.compact()
    assert report.changes["fc.columns"] == (16, plastic.sizes()["fc.columns"]) and report.changes["conv"] == (4, 3)
    assert model.fc.in_features == model.fc.weight.shape[1] == units(plastic)["fc.columns"]
    assert torch.allclose(model(x), masked, atol=1e-6)
    assert npn.count_params(model) == npn.count_params(exported)
    assert npn.count_macs(model, x[:1]) == npn.count_macs(exported, x[:1])


@pytest.mark.parametrize("masks", ["batch", "example"])
def test_a_model_without_units_selects_its_inputs(masks: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Softmax(-1), nn.Linear(8, 2)), torch.randn(4, 6)
    plastic = npn.attach(model, x, columns="*", masks=masks)
    plastic.k = 7.0
    plastic.backward(lambda: model(x).square().mean(1 if masks == "example" else (0, 1)))
    assert all(logits.grad is not None and bool((logits.grad != 0).all()) for logits in plastic.logits())
    assert float(plastic.expected_cost("params")) == pytest.approx(0.95 * (6 * 8 + 8 * 2) + 10)
    plastic.close("0.columns", [1, 4])
    plastic.close("2.columns", [0])
    masked = model(x)
    torch.testing.assert_close(plastic.export()(x), masked)
    plastic.compact()
    torch.testing.assert_close(model(x), masked)
    assert npn.count_params(model) == 4 * 8 + 7 * 2 + 10


def test_a_channel_that_nothing_reads_goes() -> None:
    model, x, plastic = make()
    model.eval()
    plastic.close("fc.columns", [4, 5, 6, 7])  # all of channel 1
    masked = model(x)
    assert plastic.sizes() == {"conv": 3, "fc": 5, "fc.columns": 12}
    report = plastic.compact()
    assert report.removed == {"conv": (1,), "fc.columns": (4, 5, 6, 7)}
    assert model.fc.weight.shape == (5, 12) and not model.fc._forward_pre_hooks  # what is left is read whole
    assert torch.allclose(model(x), masked, atol=1e-6)
    assert type(plastic.export().fc) is nn.Linear


def test_a_channel_with_another_reader_stays() -> None:
    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Conv2d(4, 3, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.norm(self.conv(x)))
            return self.head(F.relu(self.fc(F.max_pool2d(h, 2).flatten(1)))) + self.other(h).flatten(1)

    torch.manual_seed(0)
    model, x = Two().eval(), torch.randn(2, 1, 6, 6)
    plastic = npn.attach(model, x, columns="fc")
    plastic.close("fc.columns", [4, 5, 6, 7])
    masked = model(x)
    assert plastic.compact().removed == {"fc.columns": (4, 5, 6, 7)}
    assert torch.allclose(model(x), masked, atol=1e-6) and model.fc._forward_pre_hooks


def test_a_layer_always_reads_something() -> None:
    """Every column of the only open channel is closed: one stays, at zero, and the function is the masked one."""
    model, x, plastic = make()
    model.eval()
    plastic.close("conv", [0, 1, 2])
    plastic.close("fc.columns", [12, 13, 14, 15])
    masked = model(x)
    exported = plastic.export()
    assert exported.get_parameter("fc.weight").shape == (5, 1)
    assert torch.allclose(exported(x), masked, atol=1e-6)
    plastic.compact()
    assert torch.allclose(model(x), masked, atol=1e-6) and units(plastic)["fc.columns"] == 1


@pytest.mark.parametrize("last", [False, True])
def test_growth_brings_columns(last: bool) -> None:
    model, x, plastic = make(last=last)
    adam = torch.optim.Adam(plastic.weights(), lr=1e-2)
    plastic.track(adam)
    plastic.close("fc.columns", [1, 2, 7])
    plastic.compact()
    plastic.backward(lambda: model(x).square().mean())
    adam.step()
    before, moments = model.eval()(x), adam.state[model.fc.weight]["exp_avg"].clone()
    weight = model.fc.weight.detach().clone()
    report = plastic.grow({"conv": 2}, grace=3)
    assert report.changes == {"conv": (4, 6), "fc.columns": (13, 21)}
    new = list(report.added["fc.columns"])
    old = [c for c in range(21) if c not in new]
    assert torch.allclose(model(x), before, atol=1e-6)
    assert torch.equal(model.fc.weight[:, old], weight) and not model.fc.weight[:, new].any()
    state = adam.state[model.fc.weight]["exp_avg"]
    assert torch.equal(state[:, old], moments) and not state[:, new].any()
    gate = plastic.group("fc.columns").gate
    assert gate.grace[new].tolist() == [3] * 8 and gate.grace[old].eq(0).all()
    if last:  # channels last: the new columns stand between the old ones
        assert new != list(range(13, 21))


def test_training_with_closed_columns_is_training_without_them() -> None:
    model, x, plastic = make()
    model.double()
    check_training(plastic, as_double(x), functools.partial(torch.optim.Adam, lr=1e-2))


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(st.tuples(OPS, st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5),
    flat=st.booleans(),
    pattern=st.integers(0, 2**31),
)
def test_random_graphs(steps: list[Step], flat: bool, pattern: int) -> None:
    torch.manual_seed(0)
    model, x = Graph([(op, i, b) for i, (op, _, b) in enumerate(steps)], flat), torch.randn(3, 2, 4, 4)
    warm_up(model, x)
    plastic = npn.attach(model.eval(), x, columns=["hidden", "head"])
    random = torch.Generator().manual_seed(pattern)
    for _ in range(2):
        for group in plastic.groups:
            plastic.close(group, (torch.rand(group.size, generator=random) < 0.4).nonzero().reshape(-1)[:-1])
        masked = call(model, x)
        assert_close(masked, call(plastic.export(), x), 1e-5, "exported")
        sizes = plastic.sizes()
        plastic.compact()
        assert units(plastic) == sizes
        assert_close(masked, call(model, x), 1e-5, "compacted")
        plastic.grow({group.name: 1 for group in plastic.groups if group.grows})
        assert_close(masked, call(model, x), 1e-5, "grown")
        for p in model.parameters():  # columns that read new units are zero, and would hide a mistake
            p.data.add_(0.1 * torch.randn(p.shape, generator=random))


def test_expected_cost_is_that_of_all_masks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 1))
    plastic = npn.attach(model, torch.randn(1, 1, 4, 3), columns="3")
    plastic.k = 1.0
    with torch.no_grad():
        for group in plastic.groups:
            group.gate.logits.normal_()
    pi = plastic.gates.keep_probability().double().tolist()
    mean = 0.0
    for mask in itertools.product((0, 1), repeat=8):
        weight = 1.0
        for z, p in zip(mask, pi, strict=True):
            weight *= p if z else 1 - p
        channels, hidden, columns = mask[:2], sum(mask[2:4]), mask[4:]
        read = sum(c * channels[i // 2] for i, c in enumerate(columns))
        mean += weight * (10 * sum(channels) + (read + 1) * hidden + hidden + 1)
    assert float(plastic.expected_cost("params").detach()) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("estimator", ["reinmax", "straight_through", "double_cv", "rloo", "disarm", "arm"])
@pytest.mark.parametrize("masks", ["batch", "example"])
def test_gradient_with_respect_to_every_gate(estimator: str, masks: str) -> None:
    """A loss linear in each gate: the mean over draws is the exact gradient, by enumeration of all masks."""
    if (estimator, masks) == ("double_cv", "example"):
        pytest.skip("double_cv has no per-example form")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 2, 1), nn.Flatten(), nn.Linear(4, 1, bias=False))
    # an example of its own draws its own mask: 50 copies in a batch are 50 draws
    x = torch.randn(1, 1, 2).expand(50, 1, 2).clone() if masks == "example" else torch.randn(3, 1, 2)
    plastic = npn.attach(model, x, columns="2", estimator=estimator, masks=masks, penalty=npn.Penalty(weight=0.0))
    plastic.k = 1.0
    with torch.no_grad():
        for group in plastic.groups:
            group.gate.logits.normal_()
    gates = plastic.gates.keep_probability().detach().clone().requires_grad_()
    with torch.no_grad():
        features, weight = model[1](model[0](x)), model[2].weight[0]
    unit_of_column = plastic.masked_weights.table.unit_of_column
    (features * weight * effective_gates(gates, unit_of_column)[2:]).sum(1).mean().backward()
    exact = gates.grad * gates.detach() * (1 - gates.detach())
    # losses of single masks vary, slopes hardly: where they inform the gates, fewer draws are as close
    total, draws = torch.zeros(6), 800 if estimator in ("arm", "disarm", "rloo") else 200
    draws //= 50 if masks == "example" else 1
    for _ in range(draws):
        for logits in plastic.logits():
            logits.grad = None
        plastic.backward(lambda: model(x)[:, 0].mean() if masks == "batch" else model(x)[:, 0])
        total += torch.cat([logits.grad for logits in plastic.logits()])
    assert torch.allclose(total / draws, exact, atol=0.25 * float(exact.abs().max()))
    cosine = F.cosine_similarity(total, exact, dim=0)
    assert cosine > 0.97


def test_an_exported_model_can_be_attached_again() -> None:
    _, x, plastic = make()
    plastic.close("fc.columns", [0, 3, 9, 10])
    small = plastic.export().eval()
    again = npn.attach(small, x)
    assert [group.name for group in again.groups] == ["fc"]  # the selection's positions are constants of the model now
    why = "index_select takes other places of some units than of others"
    assert any(f.name == "conv.weight[0]" and why in f.reason for f in again.frozen)
    before = small(x)
    again.grow({"fc": 2})
    assert torch.allclose(small(x), before, atol=1e-6)


def test_detach_keeps_the_selection_and_user_hooks() -> None:
    model, x, plastic = make()
    model.eval()
    seen: list[int] = []
    model.fc.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    plastic.close("fc.columns", [0, 3])
    plastic.compact()
    before, weight = model(x), model.fc.weight
    plain = plastic.detach()
    assert torch.allclose(plain(x), before, atol=1e-6) and plain.fc.weight is weight and seen == [5, 5]


def test_convolutions_select_channels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 3, stride=2, padding=1, bias=False)).eval()
    x = torch.randn(2, 2, 5, 5)
    plastic = npn.attach(model, x, columns=["0", "2"])
    plastic.close("0.columns", [1])  # an input of the network: no unit of the model feeds it
    plastic.close("2.columns", [2])
    masked = model(x)
    assert plastic.sizes() == {"0": 3, "0.columns": 1, "2.columns": 3}
    plastic.compact()
    assert torch.allclose(model(x), masked, atol=1e-6)
    assert torch.allclose(plastic.export()(x), masked, atol=1e-6)


def test_growth_leaves_columns_to_their_units() -> None:
    _, _, plastic = make()
    growth = npn.Growth(units=1, grace=5)
    report = growth.step(1.0, plastic)
    assert report is not None and report.changes == {"conv": (4, 5), "fc": (5, 6), "fc.columns": (16, 20)}


def test_errors() -> None:
    _, x, plastic = make()
    with pytest.raises(ConfigurationError, match=r"'fc\.columns' are input columns, which come with their units: gr"):
        plastic.grow({"fc.columns": 1})
    with pytest.raises(ConfigurationError, match="columns='nothing' matches no layer whose inputs can be selected"):
        npn.attach(Net(), x, columns="nothing")

    class Functional(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
            return self.head(F.relu(F.linear(x.flatten(1), self.fc.weight, self.fc.bias)))

    functional = Functional()
    with pytest.raises(ConfigurationError, match="the inputs of 'fc' cannot be selected: its weight must be its o"):
        npn.attach(functional, x, columns="fc")
    assert not functional.fc._forward_pre_hooks
