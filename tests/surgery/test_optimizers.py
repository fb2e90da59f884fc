"""Optimizer state follows a resize, entry by entry, for every optimizer that torch has."""

import pytest
import torch
import torch.nn.functional as F

import npn
from npn.errors import OptimizerError

O = torch.optim  # noqa: E741
OPTIMIZERS = {
    "sgd": lambda p: O.SGD(p, lr=0.05, momentum=0.9),
    "nesterov": lambda p: O.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "sgd-foreach": lambda p: O.SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "sgd-fused": lambda p: O.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: O.Adam(p, lr=0.01),
    "adam-foreach": lambda p: O.Adam(p, lr=0.01, foreach=True),
    "adam-fused": lambda p: O.Adam(p, lr=0.01, fused=True),
    "amsgrad": lambda p: O.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: O.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw-fused-amsgrad": lambda p: O.AdamW(p, lr=0.01, fused=True, amsgrad=True),
    "rmsprop": lambda p: O.RMSprop(p, lr=0.01, centered=True, momentum=0.9),
    "rmsprop-foreach": lambda p: O.RMSprop(p, lr=0.01, foreach=True),
    "adagrad": lambda p: O.Adagrad(p, lr=0.05),
    "adagrad-fused": lambda p: O.Adagrad(p, lr=0.05, fused=True),
    "adadelta": lambda p: O.Adadelta(p, lr=1.0),
    "adamax": lambda p: O.Adamax(p, lr=0.01),
    "nadam": lambda p: O.NAdam(p, lr=0.01),
    "radam": lambda p: O.RAdam(p, lr=0.01),
    "rprop": lambda p: O.Rprop(p, lr=0.01),
    "adafactor": lambda p: O.Adafactor(p, lr=0.05),
}
SECOND = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "exp_inf", "acc_delta", "step_size")


def ready(tiny, make, steps=3, name="mlp"):
    model, plastic = tiny[name].attach(penalty=npn.Penalty(weight=0.0))
    x, y = tiny[name].data()
    weights, gates = make(plastic.weights()), O.Adam(plastic.logits(), lr=1e-3)
    plastic.track(weights, gates)
    train(model, plastic, (weights, gates), x, y, steps)
    return model, plastic, weights, gates, x, y


def train(model, plastic, optimizers, x, y, steps):
    for _ in range(steps):
        for o in optimizers:
            o.zero_grad()
        plastic.backward(lambda: F.cross_entropy(model(x), y))
        for o in optimizers:
            o.step()


def fits(optimizer):
    """Every state tensor has the shape of its parameter (a factored moment: up to axes of size one)."""
    for p, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim():
                shape = tuple(1 if v == 1 else s for v, s in zip(value.shape, p.shape, strict=True))
                assert tuple(value.shape) == shape, (key, tuple(value.shape), tuple(p.shape))
                assert "var" in key or value.shape == p.shape


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_compact_gathers_and_grow_extends_every_state(tiny, tools, kind):
    model, plastic, weights, gates, x, y = ready(tiny, OPTIMIZERS[kind])
    identity = [id(p) for p in model.parameters()]
    groups = [[id(p) for p in g["params"]] for o in (weights, gates) for g in o.param_groups]
    keep = {"0": [0, 2, 3], "2": [1, 2]}
    rows = {"0.weight": (keep["0"], None), "0.bias": (keep["0"],), "2.weight": (keep["2"], keep["0"]),
            "2.bias": (keep["2"],), "4.weight": (None, keep["2"]), "4.bias": (None,)}  # fmt: skip

    def cut(name, tensor):
        for axis, kept in enumerate(rows[name]):
            if kept is not None and tensor.shape[axis] > 1:
                tensor = tensor.index_select(axis, torch.tensor(kept))
        return tensor

    names = {p: n for n, p in model.named_parameters()}
    before = {n: (p.detach().clone(), p.grad.clone(), tools.clone(weights.state.get(p, {}))) for p, n in names.items()}
    plastic.close("0", [1])
    plastic.close("2", [0])
    report = plastic.compact()
    assert report.changes == {"0": (4, 3), "2": (3, 2)} and report.removed == {"0": (1,), "2": (0,)}
    assert [id(p) for p in model.parameters()] == identity
    assert [[id(p) for p in g["params"]] for o in (weights, gates) for g in o.param_groups] == groups
    for p, name in names.items():
        value, grad, state = before[name]
        assert torch.equal(p, cut(name, value)) and torch.equal(p.grad, cut(name, grad))
        for key, item in state.items():
            now = weights.state[p][key]
            if isinstance(item, torch.Tensor) and item.dim():
                assert torch.equal(now, cut(name, item)), (name, key)
            else:
                assert now == item or (now is None and item is None)
    fits(weights)
    fits(gates)
    before = {n: tools.clone(weights.state.get(p, {})) for p, n in names.items()}
    plastic.grow({"0": 2})
    for key, old in before["0.weight"].items():
        now = weights.state[model[0].weight][key]
        if not isinstance(old, torch.Tensor) or not old.dim() or old.shape[0] != 3:
            continue
        assert torch.equal(now[:3], old)
        wanted = old.mean(0, keepdim=True).expand(2, -1) if key in SECOND or "var" in key else torch.zeros_like(now[3:])
        torch.testing.assert_close(now[3:], wanted, msg=key)
    fits(weights)
    fits(gates)
    moved = [p.detach().clone() for p in model.parameters()]
    train(model, plastic, (weights, gates), x, y, 2)
    assert all(not torch.equal(a, p) for a, p in zip(moved, model.parameters(), strict=True))
    assert bool((model[2].weight[:, 3:] != 0).all()), "the new unit's fan-out learns"
    fits(weights)


