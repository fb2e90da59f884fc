"""Arguments of a wrong type: each is refused at once, by name, with what was expected and what came."""

import re

import pytest
import torch
from torch import nn

import npn
from npn.errors import CheckpointError, ConfigurationError, OptimizerError, TraceError

X = torch.zeros(4, 4)


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def attached():
    return npn.attach(net(), X, unstructured="2")


class Price(npn.CostTerm):
    """A price of the user's own: with or without a cost, and of any type."""

    def __init__(self, price, *cost):
        if cost:
            super().__init__(*cost)
        self.price = price

    def loss(self, plastic):
        return self.price


def priced(price):
    plastic = npn.attach(net(), X, penalty=Price(price, "units"))
    plastic.k = 7.0
    return plastic.backward(lambda: loss_of(plastic))


def loss_of(plastic):
    return plastic.model(X).square().mean()


REFUSED = {
    "a class in place of a model": (
        lambda: npn.attach(nn.Linear, X),
        "model must be a torch.nn.Module, got <class 'torch.nn.modules.linear.Linear'>",
    ),
    "inspect": (lambda: npn.inspect("net.pt", X), "model must be a torch.nn.Module, got 'net.pt'"),
    "a price as a number": (
        lambda: npn.attach(net(), X, penalty=1e-4),
        "penalty must be npn.Penalty(...), npn.Budget(...) or another npn.CostTerm, got 0.0001",
    ),
    "a price of no cost": (
        lambda: npn.attach(net(), X, penalty=Price(torch.tensor(1.0))),
        'Price.__init__ has to call super().__init__(cost), with "params", "macs" or so',
    ),
    "a price that is a number": (
        lambda: priced(0.5),
        "Price.loss must return a scalar tensor, made from plastic.expected_cost(...) without .item() or float(), "
        "got 0.5",
    ),
    "a price for each group": (
        lambda: priced(torch.ones(2)),
        "Price.loss must return a scalar tensor, made from plastic.expected_cost(...) without .item() or float(), got "
        "tensor([1., 1.])",
    ),
    "streams in words": (lambda: npn.attach(net(), X, streams="no"), "streams must be True or False, got 'no'"),
    "reconstruct in words": (
        lambda: npn.prune(net(), X, target=0.5, criterion="magnitude", reconstruct="no"),
        "reconstruct must be True or False, got 'no'",
    ),
    "paper_code as a number": (
        lambda: npn.methods.TargetedDropout(attached(), paper_code=2),
        "paper_code must be True or False, got 2",
    ),
    "a score that is no number": (
        lambda: npn.methods.HardConcrete(attached()).remove_below(float("nan")),
        "score must be a number, got nan",
    ),
    "several estimators": (
        lambda: npn.attach(net(), X, estimator=["arm"]),
        "estimator must be one of arm, disarm, rloo, double_cv, straight_through, reinmax, got ['arm']",
    ),
    "scores as a list": (
        lambda: npn.start_from(attached(), {"0": [1.0] * 8}),
        "the scores of '0' must be a tensor, got [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]",
    ),
    "scores without names": (
        lambda: npn.start_from(attached(), torch.ones(8)),
        "scores must be a dict from group name to scores, such as npn.importance returns, got "
        "tensor([1., 1., 1., 1., 1., 1., 1., 1.])",
    ),
    "one factor for all groups": (
        lambda: attached().expected_cost("layerwise", weights=5),
        "weights must be a dict from group name to factor, got 5",
    ),
    "a factor as text": (
        lambda: attached().expected_cost("layerwise", weights={"0": "x"}),
        "the factor of '0' must be a finite number, got 'x'",
    ),
    "groups to grow as a list": (
        lambda: attached().grow(["0"]),
        "more must be a dict from group name to number of units, got ['0']",
    ),
    "a keep probability as text": (lambda: attached().compact(below="x"), "below must be a share in [0, 1], got 'x'"),
    "a keep probability above 1": (lambda: attached().compact(below=50), "below must be a share in [0, 1], got 50"),
    "a copy by its path": (
        lambda: attached().follow("copy.pt"),
        "a copy that follows the model must be a torch.nn.Module, got 'copy.pt'",
    ),
    "growth of a number": (
        lambda: npn.Growth(only=3),
        'only must be a name pattern such as "fc*", or several, got 3',
    ),
    "growth of nothing": (
        lambda: npn.Growth(units={}),
        "units must name at least one group, got {}: nothing would grow",
    ),
    **{
        f"more than all, for {name}": (
            call,
            "target=1.5 would be a cost of 1.5 macs, since a fraction of the size is at most 1.0; to bound a network "
            "that grows, give the cost itself, such as 1_500_000",
        )
        for name, call in {
            "a budget": lambda: npn.Budget("macs", 1.5),
            "pruning": lambda: npn.prune(net(), X, target=1.5, cost="macs", criterion="magnitude"),
        }.items()
    },
    "k_end as text": (
        lambda: npn.Stage("plastic", 3, k=1.0, k_end="x"),
        "stage 'plastic': k_end needs a finite k and must itself be finite and >= 0, got k=1.0, k_end='x'; anneal to a "
        "large finite k and let the next stage have k=math.inf",
    ),
    "until as a number": (
        lambda: npn.Stage("plastic", 3, until=5),
        "stage 'plastic': until must be npn.Plateau(patience=...), got 5",
    ),
    **{
        f"{name}, of something else": (call, "plastic must be the handle that npn.attach returned, got 'net'")
        for name, call in {
            "importance": lambda: npn.importance("net", "magnitude"),
            "CUDA graphs": lambda: npn.CudaGraphs("net"),
            "start_from": lambda: npn.start_from("net", {}),
            "fit_to_budget": lambda: npn.fit_to_budget("net"),
            "a method": lambda: npn.methods.HardConcrete("net"),
            "an epoch": lambda: npn.Schedule(npn.Stage("train", 1)).enter(0, "net"),
            "wrap": lambda: npn.distributed.wrap("net"),
            "shard": lambda: npn.distributed.shard("net"),
            "a check of processes": lambda: npn.distributed.check("net"),
        }.items()
    },
    "save with torch.save's order": (
        lambda: npn.save(nn.ReLU(), "net.npn"),
        "path must be the path of a file, which comes first, as in npn.save(path, model), got ReLU()",
    ),
    "multiply-adds of a handle": (
        lambda: npn.count_macs(attached(), X),
        "model must be a torch.nn.Module (of a handle, plastic.model), got a Plasticity",
    ),
    "parameters of a handle": (
        lambda: npn.count_params(attached()),
        "model must be a torch.nn.Module (of a handle, plastic.model), got a Plasticity",
    ),
    "growth in the order of other libraries": (
        lambda: npn.Growth().step(attached(), 0.3),
        "validation_loss must be a number, as in growth.step(loss, plastic), got a Plasticity",
    ),
    "a loss as text": (
        lambda: npn.Growth().step("0.3", attached()),
        "validation_loss must be a number, as in growth.step(loss, plastic), got '0.3'",
    ),
    "a loss per example": (
        lambda: npn.Growth().step(torch.zeros(2), attached()),
        "validation_loss must be a number, as in growth.step(loss, plastic), got tensor([0., 0.])",
    ),
    "growth of a model": (
        lambda: npn.Growth().step(0.3, nn.ReLU()),
        "plastic must be the handle that npn.attach returned, got ReLU()",
    ),
    "an epoch of a model": (
        lambda: npn.Schedule(npn.Stage("train", 1, k=7.0)).enter(0, nn.ReLU()),
        "plastic must be the handle that npn.attach returned, got ReLU()",
    ),
    "a state as a target": (
        lambda: npn.load("net.npn", {}),
        "target must be a torch.nn.Module, or the handle that npn.attach returned, got {}",
    ),
    "a of Beta-Bernoulli": (
        lambda: npn.methods.BetaBernoulli(attached(), examples=10, a=float("nan")),
        "a must be a finite number, got nan",
    ),
    "p of the Lp sphere": (
        lambda: npn.methods.LpSphere(attached(), steps=10, p="x"),
        "p must lie in [1.05, 2], got 'x'; nearer to 1 is sparser, but |v|^(1/(p-1)) leaves float32 there",
    ),
}


