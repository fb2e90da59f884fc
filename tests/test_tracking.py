"""What `plastic.track` refuses, and what a resize notices."""

import copy
import re
import warnings

import pytest
import torch
import torch.nn.functional as F

import npn
from npn.errors import OptimizerError, PlasticityError


def test_a_parameter_in_two_optimizers(tiny):
    model, plastic = tiny["mlp"].attach()
    one = torch.optim.SGD(plastic.weights(), lr=0.1)
    two = torch.optim.Adam([model[2].weight])
    with pytest.raises(OptimizerError, match=r"2.weight is in two optimizers, SGD and Adam; each would move it"):
        plastic.track(one, two)
    assert plastic.optimizers == []
    plastic.track(one)
    with pytest.raises(OptimizerError, match=r"is in two optimizers"):
        plastic.track(two)
    gates = torch.optim.SGD(plastic.logits(), lr=0.1)
    with pytest.raises(OptimizerError, match=r"the gates of 0 is in two optimizers|the gates of 0 .*two optimizers"):
        plastic.track(gates, torch.optim.Adam(plastic.logits()))
    assert plastic.optimizers == [one]
    plastic.track(one, gates)
    plastic.track(gates)
    assert plastic.optimizers == [one, gates], "tracking twice is tracking once"


def test_an_optimizer_is_replaced_for_the_next_stage(tiny):
    model, plastic = tiny["mlp"].attach()
    x, y = tiny["mlp"].data()
    first, second = torch.optim.Adam(plastic.weights()), torch.optim.SGD(plastic.weights(), lr=0.1, momentum=0.9)
    plastic.track(first)
    for optimizer in (first, second):
        if optimizer is second:
            with pytest.raises(OptimizerError, match=r"Keep it in one, or untrack the one that it has replaced$"):
                plastic.track(second)
            plastic.untrack(first)
            plastic.track(second)
        plastic.backward(lambda: F.cross_entropy(model(x), y))
        optimizer.step()
    plastic.close("0", [0])
    plastic.compact()
    assert plastic.optimizers == [second] and second.state[model[0].weight]["momentum_buffer"].shape == (3, 3)


def test_weight_decay_on_gates(tiny):
    _, plastic = tiny["mlp"].attach()
    both = torch.optim.AdamW([*plastic.weights(), *plastic.logits()], lr=0.1, weight_decay=0.01)
    with pytest.raises(OptimizerError, match=r"weight_decay=0.01, which pulls every gate.*give plastic.logits"):
        plastic.track(both)
    fine = torch.optim.AdamW([
        {"params": plastic.weights(), "weight_decay": 0.01}, {"params": plastic.logits(), "weight_decay": 0.0},
    ], lr=0.1)  # fmt: skip
    plastic.track(fine)
    fine.param_groups[1]["weight_decay"] = 0.3  # behind our back: seen at the next resize
    plastic.close("0", [0])
    with pytest.raises(OptimizerError, match=r"weight_decay=0.3"):
        plastic.compact()
    assert plastic.groups[0].size == 4


def test_an_optimizer_that_was_never_tracked(tiny):
    model, plastic = tiny["mlp"].attach()
    x, y = tiny["mlp"].data()
    weights = torch.optim.Adam(plastic.weights())
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    weights.step()
    plastic.close("0", [0])
    with pytest.raises(OptimizerError, match=r"Adam keeps state of 0.weight and 5 more.*never tracked.*plastic.track"):
        plastic.compact()
    assert issubclass(OptimizerError, PlasticityError) and model[0].out_features == 4
    plastic.track(weights)
    plastic.compact()
    weights.step()
    assert weights.state[model[0].weight]["exp_avg"].shape == (3, 3)


@pytest.mark.parametrize("resize", [lambda p: p.grow({"0": 2}), lambda p: (p.close("0", [0]), p.compact())])
def test_an_untracked_optimizer_from_before_attach_is_told_in_its_next_step(tiny, resize):
    """A resize cannot know it: nothing saw it step. Its state is loaded, as models of other tests watch every step."""
    model, plastic = tiny["mlp"].attach()
    x, y = tiny["mlp"].data()
    other, weights = torch.optim.Adam(copy.deepcopy(model).parameters()), torch.optim.Adam(model.parameters())
    for p in other.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    other.step()
    weights.load_state_dict(other.state_dict())
    resize(plastic)
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(OptimizerError, match=r"^Adam keeps 'exp_avg' of 0.weight in shape \(4, 3\), .*not tracked"):
        weights.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    weights.state.clear()
    plastic.track(weights)
    weights.step()


def test_an_optimizer_of_another_model_is_told(tiny):
    model, plastic = tiny["mlp"].attach()
    stale = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"^SGD holds no weight and no gate of this model, .* plastic.weights\(\) or"):
        plastic.track(stale)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plastic.track(torch.optim.Adam(plastic.logits()), torch.optim.SGD([model[0].bias], lr=0.1))


def test_a_fresh_optimizer_needs_no_tracking(tiny):
    model, plastic = tiny["mlp"].attach()
    x, y = tiny["mlp"].data()
    weights = torch.optim.Adam(plastic.weights())
    plastic.close("0", [0])
    plastic.compact()
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    weights.step()
    assert weights.state[model[2].weight]["exp_avg"].shape == (3, 3)


