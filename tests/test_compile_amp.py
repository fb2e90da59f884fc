"""`torch.autocast`, `GradScaler` and `torch.compile` around an attached model."""

import copy
import math
import shutil

import pytest
import torch
import torch._inductor.config
import torch.nn.functional as F

import npn

ESTIMATORS = ("arm", "disarm", "double_cv", "reinmax")


def gradients(plastic):
    return [p.grad.clone() for p in (*plastic.weights(), *plastic.logits())]


def cast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("where", ["inside", "outside", "both"])
@pytest.mark.parametrize("estimator", npn.step.ESTIMATORS)
def test_autocast_reads_the_present_mask(tiny, estimator, where):
    """Against weights cast by hand: the cache of casts must not carry a mask from one pass into the next."""
    x, y = tiny["mlp"].data()
    found = []
    for by_hand in (True, False):
        model, plastic = tiny["mlp"].attach(estimator=estimator, penalty=npn.Penalty(weight=0.0))
        plastic.k = 0.4
        with torch.no_grad():
            for phi in plastic.logits():
                phi.zero_()
        losses = []

        def closure(model=model, by_hand=by_hand, losses=losses):
            if by_hand:
                h, layers = x, [model[0], model[2], model[4]]
                for i, layer in enumerate(layers):
                    h = F.linear(h.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16())
                    h = torch.tanh(h) if i < 2 else h
                out = h
            elif where == "outside":
                out = model(x)
            else:
                with cast():
                    out = model(x)
            losses.append(F.cross_entropy(out.float(), y))
            return losses[-1]

        plastic.gates.generator.manual_seed(3)
        for _ in range(3):
            if where == "inside" or by_hand:
                plastic.backward(closure)
            else:
                with cast():
                    plastic.backward(closure)
        found.append((torch.stack(losses).detach(), gradients(plastic)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=2e-2, atol=2e-3)
    assert len(set(found[1][0].tolist())) > 1, "every mask gave the same loss: the test shows nothing"


def test_autocast_around_outside_calls(tiny):
    """Open and close between two calls within one autocast region."""
    model, plastic = tiny["mlp"].attach()
    x, _ = tiny["mlp"].data()
    with cast(), torch.no_grad():
        first = model(x)
        plastic.close("0", [0, 1, 2])
        second = model(x)
        plastic.open("0", [0, 1, 2])
        third = model(x)
    assert first.dtype == torch.bfloat16 and torch.equal(first, third) and not torch.equal(first, second)


@pytest.mark.parametrize("kind", ["params", "macs", "layerwise", "units"])
def test_penalty_is_exact_inside_autocast(tiny, kind):
    found = []
    for context in (torch.autocast("cpu", enabled=False), cast()):
        _, plastic = tiny["residual"].attach()
        plastic.k = 1.3
        with context:
            cost = plastic.expected_cost(kind)
            cost.backward()
        found.append([cost.detach(), *(p.grad for p in plastic.logits())])
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_grad_scaler_as_scale(tiny, estimator):
    """Unscaled gradients, penalty included, are those without a scaler; steps go through it."""
    x, y = tiny["mlp"].data()
    found = []
    for scaled in (False, True):
        model, plastic = tiny["mlp"].attach(estimator=estimator, penalty=npn.Penalty(weight=1e-3))
        plastic.k = 1.0
        weights, gates = torch.optim.SGD(plastic.weights(), lr=0.1), torch.optim.Adam(plastic.logits(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        plastic.gates.generator.manual_seed(1)
        for _ in range(3):
            weights.zero_grad(), gates.zero_grad()
            loss = plastic.backward(lambda m=model: F.cross_entropy(m(x), y), scale=scaler)
            scaler.unscale_(weights), scaler.unscale_(gates)
            scaler.step(weights), scaler.step(gates)
            scaler.update()
        found.append([loss, *gradients(plastic), *(p.detach() for p in (*plastic.weights(), *plastic.logits()))])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_grad_scaler_in_the_closure(tiny, estimator):
    """`scaler.scale(loss)` in the closure scales the data term of weights and gates alike."""
    x, y = tiny["mlp"].data()
    found = []
    for scaled in (False, True):
        model, plastic = tiny["mlp"].attach(estimator=estimator, penalty=npn.Penalty(weight=0.0))
        plastic.k = 1.0
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
        optimizer = torch.optim.SGD([*plastic.weights(), *plastic.logits()], lr=0.1)
        plastic.gates.generator.manual_seed(1)
        plastic.backward(lambda m=model, s=scaler: s.scale(F.cross_entropy(m(x), y)))
        scaler.unscale_(optimizer)
        found.append(gradients(plastic))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


BACKENDS = ["eager", "aot_eager"]


def check_compiled(spec, backend, estimator="reinmax", masks="batch", steps=2):
    """Steps, outside calls, a resize, steps again: the compiled model does what the plain one does."""
    x, y = spec.data()
    reduction = "none" if masks == "example" else "mean"
    ends = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model, plastic = spec.attach(estimator=estimator, masks=masks)
        call = torch.compile(model, backend=backend) if compiled else model
        weights, gates = (
            torch.optim.SGD(plastic.weights(), lr=0.1, momentum=0.9),
            torch.optim.Adam(plastic.logits(), lr=0.1),
        )
        plastic.track(weights, gates)
        seen = []

        def train(model=model, call=call, plastic=plastic, weights=weights, gates=gates, seen=seen):
            model.train()
            for _ in range(steps):
                weights.zero_grad(), gates.zero_grad()
                kind = "mean" if plastic.k == math.inf else reduction
                seen.append(plastic.backward(lambda kind=kind: F.cross_entropy(call(x), y, reduction=kind)))
                seen.extend(gradients_or_none(plastic))
                weights.step(), gates.step()
            model.eval()
            with torch.no_grad():
                seen.append(call(x))
            loss = F.cross_entropy(call(x), y)
            weights.zero_grad()
            loss.backward()
            seen.append(loss.detach())
            seen.extend(p.grad.clone() for p in model.parameters())

        plastic.gates.generator.manual_seed(0)
        for k in (math.inf, 1.0, 0.0):
            plastic.k = k
            train()
        plastic.k = 1.0
        plastic.close("0", [0])
        train()
        plastic.close("0", [0])
        plastic.compact()
        train()
        plastic.grow({"0": 2})
        train()
        plastic.k = math.inf
        train()
        ends.append(seen)
    # new units are drawn at random in both runs alike
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


def gradients_or_none(plastic):
    return [p.grad.clone() for p in (*plastic.weights(), *plastic.logits()) if p.grad is not None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", ["reinmax", "disarm", "double_cv"])
def test_compiled_mlp(tiny, backend, estimator):
    check_compiled(tiny["mlp"], backend, estimator)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_conv(tiny, backend):
    check_compiled(tiny["conv"], backend, "disarm", steps=1)


def test_compiled_with_masks_per_example(tiny):
    check_compiled(tiny["mlp"], "eager", "reinmax", masks="example")


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiled_by_inductor(tiny, monkeypatch):
    model, plastic = tiny["mlp"].attach()
    x, y = tiny["mlp"].data()
    torch._dynamo.reset()
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)  # no pool of processes for one small graph
    twin = copy.deepcopy(plastic)
    call = torch.compile(model)
    for p in (plastic, twin):
        p.k = 1.0
        p.close("0", [1])
        p.gates.generator.manual_seed(0)
    for _ in range(2):  # two masks, one graph
        plastic.backward(lambda: F.cross_entropy(call(x), y))
        twin.backward(lambda: F.cross_entropy(twin.model(x), y))
    torch.testing.assert_close(gradients(plastic), gradients(twin), rtol=1e-4, atol=1e-5)
