"""What an attached model still is: its own class, call, state_dict, copies; and what `detach` gives back."""

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn
from npn.errors import ConfigurationError, PlasticityError, TraceError

NAMES = ["mlp", "conv", "residual", "recurrent", "depthwise"]


def half_closed(spec):
    model, plastic = spec.attach()
    for group in plastic.groups:
        plastic.close(group, range(0, group.size, 2))
    masks = {g.name: g.gate.mask for g in plastic.groups}
    return model, plastic, masks, spec.data()


def test_attach_traces_and_starts_as_a_plain_model(tiny, tools):
    spec = tiny["conv"]
    model, plain = spec.model(), spec.model()
    x, _ = spec.data()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    plastic = npn.attach(model, x)
    assert torch.equal(before, torch.get_rng_state()) and tools.same(model, plain) and model.training
    assert [(g.name, g.size) for g in plastic.groups] == [("0", 3), ("3", 4)]
    assert plastic.k == math.inf and plastic.sizes() == {"0": 3, "3": 4}
    assert torch.equal(model(x), plain(x))
    assert [id(p) for p in plastic.weights()] == [id(p) for p in model.parameters()]
    assert [p.shape for p in plastic.logits()] == [(3,), (4,)]


def test_options_are_checked(tiny):
    model, x = tiny["mlp"].model(), tiny["mlp"].data()[0]
    for wrong in ({"estimator": "gumbel"}, {"masks": "pixel"}, {"function": "tanh"}, {"only": "9*"}, {"skip": ["zz"]}):
        with pytest.raises(ConfigurationError):
            npn.attach(model, x, **wrong)
    with pytest.raises(TraceError, match=r"nothing in the model can be resized"):
        npn.attach(model, x, skip="*")
    assert not model._forward_hooks and not model._forward_pre_hooks
    plastic = npn.attach(model, x, only="2")
    assert [g.name for g in plastic.groups] == ["2"] and any(f.name == "0" for f in plastic.frozen)
    with pytest.raises(ConfigurationError, match=r"has plasticity already; call detach\(\)"):
        npn.attach(model, x)
    plastic.detach()
    assert len(npn.attach(model, x).groups) == 2


@pytest.mark.parametrize("name", NAMES)
def test_call_outside_backward_is_the_masked_network(tiny, tools, name):
    spec = tiny[name]
    model, plastic, masks, (x, _) = half_closed(spec)
    state = tools.clone(model.state_dict())
    for k in (math.inf, 3.0, 0.0):
        plastic.k = k
        for training in (True, False):
            model.load_state_dict(state)
            model.train(training)
            twin = spec.masked_copy(model, masks)
            wanted = twin(x)
            torch.testing.assert_close(model(x), wanted)
            with torch.no_grad():
                torch.testing.assert_close(model(x), twin(x))
            with torch.inference_mode():
                torch.testing.assert_close(model(x), twin(x))
            assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
            assert all(torch.equal(p, state[n]) for n, p in model.named_parameters())
            assert all(p.requires_grad and not p.is_inference() for p in model.parameters())
    model.train()
    x_, y = spec.data()
    plastic.k = 2.0
    plastic.backward(lambda: F.cross_entropy(model(x_), y))


@pytest.mark.parametrize("name", NAMES)
def test_plain_backward_outside_gives_the_masked_gradient(tiny, name):
    spec = tiny[name]
    model, _, masks, (x, y) = half_closed(spec)
    twin = spec.masked_copy(model, masks)
    F.cross_entropy(twin(x), y).backward()
    x = x.clone().requires_grad_()
    F.cross_entropy(model(x), y).backward()
    factors = spec.factors(masks)
    for (n, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad * factors.get(n, torch.ones(())), msg=n)
    z = spec.data()[0].requires_grad_()
    F.cross_entropy(twin(z), y).backward()
    torch.testing.assert_close(x.grad, z.grad)


def test_two_calls_and_one_backward(tiny):
    spec = tiny["mlp"]
    model, _, masks, (x, y) = half_closed(spec)
    twin = spec.masked_copy(model, masks)
    for m in (model, twin):
        (F.cross_entropy(m(x), y) + m(2 * x).square().mean()).backward()
    factors = spec.factors(masks)
    for (n, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad * factors.get(n, torch.ones(())), msg=n)


def test_the_mask_follows_every_optimizer(tiny):
    """Fused optimizers write without counting versions; the next call must see what they did."""
    x, _ = tiny["mlp"].data()
    for options in ({}, {"fused": True}, {"foreach": True}):
        model, plastic = tiny["mlp"].attach()
        plastic.k = 1.0
        gates = torch.optim.Adam(plastic.logits(), lr=9.0, **options)
        before = model(x)
        for phi in plastic.logits():
            phi.grad = torch.ones_like(phi)
            phi.grad[0] = -1.0
        gates.step()
        assert plastic.sizes() == {"0": 1, "2": 1}
        masks = {g.name: g.gate.mask for g in plastic.groups}
        torch.testing.assert_close(model(x), tiny["mlp"].masked_copy(model, masks)(x))
        assert not torch.equal(model(x), before)