def test_names_of_all_groups_with_one_tracker(tiny):
    """Two attached models, two handles: neither looks at the other's optimizers."""
    a, pa = tiny["mlp"].attach()
    b, pb = tiny["mlp"].attach(1)
    x, y = tiny["mlp"].data()
    oa, ob = torch.optim.Adam(pa.weights()), torch.optim.Adam(pb.weights())
    pa.track(oa)
    for m, p, o in ((a, pa, oa), (b, pb, ob)):
        p.backward(lambda m=m: F.cross_entropy(m(x), y))
        o.step()
    pa.close("0", [0])
    assert pa.compact()
    pb.close("0", [0])
    with pytest.raises(OptimizerError, match=r"never tracked"):
        pb.compact()
    assert npn.count_params(a) < npn.count_params(b)


class Kronecker(torch.optim.Optimizer):
    """A matrix for each axis, as in Shampoo, SOAP or Kron."""

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                self.state[p].setdefault("factors", [torch.eye(n) for n in p.shape])
                p.sub_(group["lr"] * p.grad)


INSTEAD = "use an optimizer whose state has the layout of each parameter, such as SGD, AdamW, Muon or Adafactor"


@pytest.mark.parametrize(
    ("kind", "keeps"),
    [
        (torch.optim.LBFGS, "LBFGS keeps one flat history of all its parameters, which"),
        (Kronecker, "Kronecker keeps 'factors' of a parameter of shape (3, 5) as a list of tensors, which"),
    ],
)
def test_state_that_no_resize_can_carry_along(tiny, tools, kind, keeps):
    model, plastic = tiny["mlp"].attach()
    optimizer = kind(plastic.weights(), lr=0.1)
    before, rng = tools.clone(model.state_dict()), torch.get_rng_state()
    with pytest.raises(OptimizerError, match=f"^{re.escape(f'{keeps} no resize can carry along; {INSTEAD}')}$"):
        plastic.track(optimizer)
    assert plastic.optimizers == [] and not optimizer.state and torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert optimizer.param_groups[0]["params"][0] is plastic.weights()[0]


def test_a_tracked_optimizer_is_not_changed(tiny):
    _, plastic = tiny["conv"].attach()
    x, y = tiny["conv"].data()
    optimizer = torch.optim.AdamW(plastic.weights())
    for _ in range(2):
        plastic.track(optimizer)
        plastic.untrack(optimizer)
        assert {int(state["step"]) for state in optimizer.state.values()} <= {1}
        plastic.backward(lambda: F.cross_entropy(plastic.model(x), y))
        if not optimizer.state:
            optimizer.step()


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_adafactor_of_transformers_follows(tiny, momentum):
    adafactor = pytest.importorskip("transformers.optimization").Adafactor
    model, plastic = tiny["conv"].attach()
    x, y = tiny["conv"].data()
    optimizer = adafactor(plastic.weights(), lr=0.01, relative_step=False, beta1=momentum)
    plastic.track(optimizer)

    def step():
        optimizer.zero_grad()
        plastic.backward(lambda: F.cross_entropy(model(x), y))
        optimizer.step()

    step()
    first = model[0].weight
    rows, columns = (optimizer.state[first][f"exp_avg_sq_{name}"].clone() for name in ("row", "col"))
    assert rows.shape == first.shape[:-1] and columns.shape == first.shape[:-2] + first.shape[-1:]
    plastic.close("0", [1])
    plastic.compact()
    state = optimizer.state[first]
    assert torch.equal(state["exp_avg_sq_row"], rows[[0, 2]]) and torch.equal(state["exp_avg_sq_col"], columns[[0, 2]])
    plastic.grow({"0": 2})
    new = rows[[0, 2]].mean(0)
    assert torch.equal(state["exp_avg_sq_row"], torch.stack([rows[0], rows[2], new, new]))
    step()
    assert all(p.isfinite().all() for p in plastic.weights())


class Lookahead(torch.optim.Optimizer):
    """A wrapper around an optimizer whose slow weights are in its own state, or in that of the inner one."""

    def __init__(self, inner, shared):
        self.base_optimizer, self.param_groups, self.defaults = inner, inner.param_groups, inner.defaults
        self.state = inner.state if shared else {}

    @torch.no_grad()
    def step(self):
        self.base_optimizer.step()
        for group in self.param_groups:
            for p in group["params"]:
                slow = self.state.setdefault(p, {}).setdefault("slow_buffer", p.clone())
                p.copy_(slow.lerp_(p, 0.5))


def test_a_wrapper_with_state_of_its_own(tiny):
    _, plastic = tiny["mlp"].attach()
    inner = torch.optim.SGD(plastic.weights(), lr=0.1, momentum=0.9)
    message = r"^Lookahead is a wrapper around SGD with .*plastic.track\(optimizer.base_optimizer\); else train with"
    with pytest.raises(OptimizerError, match=message):
        plastic.track(Lookahead(inner, shared=False))
    assert plastic.optimizers == []


def test_a_wrapper_that_shares_the_inner_state_follows(tiny):
    model, plastic = tiny["mlp"].attach()
    x, y = tiny["mlp"].data()
    inner = torch.optim.SGD(plastic.weights(), lr=0.1, momentum=0.9)
    outer = Lookahead(inner, shared=True)
    plastic.track(outer)
    assert plastic.optimizers == [inner]
    for _ in range(2):
        plastic.backward(lambda: F.cross_entropy(model(x), y))
        outer.step()
        plastic.grow({"0": 2})
        assert torch.equal(inner.state[model[0].weight]["slow_buffer"][-2:], model[0].weight[-2:])
