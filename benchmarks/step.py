"""The cost of a plastic step over a plain one: medians of interleaved ratios, in one process.

Run: python benchmarks/step.py --rounds 60 --threads 1 (on a busy machine with --cpu-time)
"""

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn
from common import BATCH_SIZE, batch, lenet5, parser, timing_table, training_step, write
from npn.experiments.engine.timing import Clock, interleaved
from npn.passes import evaluated

AIMS = {"k = inf": 1.02, "reinmax": 1.10, "straight_through": 1.10, "arm": 1.45, "disarm": 1.45, "rloo": 1.45}
ESTIMATORS = (None, "reinmax", "straight_through", "arm", "disarm", "rloo", "double_cv")


def mlp() -> nn.Module:
    """784-500-300-10, batch 128."""
    layers = [nn.Flatten(), nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 300), nn.ReLU(), nn.Linear(300, 10)]
    return nn.Sequential(*layers)


def conv() -> nn.Module:
    """LeNet5-Caffe, 20-50-800-500, batch 128."""
    return lenet5()


def plastic_step(model: nn.Module, x: Tensor, y: Tensor, estimator: str | None) -> Callable[[], None]:
    """Make a function that does a plain step with gates.

    Args:
        model: to train.
        x: inputs.
        y: classes.
        estimator: name, as `npn.attach` takes it; None for k = inf.
    """
    plastic = npn.attach(model, x[:2], estimator=estimator or "reinmax")
    plastic.k = math.inf if estimator is None else 7.0
    weights = torch.optim.SGD(plastic.weights(), lr=1e-3, momentum=0.9)
    gates = torch.optim.Adam(plastic.logits(), lr=0.0, fused=True)  # the gates stay where they are, the work is done
    plastic.track(weights, gates)

    def step() -> None:
        weights.zero_grad()
        gates.zero_grad()
        plastic.backward(lambda: F.cross_entropy(model(x), y))
        weights.step()
        gates.step()

    return step


def parts(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], None]]:
    """Name -> a part of a step with ReinMax, each with all before it, without optimizers.

    Args:
        model: to train.
        x: inputs.
        y: classes.
    """
    plastic = npn.attach(model, x[:2])
    plastic.k = 7.0
    weights, mask = plastic.masked_weights, (torch.rand(len(plastic.gates), device=x.device) < 0.95).float()

    def loss() -> Tensor:
        for parameter in [*model.parameters(), *plastic.logits()]:
            parameter.grad = None
        return F.cross_entropy(model(x), y)

    def plain() -> None:
        with weights.step():
            loss().backward()

    def checked() -> None:
        with weights.step():
            evaluated(weights, loss)

    def masked() -> None:
        with weights.step(), weights.applied(mask):
            evaluated(weights, loss)

    def summed() -> None:
        with weights.step(), weights.applied(mask, collect=True) as under:
            evaluated(weights, loss)
        under.mask_gradient()

    def whole() -> None:
        plastic.backward(loss)

    return {
        "forward and backward pass": plain,
        "checks of the loss and the closure": checked,
        "masked weights and gradients": masked,
        "dL/dz": summed,
        "draw, estimator, penalty: the whole": whole,
    }


def ratios(
    build: Callable[[], nn.Module], rounds: int, device: str, clock: Clock | None = None
) -> dict[str, dict[str, float]]:
    """Measure median and quartiles of the time over that of the plain step, and of a forward pass alone.

    Args:
        build: makes the network.
        rounds: measurements of each step.
        device: to measure on.
        clock: see `npn.experiments.engine.timing.seconds`.

    Returns:
        Variant -> summary of its `Timing`.
    """
    x, y = (tensor.to(device) for tensor in batch(BATCH_SIZE))

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return build().to(device)

    plain, forward = fresh(), fresh()

    def alone() -> None:
        with torch.no_grad():
            F.cross_entropy(forward(x), y)

    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-3, momentum=0.9)
    steps: dict[str, Callable[[], object]] = {"plain": training_step(plain, optimizer, x, y), "forward alone": alone}
    steps |= {name or "k = inf": plastic_step(fresh(), x, y, name) for name in ESTIMATORS}
    timings = interleaved(steps, "plain", rounds, device=device, clock=clock)
    return {name: timing.summary() for name, timing in timings.items()}


def main() -> None:
    """Measure, print the tables, write them."""
    options_ = parser(__doc__, "step", rounds=(60, "measurements of each step"))
    options_.add_argument("--device", default="cpu")
    options_.add_argument("--cpu-time", action="store_true", help="seconds of the processor, for a busy machine")
    options = options_.parse_args()
    torch.set_num_threads(options.threads)
    measured, tables = {}, []
    clock = time.process_time if options.cpu_time else None
    for build in (mlp, conv):
        measured[build.__name__] = ratios(build, options.rounds, options.device, clock)
        aims = {name: f"{aim:.2f}" for name, aim in AIMS.items()}
        tables += [f"## {build.__doc__}", timing_table(measured[build.__name__], "step", aim=aims)]
        print(*tables[-2:], sep="\n\n")
    x, y = (tensor.to(options.device) for tensor in batch(BATCH_SIZE))
    pieces = parts(mlp().to(options.device), x, y)
    timings = interleaved(pieces, next(iter(pieces)), options.rounds, device=options.device, clock=clock)
    measured["parts"] = {name: timing.summary() for name, timing in timings.items()}
    tables += [f"## Where it goes: {mlp.__doc__}", timing_table(measured["parts"], "with ReinMax, up to")]
    print(*tables[-2:], sep="\n\n")
    notes = [
        "Ratio: seconds over those of the plain step just before and after, median over the rounds. The row `plain` is "
        "the plain step against itself: how far it strays from 1 is the noise."
    ]
    found = {"rounds": options.rounds, "aims": AIMS, "ratio_over_plain_step": measured}
    write(options.out, "One plastic step over a plain one", found, tables, notes, options.device)


if __name__ == "__main__":
    main()
