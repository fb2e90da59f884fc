"""What the tests of a training step share: exact expectations over all draws, by going through them."""

import itertools
import math

import torch

import npn
from npn.functional import logits_for

UNBIASED = ("arm", "disarm", "rloo", "double_cv")
FUNCTIONS = ("sigmoid", "hard_sigmoid", "shifted_sigmoid")
K = 1.5


def set_probability(plastic, pi):
    phi = logits_for(torch.tensor(pi, dtype=torch.float64), K, plastic.function).float()
    with torch.no_grad():
        for group, part in zip(plastic.groups, phi.split([g.size for g in plastic.groups]), strict=True):
            group.gate.logits.copy_(part)


def weights_of(masks, pi):
    return torch.stack([torch.where(m > 0, pi, 1 - pi).prod() for m in masks])


def logit_gradient(plastic):
    return torch.cat([g.gate.logits.grad for g in plastic.groups]).double()


def clear(plastic):
    for p in [*plastic.weights(), *plastic.logits()]:
        p.grad = None


def every_draw(estimator, pi):
    """All values of the uniform draws that matter, each with its probability; ARM is linear in u between them."""
    segments = []
    for p in pi.tolist():
        cuts = [0.0, min(p, 1 - p), max(p, 1 - p), 1.0] if estimator in ("arm", "disarm") else [0.0, p, 1.0]
        segments.append([((a + b) / 2, b - a) for a, b in itertools.pairwise(cuts) if b - a > 1e-9])
    one = [
        (torch.tensor([u for u, _ in combo]), math.prod(w for _, w in combo)) for combo in itertools.product(*segments)
    ]
    if estimator in ("rloo", "double_cv"):
        return [((a, b), v * w) for (a, v), (b, w) in itertools.product(one, one)]
    return [((u,), w) for u, w in one]


def exact_mean(plastic, model, closure):
    """Expectation of every gradient over the draws of `backward`, by going through all of them."""
    with torch.no_grad():
        pi = plastic.gates.keep_probability().double()
    logits, weights, passed = 0.0, {}, 0.0
    for draws, probability in every_draw(plastic.estimator, pi):
        left = iter(draws)
        plastic.gates.draw = lambda *batch, left=left: next(left)
        clear(plastic)
        plastic.backward(closure)
        logits = logits + probability * logit_gradient(plastic)
        for name, p in model.named_parameters():
            weights[name] = weights.get(name, 0.0) + probability * p.grad
        passed += probability
    assert math.isclose(passed, 1.0, abs_tol=1e-6)
    return logits, weights


def expected(exact, plastic):
    """The true gradient in the logits, and the expected weight gradients."""
    with torch.no_grad():
        pi = plastic.gates.keep_probability().double()
        slope = npn.functional.keep_probability_derivative(plastic.gates.logits(), K, plastic.function).double()
    weights, masks = weights_of(exact.masks, pi), torch.stack(exact.masks)
    losses = exact.losses.double()
    difference = []
    for j in range(len(pi)):
        opened = masks[:, j] > 0
        difference.append((weights * losses)[opened].sum() / pi[j] if pi[j] > 0 else torch.tensor(0.0).double())
        difference[-1] = difference[-1] - ((weights * losses)[~opened].sum() / (1 - pi[j]) if pi[j] < 1 else 0.0)
    grads = {n: sum(w * g[n] for w, g in zip(weights.tolist(), exact.grads, strict=True)) for n in exact.grads[0]}
    return slope * torch.stack(difference), grads


PROBABILITY = {
    "sigmoid": [0.3, 0.8, 0.55, 0.93],
    "hard_sigmoid": [0.3, 0.8, 0.55, 1.0],  # the last is clipped: no gradient, whatever the loss
    "shifted_sigmoid": [0.3, 0.8, 0.55, 0.93],
}
