"""Methods on single weights: RigL, SET, targeted dropout of weights, and others whose masks reach single weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn
from npn import functional, methods
from npn.errors import ConfigurationError

from .common import optimizer_of

pytestmark = pytest.mark.usefixtures("traces_are_shared")
EVERY = pytest.mark.parametrize("kind", ["RigL", "SET"])
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=1e-2),
}


def attached(unstructured="*", seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 10), nn.ReLU(), nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 2))
    plastic = npn.attach(model, torch.zeros(2, 3), unstructured=unstructured)
    return model, plastic


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 3, generator=generator)
    return x, x.sum(1).gt(0).long()


def step(model, method, optimizer):
    x, y = data()
    optimizer.zero_grad()
    method.backward(lambda: F.cross_entropy(model(x), y))
    optimizer.step()
    method.after_step()


def numbers(method):
    return {name: int(kept.sum()) for name, kept in method.kept().items() if name.endswith("weight")}


@EVERY
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_number_of_weights_stays_and_closed_ones_are_zero(kind, optimizer):
    model, plastic = attached()
    method = getattr(methods, kind)(plastic, density=0.4, until=20, every=2, drop=0.5)
    optimizer = OPTIMIZERS[optimizer](plastic.weights())
    plastic.track(optimizer)
    start = numbers(method)
    wanted = functional.layer_densities({"0": (10, 3), "2": (6, 10), "4": (2, 6)}, 0.4)
    assert start == {f"{n}.weight": int(wanted[n] * s + 1e-9) for n, s in (("0", 30), ("2", 60), ("4", 12))}
    before, moved = method.kept(), 0
    for _ in range(24):
        step(model, method, optimizer)
        kept = method.kept()
        assert numbers(method) == start
        moved += sum(int((kept[n] ^ before[n]).sum()) for n in start)
        before = kept
        for name in start:
            weight = model.get_parameter(name)
            assert not weight[~kept[name]].any()
            momentum = optimizer.state[weight].get("momentum_buffer", optimizer.state[weight].get("exp_avg"))
            assert not momentum[~kept[name]].any()
    assert moved > 0
    assert method.done == 24 and len(method.parameters()) == 0


def test_rigl_drops_the_smallest_and_grows_by_the_dense_gradient():
    model, plastic = attached("2")
    method = methods.RigL(plastic, density=0.5, until=100, every=1, drop=1.0)
    optimizer = torch.optim.SGD(plastic.weights(), lr=1e-3, momentum=0.9)
    plastic.track(optimizer)
    x, y = data()
    weight, active = model[2].weight, method.kept()["2.weight"]
    h = F.relu(F.linear(F.relu(model[0](x)), weight, model[2].bias))  # inactive weights are zero already
    dense = torch.autograd.grad(F.cross_entropy(model[4](h), y), weight)[0]
    method.backward(lambda: F.cross_entropy(model(x), y))
    torch.testing.assert_close(weight.grad, dense * active)
    optimizer.step()
    magnitude = weight.detach().abs().clone()
    method.after_step()
    share = functional.cosine_share(1.0, 1 / 100)
    expected, grown = functional.replaced(active, magnitude, dense.abs(), share)
    assert torch.equal(method.kept()["2.weight"], expected)
    assert int(grown.sum()) == math.floor(30 * share) and not weight[grown].any()
    assert not optimizer.state[weight]["momentum_buffer"][grown].any()


def test_set_grows_at_random():
    grown = []
    for seed in (0, 0, 1):
        model, plastic = attached("2", seed=0)
        plastic.gates.generator.manual_seed(seed)
        method = methods.SET(plastic, density=0.5, until=100, every=1)
        step(model, method, torch.optim.SGD(plastic.weights(), lr=1e-3))
        grown.append(method.kept()["2.weight"])
    assert torch.equal(grown[0], grown[1]) and not torch.equal(grown[0], grown[2])


@EVERY
def test_dead_units_go_and_the_function_stays(kind):
    model, plastic = attached()
    method = getattr(methods, kind)(plastic, density=0.3, until=20, every=3)
    optimizer = OPTIMIZERS["adamw"](plastic.weights())
    plastic.track(optimizer)
    for _ in range(4):
        step(model, method, optimizer)
    with torch.no_grad():
        method._tensors["active"]["2.weight"][:, [1, 4]] = False
        method._tensors["active"]["2.weight"][0, 0] = True
    method._close()
    x, _ = data()
    before, active = model(x), method._tensors["active"]
    read = active["4.weight"].any(0)  # a unit that nothing reads reads nothing
    dead = ~(active["2.weight"] & read[:, None]).any(0)
    report = method.compact()
    assert bool(dead[[1, 4]].all()) and report.changes["0"] == (10, 10 - int(dead.sum()))
    torch.testing.assert_close(model(x), before)
    live = method._tensors["active"]["2.weight"]
    assert live.shape == model[2].weight.shape and not model[2].weight[~live].any()
    small = method.export()
    torch.testing.assert_close(small(x), before)
    for _ in range(6):
        step(model, method, optimizer)
    assert not model[2].weight[~method.kept()["2.weight"]].any()


def test_a_sparse_training_resumes(tmp_path):
    def build(seed):
        model, plastic = attached(seed=seed)
        method = methods.RigL(plastic, density=0.4, until=50, every=2)
        optimizer = OPTIMIZERS["sgd"](plastic.weights())
        plastic.track(optimizer)
        return model, plastic, method, optimizer

    model, plastic, method, optimizer = build(0)
    for _ in range(5):
        step(model, method, optimizer)
    npn.save(tmp_path / "a.npn", plastic, method=method)
    for _ in range(5):
        step(model, method, optimizer)
    again, other, resumed, third = build(7)
    npn.load(tmp_path / "a.npn", other, method=resumed)
    for _ in range(5):
        step(again, resumed, third)
    assert all(torch.equal(a, b) for a, b in zip(plastic.weights(), other.weights(), strict=True))


@EVERY
def test_wrong_settings_are_refused(kind):
    make = getattr(methods, kind)
    _, plastic = attached()
    for settings, message in (
        ({"density": 0}, r"^density must be a number in \(0, 1\], got 0$"),
        ({"drop": 2}, r"^drop must be a share in \[0, 1\], got 2$"),
        ({"every": 0}, r"^every must be a whole number >= 1 of steps, got 0$"),
        ({"until": 1.5}, r"^until must be a whole number >= 1 of steps, got 1.5$"),
        ({"distribution": "er"}, r"""^distribution must be "erk" or "uniform", got 'er'$"""),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make(plastic, **{"until": 10, **settings})
    assert plastic.gates.decision is None and bool(plastic.model[0].weight.all()), "nothing has changed"
    plain = npn.attach(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(2, 3))
    with pytest.raises(
        ConfigurationError,
        match=rf'^{kind} decides about single weights, but none has a gate; attach with unstructured=, such as "\*"$',
    ):
        make(plain, until=10)


def test_methods_of_whole_units_refuse_single_weights():
    with pytest.raises(
        ConfigurationError,
        match=r"^Slimming decides about whole units, but single weights of 2.weight have gates; attach without "
        r"unstructured=$",
    ):
        methods.Slimming(attached("2")[1])


# -- targeted dropout of weights


def test_candidates_are_the_smallest_weights_into_each_unit():
    model, plastic = attached(["2", "4"])
    method = methods.TargetedDropout(plastic, targeted={"2.weight": 0.35, "4.weight": 0.5, "*": 0}, rate=0.7)
    kept = method.kept()
    assert bool(kept["0"].all()) and bool(kept["2"].all())
    for name, count in (("2.weight", 3), ("4.weight", 3)):
        rows = model.get_parameter(name).abs()
        assert (~kept[name]).sum(1).tolist() == [count] * len(rows)
        for row, keep in zip(rows, kept[name], strict=True):
            assert row[~keep].max() <= row[keep].min()
    x, y = data()
    dropped = torch.zeros_like(model[2].weight)
    before = model[2].weight.detach().clone()
    for _ in range(300):
        model.zero_grad()
        method.backward(lambda: F.cross_entropy(model(x), y))
        assert torch.equal(model[2].weight, before)
        dropped += model[2].weight.grad == 0
    never = dropped == 300  # rows of units that no example activates
    frequency = (dropped / 300)[~kept["2.weight"] & ~never]
    assert float(frequency.mean()) == pytest.approx(0.7, abs=0.05)
    pruned = before * kept["2.weight"]
    h = F.relu(model[0](x))
    expected = F.linear(F.relu(F.linear(h, pruned, model[2].bias)), model[4].weight * kept["4.weight"], model[4].bias)
    torch.testing.assert_close(model(x), expected)
    small = method.export()
    torch.testing.assert_close(small(x), expected)
    torch.testing.assert_close(small[2].weight, pruned)


def test_transposed_convolutions_have_their_outputs_on_the_second_axis():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.ReLU(), nn.Conv2d(3, 2, 1))
    plastic = npn.attach(model, torch.zeros(1, 2, 4, 4), unstructured="0")
    method = methods.TargetedDropout(plastic, targeted={"0.weight": 0.5, "*": 0})
    kept = method.kept()["0.weight"]
    assert kept.shape == (2, 3, 2, 2) and (~kept).sum((0, 2, 3)).tolist() == [4, 4, 4]


def test_the_share_does_not_compound_when_units_go():
    model, plastic = attached(["2"])
    method = methods.TargetedDropout(plastic, targeted={"2.weight": 0.5, "*": 0.0})
    with torch.no_grad():
        model[2].weight[:, :5] *= 1e-3  # all candidates lie in these columns
    x, _ = data()
    before = model(x)
    assert method.compact().changes == {"0": (10, 5)}
    torch.testing.assert_close(model(x), before)
    assert bool(method.kept()["2.weight"].all()), "half of the ten weights of each row are gone"


# -- other methods reach single weights as well


@pytest.mark.parametrize("kind", ["hard_concrete", "beta_bernoulli", "information_bottleneck"])
def test_gates_of_single_weights_learn_and_go(kind):
    make = {
        "hard_concrete": lambda p: methods.HardConcrete(p),
        "beta_bernoulli": lambda p: methods.BetaBernoulli(p, examples=32),
        "information_bottleneck": lambda p: methods.InformationBottleneck(p, weight=1e-2),
    }[kind]
    model, plastic = attached(["2"])
    method = make(plastic)
    own = {"log_alpha": -4.0, "a": -10.0, "log_variance": 5.0}
    optimizer = optimizer_of(plastic, method)
    step(model, method, optimizer)
    name = next(key for key in own if key in method._tensors)
    with torch.no_grad():
        method._tensors[name]["2.weight"][:, [0, 3]] = own[name]
        method._tensors[name]["2.weight"][2] = own[name]
    method.after_step()
    x, _ = data()
    mask = method.evaluation_mask()
    h = F.relu(model[0](x))
    single = mask[16:].view(6, 10) * mask[:10]
    h = F.relu(F.linear(h, model[2].weight * single, model[2].bias)) * mask[10:16]
    expected = F.linear(h, model[4].weight, model[4].bias)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(method.export()(x), expected, atol=1e-6, rtol=1e-5)
    assert method.compact().changes["0"] == (10, 8), "nothing reads them any more"
    torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=1e-5)
    step(model, method, optimizer)


def test_the_authors_code_drops_single_weights_inside_targeted_units():
    _, plastic = attached()
    method = methods.TargetedDropout(plastic, targeted={"*.weight": 0, "*": 0.5}, rate=0.3, paper_code=True)
    units = len(plastic.gates) - 30 - 60 - 12
    whole, inside = method.candidates()[:units].split([10, 6])
    assert not method.candidates()[units:].any() and (int(whole.sum()), int(inside.sum())) == (5, 3)
    masks = torch.stack([method.training_mask() for _ in range(4000)]).mean(0)
    assert torch.equal(masks[:units], torch.ones(units)), "no unit is dropped as a whole"
    first, second, last = masks[units:].split([30, 60, 12])
    for mask, candidates in ((first.view(10, 3), whole), (second.view(6, 10), inside)):
        assert torch.equal(mask[~candidates], torch.ones_like(mask[~candidates]))
        assert (mask[candidates] - 0.7).abs().max() < 0.04  # 5 standard errors
    assert torch.equal(last, torch.ones(12)), "the units of the output are never targeted"
    kept = method.kept_gates()
    assert torch.equal(kept[:units], ~torch.cat([whole, inside])), "evaluation drops whole units"


def test_drawing_inside_units_needs_gates_on_all_their_weights():
    with pytest.raises(ConfigurationError) as caught:
        methods.TargetedDropout(attached(unstructured="2.weight")[1], paper_code=True)
    assert str(caught.value) == (
        "paper_code=True draws for each weight that produces a unit, but not all of these have gates of their own; "
        'attach with unstructured="*"'
    )


class InOut(nn.Module):
    """A layer with its weight as (inputs, outputs), as in GPT-2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x):
        return x @ self.weight