def test_errors_in_forward_leave_the_weights(tiny, tools):
    model, _, _, (x, _) = half_closed(tiny["mlp"])
    state = tools.clone(model.state_dict())
    out = model(x)
    for bad in (torch.zeros(2, 5), "text"):
        with pytest.raises((RuntimeError, TypeError)):
            model(bad)
        assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    assert torch.equal(model(x), out)
    model.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(x)
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())


class Recursive(nn.Module):
    """Calls itself: the inner call must not take the masks away from the outer one."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x, depth=1):
        if depth:
            x = x + self(x, depth - 1)
        return self.b(torch.tanh(self.a(x)))


def test_nested_calls():
    torch.manual_seed(0)
    model = Recursive()
    x = torch.randn(5, 3)
    twin = copy.deepcopy(model)
    plastic = npn.attach(model, x)
    (group,) = plastic.groups
    plastic.close(group, [0, 2])
    with torch.no_grad():
        twin.b.weight[:, [0, 2]] = 0
    state = copy.deepcopy(model.state_dict())
    torch.testing.assert_close(model(x, 3), twin(x, 3))
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 7), 2)
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    torch.testing.assert_close(model(x), twin(x))


def test_submodules_called_alone_are_plain(tiny):
    """Masks belong to the model's call; a part of it called by itself computes with its own weights."""
    model, *_ = half_closed(tiny["mlp"])
    h = torch.randn(2, 4)
    assert torch.equal(model[2](h), F.linear(h, model[2].weight, model[2].bias))


def test_user_hooks_keep_working(tiny):
    spec = tiny["mlp"]
    model = spec.model()
    x, y = spec.data()
    seen = []
    handles = [
        model.register_forward_pre_hook(lambda m, a: seen.append("pre")),
        model.register_forward_hook(lambda m, a, o: seen.append("post")),
        model[2].register_forward_hook(lambda m, a, o: seen.append("inner")),
        model.register_full_backward_hook(lambda m, gi, go: seen.append("backward")),
        model[2].weight.register_hook(lambda g: seen.append("grad")),
    ]
    plastic = npn.attach(model, x)
    model.register_forward_hook(lambda m, a, o: 2 * o)
    plastic.close("0", [1])
    seen.clear()
    out = model(x)
    assert seen == ["pre", "inner", "post"]
    out.sum().backward()
    assert sorted(seen[3:]) == ["backward", "grad"]
    torch.testing.assert_close(out, 2 * spec.masked_copy(model, {g.name: g.gate.mask for g in plastic.groups})(x))
    seen.clear()
    plastic.k = 1.0
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    assert sorted(seen) == ["backward", "grad", "inner", "post", "pre"]
    handles[0].remove()
    plastic.detach()
    seen.clear()
    model(x)
    assert seen == ["inner", "post"]


@pytest.mark.parametrize("what", ["model", "plastic"])
def test_deep_copies_are_equal_and_independent(tiny, tools, what):
    spec = tiny["conv"]
    model, plastic, _, (x, y) = half_closed(spec)
    plastic.k = 2.0
    if what == "plastic":
        twin_plastic = copy.deepcopy(plastic)
        twin = twin_plastic.model
    else:
        twin, twin_plastic = copy.deepcopy((model, plastic))
    assert twin is not model and twin_plastic.model is twin and twin_plastic is not plastic
    model.eval(), twin.eval()
    torch.testing.assert_close(twin(x), model(x))
    model.train(), twin.train()
    for m, p in ((model, plastic), (twin, twin_plastic)):
        p.backward(lambda m=m: F.cross_entropy(m(x), y))
    ours, theirs = ([q.grad for q in (*p.weights(), *p.logits())] for p in (plastic, twin_plastic))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    shared = {t.data_ptr() for t in (*model.parameters(), *model.buffers(), *plastic.logits())}
    assert not shared & {t.data_ptr() for t in (*twin.parameters(), *twin.buffers(), *twin_plastic.logits())}
    state, out = tools.clone(model.state_dict()), model.eval()(x)
    twin_plastic.compact()
    twin_plastic.open("3", [0])
    twin_plastic.grow({"0": 2})
    twin.train()
    twin_plastic.backward(lambda: F.cross_entropy(twin(x), y))
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    assert torch.equal(model(x), out) and plastic.sizes() == {"0": 1, "3": 2}
    assert plastic.groups[0].traced.size == 3 and model[0].out_channels == 3
    assert plastic.full_cost("params") == twin_plastic.full_cost("params")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_to_dtype(tiny, dtype):
    spec = tiny["conv"]
    model, plastic, masks, (x, y) = half_closed(spec)
    F.cross_entropy(model(x), y).backward()
    model.zero_grad()
    assert model.to(dtype) is model
    x = x.to(dtype)
    twin = spec.masked_copy(model.float(), masks).to(dtype)
    model.to(dtype)
    torch.testing.assert_close(model(x), twin(x))
    plastic.k = 1.0
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    assert all(p.grad.dtype == dtype for p in model.parameters())
    assert all(g.gate.logits.grad.dtype == torch.float32 for g in plastic.groups)
    weight = model[3].weight
    plastic.k = math.inf
    plastic.compact()
    assert model[3].weight is weight and weight.dtype == dtype
    torch.testing.assert_close(model.eval()(x).shape, twin(x).shape)


