"""The quality of an estimator's gradient: single draws beside the mean of many draws of an unbiased estimator."""

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn
from npn.experiments.engine.timing import interleaved
from npn.functional import table

ESTIMATORS = tuple(table.ESTIMATORS)
UNBIASED = tuple(name for name, entry in table.ESTIMATORS.items() if entry.unbiased)
DENSE = "dense"

Loss = Callable[[nn.Module], Tensor]
Quality = dict[str, float | None]


def draws(plastic: npn.Plasticity, loss: Loss, estimator: str, count: int, seed: int) -> Tensor:
    """Draw gradients of E_z[loss] with respect to the gates' logits, with fixed weights and without the penalty.

    Args:
        plastic: at 0 < k < inf, in train or eval mode; it does not change.
        loss: computes a scalar with the model, on the same batch in every call.
        estimator: name, as `npn.attach` takes it.
        count: number of draws.
        seed: of the masks; different seeds give independent draws.

    Returns:
        (count, units), float64, the units of all groups in order.
    """
    twin = copy.deepcopy(plastic)
    twin.estimator = estimator
    twin.penalty = npn.Penalty(cost="params", weight=0.0)
    twin.penalty.bind(twin)
    twin.gates.generator.manual_seed(seed)
    found = []
    for _ in range(count):
        for parameter in (*twin.weights(), *twin.logits()):
            parameter.grad = None
        twin.backward(lambda: loss(twin.model))
        found.append(torch.cat([_gradient(logits) for logits in twin.logits()]))
    return torch.stack(found).double()


def _gradient(logits: Tensor) -> Tensor:
    return torch.zeros_like(logits) if logits.grad is None else logits.grad


def quality(singles: Tensor, reference: Tensor) -> Quality:
    """Compare single draws of an estimator with the true gradient.

    With g the true gradient, m its mean over N reference draws and e^2 = tr(cov) / N the squared standard error of m:
    |g|^2 is |m|^2 - e^2, which is unbiased. Of M single draws h: the bias is |mean(h) - m|, of which chance alone gives
    sqrt(tr(C)), with C = cov(h) / M + cov(reference) / N; the standard error of the squared bias is sqrt(2 tr(C^2)).

    Args:
        singles: (M, n), M >= 2.
        reference: (N, n) draws of an unbiased estimator, N >= 2, none of them among the singles.

    Returns:
        `cosine` of a single draw to m (mean over draws) and the `ceiling` that g itself would reach; `variance`
        tr(cov(h)) / |g|^2; relative `bias`, its `floor` by chance, and `excess` sqrt(bias^2 - floor^2), 0 where the
        difference is less than two standard errors; relative standard error of m as `reference_error`; `norm` |g|.
        All but norm and cosine are None where the reference does not tell g from 0.

    Example:
        >>> reference = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> found = quality(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), reference)
        >>> {name: round(value, 3) for name, value in found.items()}
        {'cosine': 0.707, 'norm': 1.0, 'ceiling': 1.0, 'reference_error': 0.0, 'variance': 2.0, 'bias': 0.0,
         'floor': 1.0, 'excess': 0.0}
    """
    mean, error = reference.mean(0), float(reference.var(0).sum()) / len(reference)
    square = float(mean @ mean) - error
    spread = float(singles.var(0).sum())
    found: Quality = {
        "cosine": float(F.cosine_similarity(singles, mean[None], dim=1).mean()),
        "norm": math.sqrt(max(square, 0.0)),
    }
    if square <= 0:
        return found | dict.fromkeys(("ceiling", "reference_error", "variance", "bias", "floor", "excess"))
    bias = float((singles.mean(0) - mean).square().sum()) / square
    floor = (spread / len(singles) + error) / square
    doubt = math.sqrt(2 * _squared_covariance(singles, reference)) / square
    return found | {
        "ceiling": 1 / math.sqrt(1 + error / square),
        "reference_error": math.sqrt(error / square),
        "variance": spread / square,
        "bias": math.sqrt(bias),
        "floor": math.sqrt(floor),
        "excess": math.sqrt(bias - floor) if bias - floor > 2 * doubt else 0.0,
    }


def _squared_covariance(singles: Tensor, reference: Tensor) -> float:
    """Estimate tr(C^2) of `quality`'s C without bias; the plain estimate is too large with fewer draws than units."""
    parts = [draws - draws.mean(0) for draws in (singles, reference)]
    own = 0.0
    for part in parts:
        gram, free = part @ part.T if len(part) < part.shape[1] else part.T @ part, len(part) - 1
        plain, trace = float(gram.square().sum()) / free**2, float(gram.trace()) / free
        if free > 1:
            plain = max(0.0, free**2 / ((free - 1) * (free + 2)) * (plain - trace**2 / free))
        own += plain / len(part) ** 2
    m, n = map(len, parts)
    both = float((parts[0] @ parts[1].T).square().sum()) / ((m - 1) * (n - 1))
    return own + 2 * both / (m * n)


def by_group(plastic: npn.Plasticity, singles: Tensor, reference: Tensor) -> dict[str, Quality]:
    """Compute `quality` over the units of each group, and over all units under the name "all".

    Args:
        plastic: the attached model.
        singles: (M, n) draws of an estimator.
        reference: (N, n) draws of an unbiased estimator.
    """
    found, start = {"all": quality(singles, reference)}, 0
    for group in plastic.groups:
        part = slice(start, start + group.size)
        found[group.name] = quality(singles[:, part], reference[:, part])
        start += group.size
    return found


def step_times(
    plastic: npn.Plasticity, loss: Loss, estimators: tuple[str, ...], rounds: int, device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """Time a training step with each estimator, and one of the same net without gates.

    A step is forward, backward, AdamW on the weights and Adam on the gates, with learning rates of 0, so that nothing
    changes. Every step has its own copy of the model.

    Args:
        plastic: the attached model; it does not change.
        loss: computes a scalar with the model.
        estimators: names, as `npn.attach` takes them.
        rounds: measurements of each step.
        device: of the model.

    Returns:
        For every estimator and for "dense": `median` ratio to dense, its quartiles, and median `seconds`.
    """
    steps: dict[str, Callable[[], object]] = {DENSE: _dense_step(plastic, loss)}
    steps |= {name: _plastic_step(plastic, loss, name) for name in estimators}
    timings = interleaved(steps, DENSE, rounds, device=device)
    return {name: timing.summary() for name, timing in timings.items()}


def _dense_step(plastic: npn.Plasticity, loss: Loss) -> Callable[[], object]:
    model = copy.deepcopy(plastic).detach()
    weights = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step() -> None:
        weights.zero_grad()
        loss(model).backward()
        weights.step()

    return step


def _plastic_step(plastic: npn.Plasticity, loss: Loss, estimator: str) -> Callable[[], object]:
    twin = copy.deepcopy(plastic)
    twin.estimator = estimator
    weights = torch.optim.AdamW(twin.weights(), lr=0.0)
    gates = torch.optim.Adam(twin.logits(), lr=0.0)

    def step() -> None:
        weights.zero_grad()
        gates.zero_grad()
        twin.backward(lambda: loss(twin.model))
        weights.step()
        gates.step()

    return step