@pytest.mark.parametrize("alone", [False, True], ids=["between gates", "without gates of units"])
def test_the_weights_of_a_unit_are_found_whatever_the_layout(alone):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 6), InOut(6, 20), nn.ReLU(), InOut(20, 10), nn.ReLU(), nn.Linear(10, 3))
    plastic = npn.attach(
        model, torch.zeros(4, 2, dtype=torch.long), unstructured=["0", "3"], skip=["0"] if alone else None
    )
    method = methods.TargetedDropout(plastic, targeted={"*.weight": 0.5, "*": 0})
    for name in ("0.weight", "3.weight"):
        assert method.kept()[name].sum(0).unique().tolist() == [10]
    assert method.kept()["3.weight"].sum(1).unique().numel() > 1


def test_spheres_hold_the_weights_of_a_unit_whatever_the_layout():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), InOut(6, 20), nn.ReLU(), nn.Linear(20, 3))
    x = torch.randn(8, 4)
    sphere = methods.LpSphere(npn.attach(model, x, unstructured="2"), steps=10, rate=0.1)
    norms, before = model[2].weight.detach().norm(1.3, dim=0), model[2].weight.detach().clone()
    for _ in range(3):
        sphere.backward(lambda: model(x).square().mean())
        sphere.after_step()
    torch.testing.assert_close(model[2].weight.detach().norm(1.3, dim=0), norms)
    assert not torch.allclose(model[2].weight, before, atol=1e-2)