@pytest.mark.parametrize("call, message", REFUSED.values(), ids=REFUSED)
def test_is_refused(call, message):
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        call()


NO_LOSS = {
    "None": (lambda loss: None, "got NoneType; end it with `return loss`"),
    "a number": (lambda loss: loss.sum().item(), "got float; return the tensor itself, without .item() or float()"),
    **{
        f"a {kind}": (
            pack,
            f"got {kind}; return the loss alone, such as output[0] or output['loss'], and keep the rest in a variable "
            "outside",
        )
        for kind, pack in {"tuple": lambda loss: (loss, None), "dict": lambda loss: {"loss": loss}}.items()
    },
}


@pytest.mark.parametrize("masks", ["batch", "example"])
@pytest.mark.parametrize("pack, message", NO_LOSS.values(), ids=NO_LOSS)
def test_closures_return_the_loss_alone(masks, pack, message):
    plastic = npn.attach(net(), X, masks=masks)
    plastic.k = 7.0
    with pytest.raises(ConfigurationError, match=f"{re.escape(message)}$"):
        plastic.backward(lambda: pack(plastic.model(X).square().mean(1)))


@pytest.mark.parametrize("option", ["only", "skip", "columns", "branches", "unstructured"])
@pytest.mark.parametrize("given", [True, 3, ["0", 1]], ids=str)
def test_patterns_are_text(option, given):
    message = f'{option} must be a name pattern such as "fc*", or several, got {given!r}'
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        npn.attach(net(), X, **{option: given})


