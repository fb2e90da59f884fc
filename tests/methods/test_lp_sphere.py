"""Gates on an Lp sphere: the step, the topology, and what a resize leaves."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import npn
from npn import functional, methods
from npn.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("traces_are_shared")


def attached(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    plastic = npn.attach(model, torch.zeros(2, 3))
    return model, plastic, methods.LpSphere(plastic, **{"steps": 100, "p": 1.5, "rate": 0.1, **options})


def give(method, gradient):
    """A step whose dL/dz is given."""
    leaf = method.training_mask()
    (leaf * gradient).sum().backward()
    method.after_step()


@pytest.mark.parametrize("p", [1.1, 1.5, 2.0])
def test_gates_start_at_one_and_stay_on_the_sphere(p):
    _, _, method = attached(p=p)
    torch.testing.assert_close(method.evaluation_mask(), torch.ones(8))
    torch.manual_seed(1)
    for _ in range(5):
        give(method, torch.randn(8))
        assert float(torch.linalg.vector_norm(method.values("0"), p)) == pytest.approx(8 ** (1 / p), rel=1e-4)


def test_steps_have_nesterov_momentum_and_reach_the_solution_of_a_linear_loss():
    _, _, method = attached(momentum=0.5)
    c = torch.randn(8)
    dual, velocity = torch.full((8,), 8 ** (-1 / 3)), torch.zeros(8)
    for _ in range(3):
        velocity = 0.5 * velocity + c
        dual = functional.dual_step(dual, c + 0.5 * velocity, 0.1, 1.5)
        give(method, c)
        torch.testing.assert_close(method._joined("dual"), dual)
    for _ in range(300):
        give(method, c)
    active = method._joined("active")
    w = method.values("0") / 8 ** (1 / 1.5)
    held = c * active
    solution = -held.sign() * held.abs() ** 2 / torch.linalg.vector_norm(held, 3) ** 2
    torch.testing.assert_close(w, solution, atol=1e-4, rtol=1e-3)


def test_small_gates_are_masked_and_the_most_promising_return():
    _, _, method = attached(steps=10, every=2, rate=1e-6, target=0.5)
    z = torch.tensor([2.0, 0.01, 1.0, 0.02, -0.03, 1.0, -1.0, 0.04])
    method._tensors["dual"]["0"].copy_(functional.dual_of(z / torch.linalg.vector_norm(z, 1.5), 1.5))
    gradient = torch.tensor([1.0, 0.5, 1.0, 9.0, 7.0, 1.0, 1.0, 8.0])
    give(method, gradient)
    assert bool(method._joined("active").all()), "an odd step changes nothing"
    give(method, gradient)  # t = 0.2, f = 0.18: four are dropped, int(4 * 0.95) = 3 return
    assert method.kept()["0"].tolist() == [True, False, True, True, True, True, True, True]
    assert method.sparsity() == pytest.approx(1 / 8)
    assert method.returned == pytest.approx(0.9 * (1 / 8) / 0.5)
    mask = method.evaluation_mask()
    assert mask[1] == 0 and mask[4] < 0
    shrinks, velocity = float(method._joined("dual")[1]), method._joined("momentum")
    method.rate = 0.1
    give(method, -z * gradient)
    assert velocity[1] == 0 and abs(float(method._joined("dual")[1])) < shrinks, (
        "no gradient or momentum, but it decays"
    )


def test_compact_keeps_the_function_and_the_sparsity():
    model, _, method = attached(momentum=0.0)
    give(method, torch.randn(8))
    method._tensors["active"]["0"][[1, 4, 6]] = False
    x = torch.randn(4, 3)
    before, gates = model(x), method.evaluation_mask()
    assert method.compact().changes == {"0": (8, 5)}
    torch.testing.assert_close(model(x), before)
    assert method.sparsity() == pytest.approx(3 / 8)
    give(method, 0 * torch.ones(5))  # no direction: the step only restores the norm of v
    torch.testing.assert_close(method.evaluation_mask(), gates[[0, 2, 3, 5, 7]])
    small = method.export()
    torch.testing.assert_close(small(x), model(x))
    assert 0 <= method.hoyer() <= 1


def test_wrong_settings_are_refused():
    for settings, message in (
        ({"steps": 0}, r"^steps must be a whole number >= 1 of training steps, got 0$"),
        ({"p": 2.5}, r"^p must lie in \[1.05, 2\], got 2.5; nearer to 1 is sparser, but \|v\|\^"),
        ({"p": {"0": 1.0}}, r"^p must lie in \[1.05, 2\], got 1.0"),
        ({"target": 0.0}, r"^target must be a number in \(0, 1\], got 0.0$"),
        ({"rate": math.nan}, r"^rate must be a number in \(0, 1\], got nan$"),
        ({"momentum": 1.5}, r"^momentum must be a share in \[0, 1\], got 1.5$"),
        ({"every": 1.5}, r"^every must be a whole number >= 1 of steps, got 1.5$"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            attached(**settings)


# -- weights on spheres


def sparse(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    plastic = npn.attach(model, torch.zeros(2, 3), unstructured="2")
    method = methods.LpSphere(plastic, **{"steps": 20, "p": 1.3, "rate": 0.05, "every": 2, **options})
    optimizer = torch.optim.SGD(plastic.weights(), lr=0.1, momentum=0.9, weight_decay=0.1)
    plastic.track(optimizer)
    return model, plastic, method, optimizer


def step(model, method, optimizer):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 3, generator=generator)
    optimizer.zero_grad()
    loss = method.backward(lambda: F.cross_entropy(model(x), x.sum(1).gt(0).long()))
    optimizer.step()
    method.after_step()
    return float(loss)


def norms(weight):
    return torch.linalg.vector_norm(weight.detach(), 1.3, dim=1)


def test_weights_keep_the_norm_of_their_rows_whatever_the_optimizer_does():
    model, _, method, optimizer = sparse(every=100)
    weight, start = model[2].weight, norms(model[2].weight)
    before, other = weight.detach().clone(), model[0].weight.detach().clone()
    torch.testing.assert_close(method.values("2.weight"), before)
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
    h = F.relu(F.linear(F.relu(model[0](x)), weight, model[2].bias))
    gradient = torch.autograd.grad(F.cross_entropy(model[4](h), x.sum(1).gt(0).long()), weight)[0]
    first = step(model, method, optimizer)
    v = functional.dual_of(before / start[:, None], 1.3)
    expected = functional.primal_of(functional.dual_step(v, (1 + 0.9) * gradient, 0.05, 1.3), 1.3) * start[:, None]
    torch.testing.assert_close(weight.detach(), expected)
    assert not torch.equal(model[0].weight, other), "other layers are the optimizer's"
    for _ in range(15):
        last = step(model, method, optimizer)
        torch.testing.assert_close(norms(weight), start)
    assert last < first and method.hoyer() > float(functional.hoyer(before).mean())


def test_masked_weights_are_zero_in_the_network_and_may_come_back():
    model, plastic, method, optimizer = sparse(start=0.3, target=0.8)
    assert method.sparsity() == pytest.approx(0.3, abs=0.15)
    masked = ~method.kept()["2.weight"]
    assert model[2].weight[masked].any(), "their values stay"
    seen, returned = masked.clone(), False
    for _ in range(20):
        step(model, method, optimizer)
        now = ~method.kept()["2.weight"]
        returned |= bool((seen & ~now).any())
        seen |= now
    assert returned and bool(method.kept()["0"].all())
    x = torch.randn(4, 3)
    used = model[2].weight * method.kept()["2.weight"]
    expected = model[4](F.relu(F.linear(F.relu(model[0](x)), used, model[2].bias)))
    torch.testing.assert_close(model(x), expected)
    small = method.export()
    torch.testing.assert_close(small(x), expected)
    torch.testing.assert_close(small[2].weight, used)
    with torch.no_grad():
        method._tensors["active"]["2.weight"][:, [0, 5]] = False
    expected, values = model(x), model[2].weight.detach().clone()
    zeros = method.sparsity()
    report = method.compact()
    kept = [unit for unit in range(8) if unit not in report.removed["0"]]
    assert not {0, 5} & set(kept)
    torch.testing.assert_close(model(x), expected)
    assert method.sparsity() == pytest.approx(zeros)
    live = method.kept()["2.weight"]
    torch.testing.assert_close(method.values("2.weight")[live], values[:, kept][live])
    step(model, method, optimizer)
    plastic.grow({"0": 1, "2": 1})
    expected = model(x)
    fresh = model[2].weight.detach()[-1].clone()
    method.rate = 1e-7
    step(model, method, torch.optim.SGD([model[4].bias], lr=0.0))
    torch.testing.assert_close(model[2].weight.detach()[-1], fresh, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(model(x), expected, atol=1e-3, rtol=1e-3)


def test_new_units_start_at_one_and_lie_on_the_sphere_of_the_others():
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(8, 5)
    plastic = npn.attach(model, x)
    method = methods.LpSphere(plastic, steps=9)
    plastic.grow({"0": 3, "2": 1})
    torch.testing.assert_close(method.evaluation_mask(), torch.ones(26))
    before = {name: method.values(name).norm(1.3) for name in ("0", "2")}
    for _ in range(2):
        method.backward(lambda: model(x).square().mean())
        method.after_step()
    assert not torch.equal(method.evaluation_mask(), torch.ones(26))
    for name, norm in before.items():
        torch.testing.assert_close(method.values(name).norm(1.3), norm)


def trained_weights(order):
    """A step of training with the gradients cleared before or after `after_step`."""
    torch.manual_seed(0)
    x, y = torch.randn(32, 5), torch.arange(32) % 3
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    plastic = npn.attach(model, x, unstructured="0")
    method, optimizer = (
        methods.LpSphere(plastic, steps=100, rate=0.05, every=5),
        torch.optim.SGD(plastic.weights(), lr=0.5),
    )
    for _ in range(40):
        method.backward(lambda: F.cross_entropy(model(x), y))
        optimizer.step()
        for call in order(optimizer, method):
            call()
    return model[0].weight.detach(), method.sparsity()


def test_gradients_may_be_cleared_before_or_after():
    one, sparse = trained_weights(lambda optimizer, method: (optimizer.zero_grad, method.after_step))
    other, same = trained_weights(lambda optimizer, method: (method.after_step, optimizer.zero_grad))
    assert torch.equal(one, other) and sparse == same > 0


def test_masked_weights_return_by_the_gradient_relative_to_that_of_their_row():
    """The last row's gradient is a hundred times that of the others, so by its size all would return there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 4, bias=False), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 100.0]]))
    x = torch.randn(64, 100)
    plastic = npn.attach(model, x, unstructured="0")
    method = methods.LpSphere(plastic, steps=4, every=1, rate=0.01, start=0.5)
    before = method.kept()["0.weight"].clone()
    method.backward(lambda: model(x).sum())
    gradient = plastic.masked_weights.dense_gradients()["0.weight"].abs()
    assert gradient[3].mean() > 10 * gradient[:3].mean()
    method.after_step()
    back = method.kept()["0.weight"] & ~before
    promise = (gradient / gradient.norm(dim=1, keepdim=True)).masked_fill(method.kept()["0.weight"] & before, -1)
    chosen = promise.flatten().argsort(descending=True)[: int(back.sum())]
    assert int(back.sum()) > 2 and set(back.flatten().nonzero().flatten().tolist()) <= set(chosen.tolist())
    assert int(back[:3].sum())


@pytest.mark.parametrize("options", [{}, {"unstructured": "*"}])
def test_a_gradient_that_overflows_moves_nothing_to_nan(options):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(5, 4)
    method = methods.LpSphere(npn.attach(model, x, **options), steps=10)
    for scale in (1.0, torch.tensor(torch.inf), 1.0):  # of a GradScaler, whose optimizer skips the second step
        method.backward(lambda: model(x).square().mean(), scale=scale)
        method.after_step()
        model.zero_grad()
    assert model(x).isfinite().all()