def test_state_dict_is_the_plain_one(tiny, tools):
    spec = tiny["conv"]
    plain = spec.model()
    model, _, masks, (x, _) = half_closed(spec)
    assert tools.same(model, plain), "keys, order and unmasked values"
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    seen = []
    model[3].register_forward_hook(lambda m, a, o: seen.append(m.weight.detach().clone()))
    model(x)
    assert bool((seen[0][:, 0] == 0).all()) and bool((model.state_dict()["3.weight"][:, 0] != 0).all())
    other = spec.model(seed=5)
    parameter = model[3].weight
    model.load_state_dict(other.state_dict())
    assert model[3].weight is parameter and tools.same(model, other)
    torch.testing.assert_close(model.eval()(x), spec.masked_copy(model, masks).eval()(x))


def test_detach_gives_everything_back(tiny, tools):
    spec = tiny["conv"]
    plain = spec.model()
    model, plastic, _, (x, y) = half_closed(spec)
    hooked = {n: dict(vars(m)) for n, m in plain.named_modules()}
    plastic.masked_weights.table  # noqa: B018
    model(x)
    model.load_state_dict(plain.state_dict())
    assert plastic.detach() is model and type(model) is type(plain)
    assert tools.same(model, plain) and torch.equal(model.eval()(x), plain.eval()(x))
    for name, module in model.named_modules():
        assert list(vars(module)) == list(hooked[name])
        for key, value in vars(module).items():
            if key.startswith("_") and "hook" in key:
                assert not value, (name, key)
    assert all(not p._backward_hooks for p in model.parameters())
    F.cross_entropy(model(x), y).backward()
    assert bool((model[3].weight.grad[:, 0] != 0).any()), "closed units take part again"
    assert "npn" not in pickle_text(model)


def pickle_text(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue().decode("latin1")


def test_pickling_says_what_to_do_instead(tiny):
    model, _ = tiny["mlp"].attach()
    for dump in (pickle.dumps, lambda m: torch.save(m, io.BytesIO())):
        with pytest.raises(PlasticityError, match=r"cannot be pickled; use plastic.export\(\).*npn.save"):
            dump(model)


@pytest.mark.parametrize("name", NAMES)
def test_export_is_plain(tiny, name):
    spec = tiny[name]
    model, plastic, _, (x, y) = half_closed(spec)
    plastic.k = 1.0
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    small = plastic.export()
    assert type(small) is type(spec.make())
    assert "npn" not in pickle_text(small)
    again = pickle.loads(pickle.dumps(small))
    assert torch.equal(again.eval()(x), small.eval()(x))
    assert all(not p._backward_hooks and p.requires_grad for p in small.parameters())
    assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in model.parameters()}
    torch.testing.assert_close(model.eval()(x), small(x))
    small(x).sum().backward()


def test_graph_models_can_be_called_twice_without_grad(tiny):
    """A loop of evaluation between training steps never leaves a mask behind."""
    spec = tiny["dropping"]
    model, plastic = spec.attach(penalty=npn.Penalty(weight=0.05))
    x, y = spec.data()
    weights, gates = torch.optim.SGD(plastic.weights(), lr=0.1), torch.optim.Adam(plastic.logits(), lr=0.2)
    plastic.k = 1.0
    for _ in range(15):
        weights.zero_grad(), gates.zero_grad()
        plastic.backward(lambda: F.cross_entropy(model(x), y))
        weights.step(), gates.step()
        model.eval()
        with torch.no_grad():
            masks = {g.name: g.gate.mask for g in plastic.groups}
            torch.testing.assert_close(model(x), spec.masked_copy(model, masks)(x))
        model.train()
    assert sum(plastic.sizes().values()) < 12, "no unit ever closed: the test shows nothing"
