"""Two processes that train one model: what each draws, and what all share."""

import copy
import os
import pickle
import signal
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import npn
from npn import distributed

from .parallel import X, Y, assert_means, build, digest, everywhere, gradients, mine, step
from .processes import Died, together

# -- what is shared


def mean_of_all(estimator, masks):
    plastic, *_ = build(estimator=estimator, masks=masks, penalty=npn.Budget(cost="params", target=0.5))
    model = distributed.wrap(plastic)
    reduction = "none" if masks == "example" else "mean"
    state = plastic.gates.generator.get_state()
    first, other = everywhere(plastic.gates.draw())
    assert not torch.equal(first, other) and first.shape == other.shape
    plastic.gates.generator.set_state(state)
    whole = (X, Y)  # the same data, so that only the masks differ
    first, other = assert_means(plastic, model, data=whole, reduction=reduction)
    assert not any(torch.equal(a, b) for a, b in zip(first[-2:], other[-2:], strict=True))
    assert float(plastic.penalty.multiplier) > 0
    return float(plastic.penalty.multiplier), plastic.gates.generator.get_state()


@pytest.mark.parametrize(
    ("estimator", "masks"),
    [("reinmax", "batch"), ("disarm", "batch"), ("double_cv", "batch"), ("reinmax", "example"), ("disarm", "example")],
)
def test_each_process_draws_its_own_masks_and_the_gradients_are_the_mean(estimator, masks):
    (price, state), (other_price, other_state) = together(2, mean_of_all, estimator, masks)
    assert price == other_price and torch.equal(state, other_state)


def spread(steps):
    """Variance of the logits' gradient over steps at the same weights, and its mean."""
    plastic, *_ = build(estimator="disarm", penalty=npn.Penalty(weight=0.0))
    found = []
    for _ in range(steps):
        step(plastic, plastic.model, data=(X, Y))
        found.append(torch.cat(gradients(plastic)[-2:]))
    found = torch.stack(found)
    return float(found.var(0).sum()), found.mean(0)


def test_the_estimate_improves_with_the_number_of_processes():
    alone, mean = together(1, spread, 200)[0]
    both, same_mean = together(2, spread, 200)[0]
    assert 0.3 < both / alone < 0.7
    assert float((mean - same_mean).norm()) < 2 * (1.5 * alone / 200) ** 0.5 < 2 * float(mean.norm())


def three_resizes(half):
    plastic, weights, gates = build(penalty=npn.Penalty(weight=1e-3))
    model = distributed.wrap(plastic)
    sizes, wrappers = [], []
    torch.manual_seed(distributed.rank())  # new rows would differ

    def train(steps):
        for _ in range(steps):
            step(plastic, model, weights, gates, data=mine() if half else (X, Y))
        wrappers.append(model.ddp)
        assert_means(plastic, model)  # of the weights, too: the wrapper knows them all
        distributed.check(plastic)
        sizes.append((plastic.model[0].out_features, plastic.model[2].out_features))

    train(5)
    plastic.close("0", [1, 4, 7])
    plastic.compact()
    train(5)
    plastic.grow({"0": 2, "2": 1}, grace=4)
    train(5)
    plastic.close("2", [0, 2])
    plastic.compact()
    train(5)
    assert len({id(wrapper) for wrapper in wrappers}) == 4
    return sizes, digest(plastic), digest(plastic) == digest(build()[0])


@pytest.mark.parametrize("half", [True, False])
def test_three_resizes_leave_the_same_on_all(half):
    first, other = together(2, three_resizes, half)
    assert first == other
    assert first[0] == [(12, 8), (9, 8), (11, 9), (11, 7)] and not first[2]


def started(init):
    plastic, weights, gates = build()
    model = distributed.wrap(plastic)
    torch.manual_seed(distributed.rank())  # candidates, fan-outs and measurements would differ
    loss = lambda: F.cross_entropy(model(mine()[0]), mine()[1])  # noqa: E731
    for _ in range(2):
        step(plastic, model, weights, gates)
    report = plastic.grow({"0": 2, "2": 2}, grace=4, warmup=3, init=init, loss=loss if init == "select" else None)
    for _ in range(3):
        step(plastic, model, weights, gates)
        distributed.check(plastic)
    return report.added, digest(plastic)


@pytest.mark.parametrize("init", ["pair", "split", "select"])
def test_new_units_start_the_same_on_all(init):
    first, other = together(2, started, init)
    assert first == other and first[0] == {"0": (12, 13), "2": (8, 9)}


def curve(plain, plastic_steps):
    """Losses of so many steps at k = inf and then at k = 7, the loss of the net that is left, and its units."""
    plastic, weights, gates = build(penalty=npn.Penalty(weight=4e-4))
    weights.param_groups[0]["lr"] = 0.15
    model, losses = distributed.wrap(plastic), []
    for number in range(plain + plastic_steps):
        plastic.k = 7.0 if number >= plain else float("inf")
        losses.append(float(distributed.mean(step(plastic, model, weights, gates))))
    plastic.k = float("inf")
    with torch.no_grad():
        return losses, float(F.cross_entropy(plastic.model(X), Y)), sum(plastic.sizes().values())


def test_a_plain_network_learns_as_on_one_process():
    ((one, end, _),), (both, other) = together(1, curve, 30, 0), together(2, curve, 30, 0)
    assert both == other
    assert one == pytest.approx(both[0], rel=1e-3) and end == pytest.approx(both[1], rel=1e-3)
    assert one[-1] < 0.8 * one[0]