@pytest.mark.parametrize("kind", [k for k in OPTIMIZERS if k != "adafactor"])  # its step size depends on whole norms
def test_compact_then_train_is_masked_then_train(tiny, kind):
    """With closed gates at k = inf, the shrunk network and the masked one take the same steps."""
    ends = []
    for shrink in (False, True):
        model, plastic, weights, gates, x, y = ready(tiny, OPTIMIZERS[kind], name="conv")
        plastic.close("0", [1])
        plastic.close("3", [0, 2])
        weights.zero_grad()
        if shrink:
            plastic.compact()
        torch.manual_seed(0)
        train(model, plastic, (weights, gates), x, y, 5)
        plastic.compact()
        ends.append([model(x), *model.state_dict().values()])
    assert [t.shape for t in ends[0]] == [t.shape for t in ends[1]]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


def test_several_param_groups_and_schedulers(tiny):
    model, plastic = tiny["mlp"].attach()
    x, y = tiny["mlp"].data()
    weights = O.SGD([
        {"params": model[0].parameters(), "lr": 0.1},
        {"params": [model[2].weight, model[4].weight], "lr": 0.01, "weight_decay": 1e-2, "momentum": 0.9},
        {"params": [model[2].bias, model[4].bias], "lr": 0.001},
    ])  # fmt: skip
    gates = O.Adam(plastic.logits(), lr=1e-2)
    schedules = [O.lr_scheduler.CosineAnnealingLR(weights, 10), O.lr_scheduler.StepLR(gates, 2)]
    plastic.track(weights, gates)
    train(model, plastic, (weights, gates), x, y, 1)
    rates = []
    for step in range(6):
        train(model, plastic, (weights, gates), x, y, 1)
        if step == 2:
            plastic.close("0", [0])
            plastic.compact()
        if step == 3:
            plastic.grow({"2": 2})
        for s in schedules:
            s.step()
        rates.append([g["lr"] for o in (weights, gates) for g in o.param_groups])
    free = [torch.nn.Parameter(torch.zeros(1)) for _ in range(4)]
    plain = [O.SGD([{"params": [p], "lr": r} for p, r in zip(free, (0.1, 0.01, 0.001), strict=False)]),
             O.Adam(free[3:], lr=1e-2)]  # fmt: skip
    schedules = [O.lr_scheduler.CosineAnnealingLR(plain[0], 10), O.lr_scheduler.StepLR(plain[1], 2)]
    wanted = []
    for _ in range(6):
        for o in plain:
            o.step()
        for s in schedules:
            s.step()
        wanted.append([g["lr"] for o in plain for g in o.param_groups])
    assert rates == wanted
    assert weights.state[model[2].weight]["momentum_buffer"].shape == (5, 3)


def test_an_untracked_lbfgs_is_not_told_to_be_tracked(tiny):
    model, plastic = tiny["mlp"].attach()
    x, y = tiny["mlp"].data()
    lbfgs = O.LBFGS(model.parameters(), max_iter=2)

    def closure():
        lbfgs.zero_grad()
        return plastic.backward(lambda: F.cross_entropy(model(x), y))

    lbfgs.step(closure)
    plastic.close("0", [0])
    with pytest.raises(OptimizerError, match=r"^LBFGS keeps one flat history of all its parameters"):
        plastic.compact()