STATES = {
    "a Plasticity": (attached, "plastic"),
    "a Penalty": (npn.Penalty, "penalty"),
    "a Budget": (lambda: npn.Budget("params", 0.5), "penalty"),
    "a Growth": (npn.Growth, "growth"),
    "a Schedule": (lambda: npn.Schedule(npn.Stage("train", 1)), "schedule"),
    "a RigL": (lambda: npn.methods.RigL(attached(), until=10), "method"),
}


@pytest.mark.parametrize("of", STATES)
@pytest.mark.parametrize("given", [None, 5], ids=str)
def test_states_are_dicts(of, given):
    make, name = STATES[of]
    wrong = rf"^not the state of {of}: got {given}; give what {name}\.state_dict\(\) returned$"
    with pytest.raises((ConfigurationError, CheckpointError), match=wrong):
        make().load_state_dict(given)


def handles():
    plastic = attached()
    return {"gates": plastic, "a method": npn.methods.RigL(attached(), until=10)}


@pytest.mark.parametrize("who", handles())
def test_backward_takes_a_function_and_a_factor(who):
    handle = handles()[who]
    plastic = getattr(handle, "plastic", handle)
    before = [weight.detach().clone() for weight in plastic.model.parameters()]
    computed = loss_of(plastic)
    message = (
        "closure must be a function that computes the loss, as in backward(lambda: criterion(model(x), y)), called "
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}under drawn masks, got "):
        handle.backward(computed)
    for scale in (None, "x", torch.ones(2)):
        with pytest.raises(ConfigurationError, match=r"^scale must be a number, a scalar tensor or a torch\.amp\.Grad"):
            handle.backward(lambda: loss_of(plastic), scale=scale)
    with pytest.raises(ConfigurationError, match=r"^scale must be a finite number, got nan$"):
        handle.backward(lambda: loss_of(plastic), scale=float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, plastic.model.parameters(), strict=True))
    assert torch.isfinite(handle.backward(lambda: loss_of(plastic), scale=torch.tensor(0.5)))


def test_optimizers_come_one_by_one():
    plastic = attached()
    optimizer = torch.optim.SGD(plastic.model.parameters(), lr=0.1)
    with pytest.raises(
        OptimizerError, match=r"^expected optimizers, one after the other: track\(first, second\); got "
    ):
        plastic.track([optimizer])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(OptimizerError, match=r"; got <torch\.optim\.lr_scheduler\.StepLR object at .*>$"):
        plastic.track(scheduler)
    assert plastic.optimizers == []


def test_an_incomplete_state_of_a_method_changes_nothing():
    method = npn.methods.RigL(attached(), until=10)
    state = {key: value for key, value in method.state_dict().items() if key != "done"}
    state["tensors"] = {"active": {name: ~t for name, t in state["tensors"]["active"].items()}}
    before = method.kept_gates()
    with pytest.raises(CheckpointError, match=r"^not the state of a RigL: it lacks done; give what method"):
        method.load_state_dict(state)
    assert torch.equal(method.kept_gates(), before)


def test_a_complex_loss_is_refused():
    plastic = attached()
    with pytest.raises(
        ConfigurationError, match=r"must return a real loss, got torch.complex64; take .abs\(\) or .real"
    ):
        plastic.backward(lambda: loss_of(plastic) * 1j)


def test_a_model_without_values_is_refused():
    model = net().to("meta")
    with pytest.raises(
        TraceError, match=r"^0.weight is on the meta device, where nothing has a value; give it one first"
    ):
        npn.attach(model, X.to("meta"))
