"""What each method at unit level does on its own."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn
from npn import functional, methods
from npn.errors import CheckpointError, ConfigurationError

from .common import build, optimizer_of, shaken, train

pytestmark = pytest.mark.usefixtures("traces_are_shared")


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 10), nn.ReLU(), nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 2))


def attached(**options):
    model = small_net()
    return model, npn.attach(model, torch.zeros(2, 3), **options)


# -- hard concrete


def test_hard_concrete_pays_for_active_gates_at_the_price_of_the_handle():
    _, plastic = attached(penalty=npn.Penalty("layerwise", {"0": 0.1, "2": 0.2}))
    method = methods.HardConcrete(plastic, drop={"0": 0.2, "*": 0.5})
    first, second = method._tensors["log_alpha"]["0"], method._tensors["log_alpha"]["2"]
    assert float(first.detach().mean()) == pytest.approx(math.log(4), abs=0.02)
    assert float(second.detach().mean()) == pytest.approx(0, abs=0.02) and 0 < float(second.detach().std()) < 0.03
    active = functional.hard_concrete_active
    expected = 0.1 * 6 * active(first).sum() + 0.2 * 2 * active(second).sum()  # weights that read a unit
    torch.testing.assert_close(method.penalty(), expected)
    _, other = attached(penalty=npn.Penalty("params", 1e-2))
    way = methods.HardConcrete(other)
    kept = [active(way._tensors["log_alpha"][name]).sum() for name in ("0", "2")]
    torch.testing.assert_close(way.penalty(), 1e-2 * (4 * kept[0] + (kept[0] + 1) * kept[1] + 2 * kept[1] + 2))


def test_hard_concrete_clamps_after_a_step_and_keeps_one_unit():
    model, plastic = attached()
    method = methods.HardConcrete(plastic)
    with torch.no_grad():
        method.parameters()[0].fill_(-9.0)
        method.parameters()[0][3] = -8.0
        method.parameters()[1].fill_(9.0)
    assert method.kept()["0"].nonzero().tolist() == [[3]] and bool(method.kept()["2"].all())
    method.after_step()
    assert method.parameters()[0].unique().tolist() == pytest.approx([math.log(1e-2)])
    assert method.parameters()[1].unique().tolist() == pytest.approx([math.log(1e2)])
    x = torch.randn(4, 3)
    expected = model(x)
    small = method.export()
    torch.testing.assert_close(small(x), expected)
    assert small[0].out_features == 1 and not small[2].weight.any(), "its gate is 0, and so is what reads it"


def test_dual_restarts_by_hand():
    _, plastic = attached(penalty=methods.DualRestarts("units", target=0.5, rate=0.1))
    method = methods.HardConcrete(plastic, drop=0.1)
    x, bound = torch.randn(4, 3), plastic.penalty
    active = float(functional.hard_concrete_active(method._joined("log_alpha")).sum().detach()) / 16
    assert float(method.penalty().detach()) == 0
    method.backward(lambda: plastic.model(x).square().mean())
    assert float(bound.multiplier) == pytest.approx(0.1 * (active - 0.5), rel=1e-5)
    assert float(method.penalty().detach()) == pytest.approx(0.1 * (active - 0.5) ** 2, rel=1e-5)
    method.backward(lambda: plastic.model(x).square().mean())
    assert float(bound.multiplier) == pytest.approx(0.2 * (active - 0.5), rel=1e-5)
    fresh = methods.DualRestarts("units", target=0.5, rate=0.1)
    fresh.load_state_dict(bound.state_dict())
    assert repr(fresh) == repr(bound) and "multiplier=0.0" in repr(bound)
    with torch.no_grad():
        [p.fill_(-4.0) for p in method.parameters()]
    method.backward(lambda: plastic.model(x).square().mean())
    assert float(bound.multiplier) == 0, "back to 0 as soon as the bound holds"


def test_a_budget_drives_hard_concrete_gates_to_its_target():
    model, plastic = attached(penalty=npn.Budget("units", 0.5, rate=0.05))
    method = methods.HardConcrete(plastic)
    optimizer = optimizer_of(plastic, method)
    x = torch.randn(32, 3)
    target = x.sum(1).gt(0).long()
    for _ in range(150):
        optimizer.zero_grad()
        method.backward(lambda: F.cross_entropy(model(x), target))
        optimizer.step()
        method.after_step()
    active = functional.hard_concrete_active(method._joined("log_alpha")).sum()
    assert float(active.detach()) == pytest.approx(8, abs=1)


@pytest.mark.parametrize("drop", [0, 1.0, {"0": 0.5, "2": 1.5}])
def test_hard_concrete_refuses_rates_outside_its_range(drop):
    _, plastic = attached()
    came = drop["2"] if isinstance(drop, dict) else drop
    with pytest.raises(ConfigurationError, match=rf"^drop must be a rate in \(0, 1\), got {came}$"):
        methods.HardConcrete(plastic, drop=drop)
    with pytest.raises(ConfigurationError, match=r"""^drop: no pattern matches '2'; add "\*" as the last$"""):
        methods.HardConcrete(plastic, drop={"0": 0.5})
    assert plastic.gates.decision is None


def test_dual_restarts_refuses_wrong_settings():
    with pytest.raises(ConfigurationError, match=r"^target must be a number in \(0, 1\], got 1.5$"):
        methods.DualRestarts("params", 1.5)
    with pytest.raises(ConfigurationError, match=r"^rate must be a finite number > 0, got 0$"):
        methods.DualRestarts("params", 0.5, rate=0)


# -- targeted dropout


def test_the_candidates_are_the_units_of_least_fan_in():
    model, plastic = attached()
    method = methods.TargetedDropout(plastic, targeted={"0": 0.35, "2": 0.5}, rate=0.4)
    norms = [model[0].weight.norm(dim=1), model[2].weight.norm(dim=1)]
    first, second = method.candidates().split([10, 6])
    assert set(first.nonzero().view(-1).tolist()) == set(norms[0].argsort()[:3].tolist())
    assert set(second.nonzero().view(-1).tolist()) == set(norms[1].argsort()[:3].tolist())
    drawn = torch.stack([method.training_mask() for _ in range(4000)])
    frequency = 1 - drawn.mean(0)
    candidates = torch.cat([first, second])
    torch.testing.assert_close(frequency[candidates], torch.full((6,), 0.4), atol=0.04, rtol=0)
    assert not frequency[~candidates].any()
    assert torch.equal(method.kept_gates(), ~candidates)


def test_dropped_units_keep_their_values_and_get_no_gradient():
    model, plastic = attached()
    method = methods.TargetedDropout(plastic, targeted=0.5, rate=1.0)
    x, gone = torch.randn(8, 3), method.candidates()[:10]
    before = model[2].weight.detach().clone()
    method.backward(lambda: model(x).square().mean())
    assert torch.equal(model[2].weight, before)
    assert not model[2].weight.grad[:, gone].any() and not model[0].weight.grad[gone].any()
    assert model[2].weight.grad[:, ~gone].any()
    optimizer_of(plastic, method)
    trained = method.backward(lambda: model(x).square().mean())
    torch.testing.assert_close(trained, model(x).square().mean().detach())  # alpha = 1 is hard pruning at every step
    mild = methods.TargetedDropout(attached()[1], targeted=0.5, rate=0.0)
    assert bool(mild.training_mask().all()), "alpha = 0 drops nothing"


def test_ramping_and_a_share_that_does_not_compound():
    _, plastic = attached()
    method = methods.TargetedDropout(plastic, targeted=0.5, rate=0.8, ramp=100)
    shares = []
    for _ in range(101):
        shares.append(method._ramped())
        method.after_step()
    assert shares[0] == (0.0, 0.0) and shares[100] == (1.0, 0.8)
    assert shares[50] == pytest.approx((0.95, 0.4)) and shares[25] == pytest.approx((0.475, 0.2))
    assert shares[75] == pytest.approx((0.975, 0.6))
    assert method.compact().changes == {"0": (10, 5), "2": (6, 3)}
    assert not method.candidates().any() and not method.compact(), "the share is of the units at the start"
    full = methods.TargetedDropout(attached()[1], targeted=1.0)
    assert full.compact().changes == {"0": (10, 1), "2": (6, 1)}


def test_targeted_dropout_refuses_wrong_settings():
    _, plastic = attached()
    with pytest.raises(ConfigurationError, match=r"^targeted must be a share in \[0, 1\], got 1.5$"):
        methods.TargetedDropout(plastic, targeted={"0": 1.5})
    with pytest.raises(ConfigurationError, match=r"^rate must be a share in \[0, 1\], got -0.1$"):
        methods.TargetedDropout(plastic, rate=-0.1)
    with pytest.raises(ConfigurationError, match=r"^ramp must be a whole number >= 1 of steps \(or None\), got 0$"):
        methods.TargetedDropout(plastic, ramp=0)


def test_dual_restarts_begin_anew_and_refuse_half_a_state():
    dual = methods.DualRestarts("weights", target=0.5)
    dual.load_state_dict(dual.state_dict() | {"multiplier": 3.0})
    with pytest.raises(CheckpointError, match=r"multiplier"):
        dual.load_state_dict({"type": "DualRestarts", "cost": "weights"})
    assert float(dual.multiplier) == 3.0
    dual.reset()
    assert float(dual.multiplier) == 0.0


# -- Beta-Bernoulli


def test_the_divergence_is_paid_per_example():
    _, plastic = attached()
    method = methods.BetaBernoulli(plastic, examples=50, kl_scale={"0": 40.0, "*": 1.0})
    a, b = method.posterior()
    assert a.tolist()[0] == pytest.approx(0.31326, abs=1e-5) and b.tolist()[0] == pytest.approx(1.0)
    assert float(method.penalty().detach()) == pytest.approx((10 * 40 + 6) * 7.049953 / 50, rel=1e-4)
    assert method.evaluation_mask().tolist() == pytest.approx([0.238541] * 16, abs=1e-4)


def test_the_mean_of_the_training_gates_is_the_evaluation_gate():
    _, plastic = attached()
    method = methods.BetaBernoulli(plastic, examples=50, a=2.0)
    drawn = torch.stack([method.training_mask().detach() for _ in range(4000)])
    torch.testing.assert_close((drawn > 0.5).float().mean(0), method.evaluation_mask(), atol=0.04, rtol=0)


def test_units_under_the_threshold_go():
    _, plastic = attached()
    method = methods.BetaBernoulli(plastic, examples=50)
    raw = math.log(math.expm1(1.001e-3))  # for b = 1, E[pi] = a / (1 + a)
    with torch.no_grad():
        method.parameters()[0][:2] = torch.tensor([raw - 0.01, raw + 0.01])
    assert method.kept()["0"].tolist() == [False] + [True] * 9
    assert method.evaluation_mask()[0] == 0


def test_beta_bernoulli_refuses_wrong_settings():
    _, plastic = attached()
    with pytest.raises(ConfigurationError, match=r"^examples must be a whole number >= 1 of training examples, got 0$"):
        methods.BetaBernoulli(plastic, examples=0)
    for name in ("alpha", "temperature", "kl_scale"):
        with pytest.raises(ConfigurationError, match=rf"^{name} must be a finite number > 0, got -1.0$"):
            methods.BetaBernoulli(plastic, examples=5, **{name: -1.0})
    with pytest.raises(ConfigurationError, match=r"^threshold must be a share in \[0, 1\], got 2$"):
        methods.BetaBernoulli(plastic, examples=5, threshold=2)


# -- information bottleneck


def test_units_with_more_noise_than_signal_go():
    _, plastic = attached()
    method = methods.InformationBottleneck(plastic, weight={"0": 0.1, "2": 0.3})
    mean, log_variance = method._tensors["mean"]["0"], method._tensors["log_variance"]["0"]
    assert float(mean.detach().mean()) == pytest.approx(1, abs=0.02) and log_variance.unique().tolist() == [-9.0]
    with torch.no_grad():
        mean[0], log_variance[0] = 2.0, 2 * math.log(2.0) + 1e-3
        mean[1], log_variance[1] = -2.0, 2 * math.log(2.0) - 1e-3
    assert method.kept()["0"].tolist() == [False] + [True] * 9
    assert method.evaluation_mask()[:2].tolist() == [0.0, -2.0]
    every = functional.bottleneck_penalty(method._joined("mean"), method._joined("log_variance"))
    torch.testing.assert_close(method.penalty(), 0.1 * every[:10].sum() + 0.3 * every[10:].sum())
    with pytest.raises(ConfigurationError, match=r"^weight must be a finite number > 0, got inf$"):
        methods.InformationBottleneck(attached()[1], weight=math.inf)


@pytest.mark.parametrize(
    "make",
    [
        lambda plastic, price: methods.BetaBernoulli(plastic, examples=50, kl_scale=price),
        lambda plastic, price: methods.InformationBottleneck(plastic, weight=price),
    ],
)
def test_new_units_have_the_price_of_their_group(make):
    _, plastic = attached()
    method = make(plastic, {"0": 0.1, "*": 5.0})
    plastic.grow({"0": 2, "2": 1})
    (prices,) = [tensors for name, tensors in method._tensors.items() if name in ("kl_scale", "weight")]
    assert prices["0"].tolist() == pytest.approx([0.1] * 12) and prices["2"].tolist() == [5.0] * 7


# -- slimming


def norm_net():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm1d(3), nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(),
        nn.Linear(5, 2), nn.BatchNorm1d(2),
    )  # fmt: skip
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([0.9, -0.1, 0.0, 0.5, 0.05, -0.7]))
        model[5].weight.copy_(torch.tensor([0.3, 0.02, -0.8, 0.04, 0.6]))
    return model


def test_the_subgradient_reaches_the_scales_that_may_go_and_no_other():
    model = norm_net()
    method = methods.Slimming(npn.attach(model, torch.zeros(4, 3)), weight=0.5)
    x = torch.randn(8, 3)
    F.mse_loss(model(x), torch.ones(8, 2)).backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    method.backward(lambda: F.mse_loss(model(x), torch.ones(8, 2)))
    for name, p in model.named_parameters():
        added = 0.5 * p.detach().sign() if name in ("2.weight", "5.weight") else torch.zeros_like(p)
        torch.testing.assert_close(p.grad, plain[name] + added)


def test_a_cut_is_global_and_leaves_one_unit_of_a_group():
    model = norm_net()
    plastic = npn.attach(model, torch.zeros(4, 3))
    method = methods.Slimming(plastic)
    assert all(bool(kept.all()) for kept in method.kept().values()), "nothing goes before the cut"
    method.cut(5 / 11)  # 0, .02, .04, .05, .1
    assert method.kept()["1"].tolist() == [True, False, False, True, False, True]
    assert method.kept()["4"].tolist() == [True, False, True, False, True]
    assert method.compact().changes == {"1": (6, 3), "4": (5, 3)}
    method.cut(1.0)
    assert {name: kept.tolist() for name, kept in method.kept().items()} == {
        "1": [True, False, False],
        "4": [False, True, False],
    }
    with pytest.raises(ConfigurationError, match=r"^fraction must be a share in \[0, 1\], got 70$"):
        method.cut(70)


def test_slimming_refuses_groups_without_batchnorm(tiny):
    with pytest.raises(
        ConfigurationError,
        match=r"^Slimming needs a BatchNorm with a scale on every unit, but there is none in '3'; leave that out with "
        r"skip= when attaching$",
    ):
        methods.Slimming(tiny["four"].attach()[1])
    with pytest.raises(ConfigurationError, match=r"^weight must be a finite number > 0, got 0$"):
        methods.Slimming(tiny["conv"].attach()[1], weight=0)


# -- all


@pytest.mark.parametrize("method", ["hard_concrete", "beta_bernoulli", "information_bottleneck", "targeted_dropout"])
@pytest.mark.parametrize("name", ["residual", "recurrent", "depthwise"])
def test_other_couplings_export_exactly(tiny, method, name):
    spec = tiny[name]
    model, plastic, way = build(tiny, method, name)
    optimizer = optimizer_of(plastic, way)
    train(spec, model, way, optimizer, 2)
    shaken(way)
    model.eval()
    x, _ = spec.data()
    torch.testing.assert_close(way.export()(x), model(x), atol=1e-6, rtol=1e-5)
    before = model(x)
    way.compact()
    torch.testing.assert_close(model(x), before, atol=1e-6, rtol=1e-5)
    train(spec, model, way, optimizer, 1)


def test_columns_and_branches_have_gates_too():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = self.stem(x)
            h = h + self.a(h)
            h = h + self.b(h)
            return self.head(h)

    torch.manual_seed(0)
    model, x = Block(), torch.randn(6, 3)
    plastic = npn.attach(model, x, branches=["a", "b"], columns="head")
    method = methods.HardConcrete(plastic)
    assert [tuple(p.shape) for p in method.parameters()] == [(4,), (2,), (4,)]
    with torch.no_grad():
        method.parameters()[1][0] = -4.0
        method.parameters()[2][1] = -4.0
    targeted = methods.TargetedDropout(npn.attach(Block(), x, branches=["a", "b"], columns="head"))
    assert int(targeted.candidates().sum()) == 2 + 1 + 2
    expected = model(x)
    torch.testing.assert_close(method.export()(x), expected)
    method.compact()
    assert len(method.parameters()[1]) == 1
    torch.testing.assert_close(model(x), expected)