@pytest.mark.parametrize("group", ["0", "2"])
def test_lbfgs_is_refused_and_nothing_changes(tiny, tools, group):
    model, plastic = tiny["mlp"].attach()
    x, y = tiny["mlp"].data()
    lbfgs = O.LBFGS(model.parameters(), max_iter=2)
    with pytest.raises(OptimizerError, match=r"^LBFGS keeps one flat history of all its parameters"):
        plastic.track(lbfgs)
    plastic.optimizers.append(lbfgs)  # a resize looks again
    plastic.close(group, [0])

    def closure():
        lbfgs.zero_grad()
        return plastic.backward(lambda: F.cross_entropy(model(x), y))

    lbfgs.step(closure)
    before, out = tools.clone(model.state_dict()), model(x)
    with pytest.raises(OptimizerError, match=r"LBFGS keeps .* of .* as a list.*elementwise state"):
        plastic.compact()
    with pytest.raises(OptimizerError):
        plastic.grow({group: 1})
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert [g.size for g in plastic.groups] == [4, 3] and torch.equal(model(x), out)
    lbfgs.step(closure)
    lbfgs.state.clear()
    assert plastic.compact(), "with its state cleared it may go"


def test_foreign_state_is_refused(tiny):
    model, plastic = tiny["mlp"].attach()
    sgd = O.SGD(plastic.weights(), lr=0.1)
    sgd.state[model[2].weight]["basis"] = torch.zeros(7, 7)
    plastic.track(sgd)
    plastic.close("0", [0])
    with pytest.raises(OptimizerError, match=r"SGD keeps 'basis' of 2.weight as shape \(7, 7\)"):
        plastic.compact()
    assert model[0].out_features == 4 and plastic.groups[0].size == 4


def test_previous_loss_may_stay_alive(tiny):
    """Autograd remembers a parameter's old shape for as long as a graph with it lives."""
    model, plastic, weights, gates, x, y = ready(tiny, OPTIMIZERS["adam"])
    alive = [F.cross_entropy(model(x), y)]
    weights.zero_grad()
    plastic.close("0", [1])
    plastic.compact()
    alive.append(F.cross_entropy(model(x), y))
    train(model, plastic, (weights, gates), x, y, 2)
    plastic.grow({"0": 2, "2": 1})
    alive.append(F.cross_entropy(model(x), y))
    train(model, plastic, (weights, gates), x, y, 2)
    loss = F.cross_entropy(model(x), y)
    weights.zero_grad()
    loss.backward()
    assert all(p.grad.shape == p.shape for p in model.parameters()) and len(alive) == 3


def test_gates_state_follows(tiny):
    _, plastic, _, gates, *_ = ready(tiny, OPTIMIZERS["sgd"])
    plastic.k = 2.0
    logits = plastic.group("0").gate.logits
    model, (x, y) = plastic.model, tiny["mlp"].data()
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    gates.step()
    old = gates.state[logits]["exp_avg"].clone()
    plastic.close("0", [2])
    plastic.compact()
    assert plastic.group("0").gate.logits is logits
    assert torch.equal(gates.state[logits]["exp_avg"], old[[0, 1, 3]])
    assert logits.shape == logits.grad.shape == (3,)


def test_adafactor_follows_growth_from_one_unit():
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2)), torch.randn(6, 3)
    plastic = npn.attach(model, x)
    optimizer = torch.optim.Adafactor(plastic.weights(), lr=1e-2)
    plastic.track(optimizer)

    def step():
        optimizer.zero_grad()
        plastic.backward(lambda: model(x).square().mean())
        optimizer.step()

    step()
    plastic.close("0", [1])
    plastic.compact()
    step()
    plastic.grow({"0": 2})
    shapes = {key: tuple(v.shape) for key, v in optimizer.state[model[0].weight].items() if v.dim()}
    assert shapes == {"row_var": (3, 1), "col_var": (1, 3)}
    step()
    assert bool(model[0].weight.isfinite().all())


def test_sparse_gradients_follow():
    class Words(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = torch.nn.Embedding(7, 4, sparse=True), torch.nn.Linear(4, 2)

        def forward(self, x):
            return self.head(torch.tanh(self.words(x)))

    model, x = Words(), torch.tensor([[1, 2], [2, 5]])
    plastic = npn.attach(model, x)
    (name,) = plastic.sizes()
    plastic.backward(lambda: model(x).square().mean())
    before = model.words.weight.grad.to_dense()
    plastic.grow({name: 2})
    after = model.words.weight.grad
    assert after.is_sparse and torch.equal(after.to_dense(), torch.cat([before, torch.zeros(7, 2)], 1))
    plastic.close(name, [0])
    plastic.compact()
    assert torch.equal(model.words.weight.grad.to_dense()[:, :3], before[:, 1:])