def test_removed_weights_stay_candidates_whatever_else_goes_from_their_rows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3))
    x = torch.randn(64, 6)
    plastic = npn.attach(model, x, unstructured="*")
    method = methods.TargetedDropout(plastic, targeted=0.5)
    optimizer = torch.optim.SGD(plastic.weights(), lr=0.1, momentum=0.9)
    plastic.track(optimizer)
    masked = model(x)
    assert {"0", "2"} <= method.compact().changes.keys()
    torch.testing.assert_close(model(x), masked)
    zeros = {name: weight == 0 for name, weight in method.single_weights().items()}
    assert all(bool(zero.any()) for zero in zeros.values())
    for _ in range(5):
        optimizer.zero_grad()
        method.backward(lambda: model(x).square().mean())
        optimizer.step()
        method.after_step()
    assert all(not bool(weight[zeros[name]].any()) for name, weight in method.single_weights().items())


@pytest.mark.parametrize("unstructured", [None, "0"])
def test_methods_refuse_handles_whose_units_or_weights_are_closed(unstructured):
    plastic = npn.attach(
        nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)), torch.zeros(1, 5), unstructured=unstructured
    )
    name = "0" if unstructured is None else "0.weight"
    plastic.close(name, [0, 1, 2])
    with pytest.raises(ConfigurationError, match=f"units or weights of {name} are closed, and HardConcrete would open"):
        methods.HardConcrete(plastic)
    assert plastic.gates.decision is None
    plastic.open(name, [0, 1, 2])
    methods.HardConcrete(plastic)
    with pytest.raises(
        ConfigurationError, match="HardConcrete decides which units stay, so trained gates have no part"
    ):
        npn.start_from(plastic, {"0": torch.arange(6.0)})


def test_a_gradient_that_overflows_moves_no_weight_of_rigl():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(5, 4)
    method = methods.RigL(npn.attach(model, x, unstructured="*"), density=0.5, until=10, every=1)
    before = method.kept()
    method.backward(lambda: model(x).square().mean(), scale=torch.tensor(torch.inf))
    method.after_step()
    assert all(torch.equal(kept, before[name]) for name, kept in method.kept().items())
    method.backward(lambda: model(x).square().mean())
    method.after_step()
    assert not all(torch.equal(kept, before[name]) for name, kept in method.kept().items())
