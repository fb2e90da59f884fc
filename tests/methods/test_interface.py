"""What every method shares: exact gradients, evaluation, removal, export, checkpoints."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import npn
from npn import methods
from npn.errors import CheckpointError, ConfigurationError

from .common import MAKE, build, loss_by_hand, next_mask, optimizer_of, shaken, train

pytestmark = pytest.mark.usefixtures("traces_are_shared")
EVERY = pytest.mark.parametrize("method", MAKE)


@EVERY
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_gradients_are_those_of_a_network_masked_by_hand(tiny, method, scale):
    spec = tiny["conv"]
    model, plastic, way = build(tiny, method)
    x, y = spec.data()
    mask = next_mask(way)
    total = scale * (loss_by_hand(spec, model, plastic, mask, x, y) + way.penalty())
    leaves = [*plastic.weights(), *way.parameters()]
    expected = torch.autograd.grad(total, leaves)
    loss = way.backward(lambda: F.cross_entropy(model(x), y), scale=scale)
    torch.testing.assert_close(scale * (loss + way.penalty().detach()), total.detach())
    for leaf, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, atol=1e-6, rtol=1e-4)


@EVERY
def test_gradients_of_one_mask_per_example(tiny, method):
    spec = tiny["conv"]
    model, plastic, way = build(tiny, method, masks="example")
    model.eval()  # BatchNorm would couple the examples
    x, y = spec.data()
    masks = next_mask(way, len(x)).expand(len(x), -1)
    losses = [loss_by_hand(spec, model, plastic, masks[i], x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    leaves = [*plastic.weights(), *way.parameters()]
    expected = torch.autograd.grad(torch.stack(losses).mean() + way.penalty(), leaves)
    way.backward(lambda: F.cross_entropy(model(x), y, reduction="none"))
    assert method in ("slimming", "lp_sphere") or not torch.equal(masks[0], masks[1])
    for leaf, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, atol=1e-6, rtol=1e-4)


@EVERY
def test_a_call_and_the_export_have_the_evaluation_mask(tiny, method):
    spec = tiny["conv"]
    model, plastic, way = build(tiny, method)
    shaken(way)
    model.eval()
    x, _ = spec.data()
    mask = way.evaluation_mask()
    kept = way.kept()
    masked = spec.masked_copy(model, dict(zip(kept, mask.split([g.size for g in plastic.groups]), strict=True)))
    torch.testing.assert_close(model(x), masked(x))
    small = way.export()
    assert {group.name: int(kept[group.name].sum()) for group in plastic.groups} == plastic.sizes()
    assert small[0].out_channels == int(kept["0"].sum()) and small[3].out_channels == int(kept["3"].sum())
    assert sum(plastic.sizes().values()) < len(plastic.gates), "some unit goes"
    torch.testing.assert_close(small(x), masked(x), atol=1e-6, rtol=1e-5)
    assert [p.shape for p in model.parameters()] == [p.shape for p in spec.model().parameters()]


@EVERY
def test_compact_takes_optimizers_along_and_training_goes_on(tiny, method):
    spec = tiny["conv"]
    model, plastic, way = build(tiny, method)
    optimizer = optimizer_of(plastic, way)
    train(spec, model, way, optimizer, 2)
    shaken(way)
    x, _ = spec.data()
    model.eval()
    before, kept = model(x), way.kept()
    mask, own = way.evaluation_mask(), [p.detach().clone() for p in way.parameters()]
    moments = optimizer.state[model[0].weight]["exp_avg"].clone()
    keep = torch.cat(list(kept.values()))
    report = way.compact()
    assert report.changes == {n: (len(k), int(k.sum())) for n, k in kept.items() if not k.all()}
    torch.testing.assert_close(model(x), before, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(optimizer.state[model[0].weight]["exp_avg"], moments[kept["0"]])
    torch.testing.assert_close(way.evaluation_mask(), mask[keep])
    assert all(bool(k.all()) for k in way.kept().values()), "and nothing more goes"
    for p, value in zip(way.parameters(), own, strict=True):
        units = next(k for k in kept.values() if len(k) == len(value))
        torch.testing.assert_close(p.detach(), value[units])
        assert optimizer.state[p]["exp_avg"].shape == p.shape
    model.train()
    assert math.isfinite(train(spec, model, way, optimizer, 2))
    plastic.grow({"0": 2})
    assert len(way.kept()["0"]) == int(kept["0"].sum()) + 2
    assert math.isfinite(train(spec, model, way, optimizer, 2))


@EVERY
def test_a_method_decides_about_new_units_at_once(tiny, method):
    _, plastic, way = build(tiny, method)
    plastic.grow({"0": 2, "3": 2}, grace=100)
    shaken(way)
    kept = {name: int(keep.sum()) for name, keep in way.kept().items()}
    assert plastic.sizes() == kept
    way.compact()
    assert {group.name: group.size for group in plastic.groups} == kept


@pytest.mark.parametrize("method", sorted(MAKE.keys() - {"targeted_dropout"}))  # its candidates are a share of all
def test_growth_keeps_the_function(tiny, method):
    model, plastic, way = build(tiny, method)
    shaken(way)
    x, _ = tiny["conv"].data()
    model.eval()
    before = model(x)
    for init in ("zero", "pair", "split"):
        plastic.grow({"0": 2, "3": 2}, init=init, grace=1)
        torch.testing.assert_close(model(x), before, atol=1e-6, rtol=1e-5)
    assert len(way.kept()["0"]) == tiny["conv"].model()[0].out_channels + 6


@EVERY
def test_the_handles_own_backward_trains_under_the_evaluation_mask(tiny, method):
    spec = tiny["conv"]
    model, plastic, way = build(tiny, method)
    shaken(way)
    x, y = spec.data()
    loss = loss_by_hand(spec, model, plastic, way.evaluation_mask(), x, y)
    expected = torch.autograd.grad(loss, plastic.weights())
    torch.testing.assert_close(plastic.backward(lambda: F.cross_entropy(model(x), y)), loss.detach())
    for leaf, gradient in zip(plastic.weights(), expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, atol=1e-6, rtol=1e-4)
    assert all(p.grad is None for p in way.parameters())


@EVERY
def test_a_checkpoint_restores_model_and_method(tiny, tmp_path, method):
    spec = tiny["conv"]
    model, plastic, way = build(tiny, method)
    optimizer = optimizer_of(plastic, way)
    train(spec, model, way, optimizer, 2)
    shaken(way).compact()
    npn.save(tmp_path / "run.npn", plastic, method=way)
    train(spec, model, way, optimizer, 2)
    wanted = [p.detach().clone() for p in [*plastic.weights(), *way.parameters()]]
    again, other, same = build(tiny, method, seed=4)
    resumed = optimizer_of(other, same)
    npn.load(tmp_path / "run.npn", other, method=same)
    train(spec, again, same, resumed, 2)
    assert all(torch.equal(a, b) for a, b in zip(wanted, [*other.weights(), *same.parameters()], strict=True))
    torch.testing.assert_close(same.evaluation_mask(), way.evaluation_mask())


@EVERY
def test_scores_that_are_no_numbers_remove_nothing(tiny, method):
    model, plastic, way = build(tiny, method)
    with torch.no_grad():
        own = way.parameters() or list(way._tensors.get("dual", {}).values())
        for tensor in own or [model[1].weight, model[0].weight]:
            if len(tensor) == plastic.groups[0].size:
                tensor[1:].fill_(math.nan)
    way.after_step()
    sizes, size = plastic.sizes(), plastic.groups[0].size
    message = rf"^{size - 1} of {size} scores of '0' are NaN, so which of its units stay is not known. Look at"
    for action in (way.compact, way.export, lambda: way.remove_below(0.0)):
        with pytest.raises(npn.errors.ResizeError, match=message):
            action()
    assert [group.size for group in plastic.groups] == [size, plastic.groups[1].size] and plastic.sizes() == sizes


@EVERY
def test_copies_follow_and_have_the_evaluation_mask(tiny, method):
    spec = tiny["conv"]
    model, plastic, way = build(tiny, method)
    average = plastic.follow(torch.optim.swa_utils.AveragedModel(model))
    shaken(way)
    x, _ = spec.data()
    model.eval(), average.eval()
    torch.testing.assert_close(average(x), model(x))
    torch.testing.assert_close(way.export(average)(x), model(x), atol=1e-6, rtol=1e-5)
    way.compact()
    torch.testing.assert_close(average(x), model(x), atol=1e-6, rtol=1e-5)
    twin = copy.deepcopy(plastic)
    assert twin.gates.decision is not way and twin.gates.decision.plastic is twin
    torch.testing.assert_close(twin.model.eval()(x), model(x))


def test_one_method_at_a_time_and_no_finite_sharpness(tiny):
    _, plastic, _ = build(tiny, "hard_concrete")
    with pytest.raises(
        ConfigurationError,
        match=r"^HardConcrete decides already which units stay; attach the model anew for TargetedDropout$",
    ):
        methods.TargetedDropout(plastic)
    with pytest.raises(
        ConfigurationError,
        match=r"^HardConcrete decides which units stay, so k stays inf, got 7.0; attach the model without a "
        r"method for that$",
    ):
        plastic.k = 7.0
    with pytest.raises(
        ConfigurationError,
        match=r"^HardConcrete decides which units stay, so they are not opened or closed by hand; attach the model "
        r"without a method for that$",
    ):
        plastic.close("0", [1])
    _, fresh = tiny["conv"].attach()
    fresh.k = 7.0
    with pytest.raises(ConfigurationError, match=r"^HardConcrete needs k = inf, where no gate is random, got k = 7$"):
        methods.HardConcrete(fresh)
    assert fresh.gates.decision is None and not fresh.gates.carried


def test_weight_decay_on_a_methods_parameters_is_refused(tiny):
    _, plastic, method = build(tiny, "hard_concrete")
    with pytest.raises(
        npn.errors.OptimizerError,
        match=r"^the gates of 0 are under weight_decay=0.01, which pulls every gate to 0; give method.parameters\(\) "
        r"their own param group with weight_decay=0$",
    ):
        plastic.track(torch.optim.AdamW(method.parameters()))


def test_a_state_of_another_method_is_refused(tiny):
    _, _, method = build(tiny, "hard_concrete")
    _, _, other = build(tiny, "beta_bernoulli")
    with pytest.raises(
        CheckpointError,
        match=r"^expected a state of HardConcrete, got one of BetaBernoulli; build the method as the saved one was$",
    ):
        method.load_state_dict(other.state_dict())


def test_a_wrong_closure_is_refused(tiny):
    model, _, method = build(tiny, "hard_concrete")
    x, _ = tiny["conv"].data()
    with pytest.raises(ConfigurationError, match=r"^the closure must return a scalar loss, got shape \(5, 2\); reduce"):
        method.backward(lambda: model(x))


def test_with_one_mask_per_example_losses_are_as_many_as_examples(tiny):
    model, _, method = build(tiny, "hard_concrete", masks="example")
    x, y = tiny["conv"].data()
    with pytest.raises(ConfigurationError, match=r"^the closure returned 3 losses for a batch of 5 examples$"):
        method.backward(lambda: F.cross_entropy(model(x), y, reduction="none")[:3])
    with pytest.raises(ConfigurationError, match=r'^with masks="example" the closure must return one loss per exampl'):
        method.backward(lambda: model(x))
    method.backward(lambda: F.cross_entropy(model(x), y))


@pytest.mark.parametrize("method", MAKE)
def test_units_of_a_low_score_go_and_the_rule_is_as_before(tiny, method):
    _, plastic, made = build(tiny, method)
    shaken(made).compact()
    score, sizes = made.chosen()[1].detach(), [group.size for group in plastic.groups]
    least = float(score.median())
    expected = [max(1, int((piece >= least).sum())) for piece in score.split(sizes)]
    made.remove_below(least)
    assert [group.size for group in plastic.groups] == expected
    assert not made.remove_below(-torch.inf).changes


def test_a_score_needs_a_method(tiny):
    with pytest.raises(ConfigurationError, match=r"^score= is for methods, which give units a score; gates have a p"):
        tiny["conv"].attach()[1].compact(score=0.5)


def test_the_cost_is_that_of_what_stays_before_any_call(tiny):
    _, plastic, method = build(tiny, "targeted_dropout")
    assert float(plastic.expected_cost("params")) == npn.count_params(method.export()) < npn.count_params(plastic.model)