def test_a_plastic_network_learns_about_as_on_one_process():
    ((one, end, units),), (both, other) = together(1, curve, 30, 60), together(2, curve, 30, 60)
    assert both == other and both[0] != one  # other masks
    for part in (slice(30, 60), slice(60, 90)):
        assert sum(both[0][part]) / 30 == pytest.approx(sum(one[part]) / 30, abs=0.1)
    assert sum(one[60:]) / 30 < 0.4 * one[0]  # it has learnt
    assert both[1] == pytest.approx(end, abs=0.1) and abs(both[2] - units) <= 4 and units < 18


# -- one process, and other numbers of them


def single():
    plastic, *_ = build()
    model = distributed.wrap(plastic)
    twin = torch.Generator()
    twin.set_state(plastic.gates.generator.get_state())
    assert torch.equal(plastic.gates.draw(3), torch.rand(3, 20, generator=twin))
    with mock.patch.object(dist, "all_reduce", None), mock.patch.object(dist, "all_gather_object", None):
        step(plastic, model)
        distributed.check(plastic)
        plastic.close("0", [0])
        plastic.compact()
        plastic.grow({"2": 1})
    return model.ddp is None and model(X).shape == (64, 2)


def asked_of_the_wrapper():
    plastic, *_ = build()
    model = distributed.wrap(plastic)
    assert model.eval() is plastic.model and not plastic.model.training
    assert model.train() is plastic.model and plastic.model.training and model.training
    assert [id(p) for p in model.parameters()] == [id(p) for p in plastic.weights()]
    assert model.state_dict().keys() == plastic.model.state_dict().keys()
    plastic.close("0", [0])
    plastic.compact()
    assert model.get_parameter("0.weight").shape == (11, 4)
    with pytest.raises(AttributeError, match=r"^'Sequential' object has no attribute 'misspelt'"):
        model.misspelt  # noqa: B018
    return model(X).shape


def test_the_wrapper_answers_for_the_model():
    assert asked_of_the_wrapper() == together(2, asked_of_the_wrapper)[1] == (64, 2)
    module = nn.Linear(4, 2)
    model = distributed.wrap(build()[0], module)
    for twin in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(X), module(X)) and twin.out_features == 2
    with pytest.raises(AttributeError, match=r"^'Wrapped' object has no attribute 'module'$"):
        distributed.Wrapped.__new__(distributed.Wrapped).train()


def test_one_process_draws_as_ever_and_tells_nobody():
    assert single()
    assert together(1, single) == [True]


def to_file(path):
    plastic, weights, gates = build()
    model = distributed.wrap(plastic)
    for _ in range(3):
        step(plastic, model, weights, gates, data=(X, Y))
    if distributed.rank() == 0:
        npn.save(path, plastic)
    dist.barrier()
    return more(plastic, model, weights, gates)


def from_file(path):
    plastic, weights, gates = build(seed=5)
    npn.load(path, plastic)
    return more(plastic, distributed.wrap(plastic), weights, gates)


def more(plastic, model, weights, gates):
    for _ in range(3):
        step(plastic, model, weights, gates, data=(X, Y))
    distributed.check(plastic)
    return digest(plastic), plastic.gates.generator.get_state().sum().item(), torch.rand(4).tolist()


def test_a_checkpoint_goes_on_with_any_number_of_processes(tmp_path):
    file = tmp_path / "both.pt"
    wrote = together(2, to_file, file)
    read = together(2, from_file, file)
    assert wrote[0][:2] == read[0][:2] == read[1][:2]
    assert read[0][2] == wrote[0][2] == read[1][2]  # the random state is the first one's, on both
    for count in (1, 3):
        digests = {answer[0] for answer in together(count, from_file, file)}
        assert len(digests) == 1 and digests != {wrote[0][0]}


def dies_at(fatal):
    plastic, weights, gates = build()
    model = distributed.wrap(plastic)
    for number in range(10_000):
        if number == fatal and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        step(plastic, model, weights, gates)


def test_a_killed_process_ends_the_others_with_an_error():
    with pytest.raises(Died) as death:
        together(2, dies_at, 4)
    assert death.value.codes == [1, -signal.SIGKILL] and "gloo" in death.value.errors[0]
    assert "imed out" not in death.value.errors[0], "it does not wait for the group's timeout"


def single_weights():
    """Train, remove weights, reopen some and go on."""
    plastic, weights, gates = build(unstructured="*", penalty=npn.Penalty("weights", 1e-3))
    model = distributed.wrap(plastic)
    masks, applied = [], plastic.masked_weights.applied
    plastic.masked_weights.applied = lambda mask, collect=False: masks.append(mask.tolist()) or applied(mask, collect)
    for _ in range(6):
        step(plastic, model, weights, gates)
    del plastic.masked_weights.applied
    plastic.close("2.weight", list(range(0, 96, 2)))
    plastic.close("0", [1])
    plastic.compact()
    step(plastic, model, weights, gates)
    plastic.reconnect(5)
    for _ in range(3):
        step(plastic, model, weights, gates)
    distributed.check(plastic)
    gate = plastic.unstructured["2.weight"]
    return masks, [p.tolist() for p in plastic.logits()], gate.removed.tolist(), digest(plastic)


def test_single_weights_are_the_same_on_all_and_their_draws_are_not():
    (masks, *mine), (other, *theirs) = together(2, single_weights)
    assert mine == theirs and len(masks) == len(other) >= 6
    assert all(a != b for a, b in zip(masks, other, strict=True))
